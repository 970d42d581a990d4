"""Masked LMs and classifiers: each record's logits are those plain transformers gives it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CLASSES
from architectures import built as causal
from encoders import LABELS, built
from torch import Tensor

from softlabels import teachers
from softlabels.errors import TeacherError
from softlabels.teachers import transformers as engine

LENGTHS = [9, 5, 1, 3, 5]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
EVERY = {
    "BertForMaskedLM": CLASSES,
    "RobertaForMaskedLM": CLASSES,
    "DistilBertForMaskedLM": CLASSES,
    "ModernBertForMaskedLM": CLASSES,
    "BertForTokenClassification": LABELS,
    "ModernBertForTokenClassification": LABELS,
    "LlamaForTokenClassification": LABELS,
}
FIRST = [
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "DistilBertForSequenceClassification",
    "ModernBertForSequenceClassification",
    "LlamaForSequenceClassification",
    "GPT2ForSequenceClassification",
]


def batch(pad: int | None = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, wanted (two of three) and padding, as precompute makes them: padded with 0."""
    ids = torch.randint(3, CLASSES, (len(LENGTHS), max(LENGTHS)))
    padding = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    wanted = (torch.arange(ids.numel()).view_as(ids) % 3 != 1) & ~padding
    return ids.masked_fill(padding, 0), wanted, padding


def first_of(padding: Tensor) -> Tensor:
    """Wanted of one label a record."""
    wanted = torch.zeros_like(padding)
    wanted[:, 0] = True
    return wanted


@torch.no_grad()
def oracle(model: Any, ids: Tensor, wanted: Tensor, padding: Tensor) -> Tensor:
    """Each record alone and without padding."""
    rows = []
    for row in range(len(ids)):
        logits = model(ids[row : row + 1, ~padding[row]]).logits[0]
        rows += [logits] if logits.ndim == 1 else [logits[wanted[row, : len(logits)]]]
    return torch.cat([row.view(-1, row.shape[-1]) for row in rows])


def answer(teacher: Any, ids: Tensor, wanted: Tensor, padding: Tensor) -> Tensor:
    return torch.cat(list(teacher.logits(ids, wanted, padding=padding)))


@pytest.mark.parametrize("name", list(EVERY))
def test_every_token_s_logits_are_those_of_its_record_alone(name: str) -> None:
    model, inputs = built(name), batch()
    teacher: Any = teachers.resolve(model)
    found = answer(teacher, *inputs)  # a warning would be an error
    expected = oracle(model, *inputs)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert (teacher.alignment, teacher.positions) == ("same", "every")
    assert (teacher.classes, teacher.vocabulary) == (EVERY[name], CLASSES)
    assert teacher.classes_are_tokens == (EVERY[name] == CLASSES)
    assert teacher._takes_padding
    assert teacher._head_is_separate


@pytest.mark.parametrize("name", FIRST)
def test_a_record_s_label_is_that_of_the_record_alone(name: str) -> None:
    model, (ids, _, padding) = built(name), batch()
    teacher: Any = teachers.resolve(model)
    found = answer(teacher, ids, first_of(padding), padding)
    expected = oracle(model, ids, first_of(padding), padding)
    assert found.shape == (len(LENGTHS), LABELS)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert (teacher.alignment, teacher.positions) == ("same", "first")
    assert (teacher.classes, teacher.vocabulary) == (LABELS, CLASSES)
    assert teacher._takes_padding


@pytest.mark.parametrize(
    "name", ["LlamaForSequenceClassification", "GPT2ForSequenceClassification"]
)
def test_a_decoder_without_a_padding_token_classifies_its_records_one_by_one(name: str) -> None:
    model, (ids, _, padding) = built(name, pad_token_id=None), batch()
    teacher: Any = teachers.sequence_classifier(model)
    found = answer(teacher, ids, first_of(padding), padding)
    torch.testing.assert_close(found, oracle(model, ids, first_of(padding), padding), **TOLERANCE)
    assert not teacher._takes_padding


@pytest.mark.parametrize("task", ["MaskedLM", "TokenClassification", "SequenceClassification"])
def test_a_model_whose_convolutions_read_the_padding_runs_its_records_one_by_one(task: str) -> None:
    model, (ids, wanted, padding) = built(f"ConvBertFor{task}"), batch()
    if task == "SequenceClassification":
        wanted = first_of(padding)
    teacher: Any = teachers.resolve(model)
    found = answer(teacher, ids, wanted, padding)
    torch.testing.assert_close(found, oracle(model, ids, wanted, padding), **TOLERANCE)
    assert not teacher._takes_padding


def test_records_that_are_not_wanted_have_no_rows() -> None:
    for pad in (0, None):  # in one batch, and one by one
        model = built("LlamaForSequenceClassification", pad_token_id=pad)
        ids, _, padding = batch()
        wanted = first_of(padding)
        wanted[1] = False
        found = answer(teachers.resolve(model), ids, wanted, padding)
        expected = oracle(model, ids, wanted, padding)[[0, 2, 3, 4]]
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_more_than_one_label_a_record_is_refused() -> None:
    ids, wanted, padding = batch()
    teacher = teachers.resolve(built("BertForSequenceClassification"))
    with pytest.raises(TeacherError, match="a sequence classifier: it gives one label a record"):
        answer(teacher, ids, wanted, padding)


def test_a_masked_lm_s_logits_are_made_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(engine._CHUNK_BYTES, "cpu", 4 * CLASSES * 3)
    ids, wanted, padding = batch()
    chunks = list(teachers.resolve(built("BertForMaskedLM")).logits(ids, wanted, padding=padding))
    assert {len(chunk) for chunk in chunks[:-1]} == {3}


def test_a_record_as_long_as_max_length_runs_and_a_longer_one_does_not() -> None:
    # RoBERTa counts positions from its padding token's id + 1 on.
    for name in ("RobertaForMaskedLM", "BertForMaskedLM"):
        model = built(name)
        teacher = teachers.resolve(model)
        assert teacher.max_length == (62 if name.startswith("Roberta") else 64)
        model(torch.full((1, teacher.max_length), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, teacher.max_length + 1), 5))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForMaskedLM", "masked_lm"),
        ("BertForTokenClassification", "token_classifier"),
        ("BertForSequenceClassification", "sequence_classifier"),
        ("LlamaForSequenceClassification", "sequence_classifier"),
        ("LlamaForCausalLM", "causal_lm"),
    ],
)
def test_the_task_is_what_the_config_says_and_no_other(
    name: str, task: str, tmp_path: Path
) -> None:
    model, inputs = built(name), batch()
    model.save_pretrained(tmp_path)
    wanted = first_of(inputs[2]) if task == "sequence_classifier" else inputs[1]
    expected = oracle(model, inputs[0], wanted, inputs[2])
    for source in (tmp_path, model):
        for teacher in (teachers.resolve(source), getattr(teachers, task)(source)):
            assert teacher.task.name == task  # type: ignore[attr-defined]
            found = answer(teacher, inputs[0], wanted, inputs[2])
            torch.testing.assert_close(found, expected, **TOLERANCE)
        for other in {"masked_lm", "token_classifier", "causal_lm"} - {task}:
            with pytest.raises(TeacherError, match=f"not a .*use softlabels.teachers.{task}"):
                getattr(teachers, other)(source)


def test_a_config_that_does_not_say_is_a_causal_lm_unless_told(tmp_path: Path) -> None:
    model: Any = built("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"BertForMaskedLM"', '"Mine"')
    (tmp_path / "config.json").write_text(config)
    assert teachers.resolve(tmp_path).task.name == "causal_lm"  # type: ignore[attr-defined]
    inputs = batch()
    found = answer(teachers.masked_lm(tmp_path), *inputs)
    torch.testing.assert_close(found, oracle(model, *inputs), **TOLERANCE)


def test_a_task_that_there_is_none_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match='task is "tts"; it must be one of causal_lm, masked'):
        teachers.pretrained(tmp_path, task="tts")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "a number and no classes"),
        ({"num_labels": 1}, r"a number and no classes \(num_labels 1"),
    ],
)
def test_what_gives_no_distribution_is_refused_before_weights_are_loaded(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = built("BertForSequenceClassification", **changes)
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        with pytest.raises(TeacherError, match=message):
            teachers.resolve(source)


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    causal("Llama").model.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r'no weights for "score.weight".*a whole sequence'):
        teachers.sequence_classifier(tmp_path).identity


def test_logits_of_another_width_than_num_labels_are_refused() -> None:
    model = built("BertForSequenceClassification")
    model.config.num_labels = 7
    ids, _, padding = batch()
    with pytest.raises(TeacherError, match=r"have 5 classes, its config says 7; correct num_label"):
        answer(teachers.resolve(model), ids, first_of(padding), padding)


def test_dropout_is_off_in_the_trial_too() -> None:
    model, inputs = built("BertForMaskedLM", hidden_dropout_prob=0.5), batch()
    found = answer(teachers.resolve(model.train()), *inputs)
    torch.testing.assert_close(found, oracle(model.eval(), *inputs), **TOLERANCE)

"""Masked LMs and classifiers label what plain transformers computes, window by window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.prepare import prepare

LABELS = 5


@pytest.fixture(scope="module")
def wrapped(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small tokenizer, one that puts a token before and one after every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("wrapped")
    tokenizer.save_pretrained(folder)
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", cls_token="<|im_start|>"
    )


def encoder(kind: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        num_labels=LABELS,
        pad_token_id=0,
    )
    return getattr(hf, kind)(config).eval()


def windows(tokenizer: Any, text: str, limit: int) -> list[torch.Tensor]:
    """Every window with the tokens before and after it, cut by hand."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [
        torch.tensor([1, *ids[start : start + limit - 2], 2])
        for start in range(0, len(ids), limit - 2)
    ]


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForTokenClassification"])
def test_every_token_of_every_window_is_labelled_and_no_special_one(
    tmp_path: Path, wrapped: Any, rows: list[dict[str, Any]], kind: str
) -> None:
    model = encoder(kind)
    teacher = sl.teachers.pretrained(model, tokenizer=wrapped)
    made = sl.precompute(
        rows[:12], teacher, tmp_path / "out", key="id", max_length=32, unit_rows=5,
        selection=sl.TopK(4), codec="plain", progress=False,
    )  # fmt: skip
    assert made.plan.hard_label_alignment == "same"
    assert made.plan.preparation.special_tokens == "window"
    for row in rows[:12]:
        cut = windows(wrapped, row["text"], 32)
        assert made.parts(row["id"]) == list(range(len(cut)))
        for part, ids in enumerate(cut):
            found = made.get(row["id"], part=part)
            assert found.mask.tolist() == [False, *[True] * (len(ids) - 2), False]
            with torch.no_grad():
                exact = model(ids[None]).logits[0].log_softmax(-1)[1:-1]
            kept = found.mask
            values, expected = exact.topk(4)
            assert torch.equal(found.ids[kept], expected)
            assert torch.allclose(found.log_probs[kept], values, atol=1e-4)
            hard = found.hard_log_probs[kept]
            if kind == "BertForMaskedLM":
                own = exact.gather(-1, ids[1:-1, None]).squeeze(-1)
                assert torch.allclose(hard, own, atol=1e-4)
            else:
                assert hard.isnan().all()


def test_a_sequence_classifier_labels_each_window_once_at_its_first_token(
    tmp_path: Path, wrapped: Any, rows: list[dict[str, Any]]
) -> None:
    model = encoder("BertForSequenceClassification")
    teacher = sl.teachers.pretrained(model, tokenizer=wrapped)
    made = sl.precompute(
        rows[:12], teacher, tmp_path / "out", key="id", max_length=32, unit_rows=5, progress=False,
        codec="lossless",
    )  # fmt: skip
    assert made.plan.selection.k == LABELS
    for row in rows[:12]:
        for part, ids in enumerate(windows(wrapped, row["text"], 32)):
            found = made.get(row["id"], part=part)
            assert found.mask.tolist() == [True, *[False] * (len(ids) - 1)]
            with torch.no_grad():
                exact = model(ids[None]).logits[0].log_softmax(-1)
            dense = torch.empty(LABELS).scatter_(0, found.ids[0], found.log_probs[0])
            assert torch.allclose(dense, exact, atol=1e-4)
    batch = next(iter(sl.loader(made, batch_size=4)))
    assert batch["soft_labels"].mask.sum(-1).tolist() == [1] * 4
    student = torch.zeros(*batch["input_ids"].shape, LABELS, requires_grad=True)
    loss = sl.losses.kl_divergence(student, batch["soft_labels"])
    assert (loss[:, 0] > 0).all()
    assert not loss[:, 1:].any()


def test_ids_of_a_classifier_are_held_to_its_vocabulary_not_to_its_classes(
    tmp_path: Path, precompute: Any
) -> None:
    teacher = sl.teachers.pretrained(encoder("BertForTokenClassification"))
    rows = [{"id": "a", "ids": [500, 3, 511]}]
    made = precompute(tmp_path / "out", rows, teacher=teacher, selection=None)
    assert made.take([0]).token_ids.tolist() == [500, 3, 511]
    assert made.plan.teacher.vocabulary == 512
    with pytest.raises(sl.errors.LabellingError, match="token id 512 is outside"):
        precompute(tmp_path / "b", [{"id": "a", "ids": [512]}], teacher=teacher, selection=None)


def test_the_assistants_positions_are_refused_where_entries_are_about_their_own_token(
    tmp_path: Path, wrapped: Any
) -> None:
    teacher = sl.teachers.pretrained(encoder("BertForMaskedLM"), tokenizer=wrapped)
    chat = [{"text": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(InputError, match="answers about the tokens themselves"):
        sl.precompute(
            chat, teacher, tmp_path / "out", assistant_only=True, max_length=32, progress=False
        )


TEMPLATES = {
    "none": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    "all": "<|im_start|>{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
    "first": "<|im_start|>{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
}


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_every_window_of_a_chat_has_the_special_tokens_once(
    tmp_path: Path, wrapped: Any, texts: list[str], kind: str, template: str
) -> None:
    import copy

    speaking = copy.deepcopy(wrapped)
    speaking.chat_template = TEMPLATES[template]
    model = encoder(kind)
    chats = [
        [{"role": "user", "content": texts[i][:60]}, {"role": "assistant", "content": texts[i + 1]}]
        for i in range(4)
    ]
    made = sl.precompute(
        [{"chat": chat} for chat in chats], sl.teachers.pretrained(model, tokenizer=speaking),
        tmp_path / "out", column="chat", max_length=32, selection=sl.TopK(4), progress=False,
    )  # fmt: skip
    assert made.plan.preparation.special_tokens == "window"
    several = record = 0
    for number, chat in enumerate(chats):
        text = speaking.apply_chat_template(chat, tokenize=False)
        bare = text.removeprefix("<|im_start|>").removesuffix("<|im_end|>")
        cut = windows(speaking, bare, 32)
        several += len(cut) > 1
        assert made.parts(number) == list(range(len(cut)))
        for part, ids in enumerate(cut):
            assert made.take([record]).token_ids.tolist() == ids.tolist()
            record += 1
            mask = made.get(number, part=part).mask
            if kind == "BertForMaskedLM":
                assert mask.tolist() == [False, *[True] * (len(ids) - 2), False]
            else:
                assert mask.tolist() == [True, *[False] * (len(ids) - 1)]
    assert several > 1


def test_a_set_of_chats_begun_without_special_tokens_is_gone_on_with_as_it_was(
    tmp_path: Path, wrapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    from softlabels.precomputing import settle

    speaking = copy.deepcopy(wrapped)
    speaking.chat_template = TEMPLATES["none"]
    teacher = sl.teachers.pretrained(encoder("BertForMaskedLM"), tokenizer=speaking)

    def label() -> sl.LabelSet:
        chat = [{"chat": [{"role": "user", "content": "what was said"}]}]
        return sl.precompute(
            chat, teacher, tmp_path / "out", column="chat", max_length=32,
            selection=sl.TopK(4), progress=False,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(settle, "_special_tokens", lambda *_: True)
        label()
    assert label().plan.preparation.special_tokens is True


def test_special_tokens_whose_place_cannot_be_told_are_refused() -> None:
    class Deaf:
        """Makes nothing of letters that it does not know."""

        def __call__(self, text: Any, *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
            return {"input_ids": [1, 2] if add_special_tokens else []}

    preparation = Preparation(kind="text", max_length=9, special_tokens="window")
    with pytest.raises(InputError, match="cannot be told"):
        prepare(pa.chunked_array([["x"]]), preparation, tokenizer=Deaf(), classes=9)


def test_a_window_without_room_beside_the_special_tokens_is_refused(
    tmp_path: Path, wrapped: Any, rows: list[dict[str, Any]]
) -> None:
    teacher = sl.teachers.pretrained(encoder("BertForMaskedLM"), tokenizer=wrapped)
    with pytest.raises(InputError, match="leaves 0 tokens beside the tokenizer's special ones"):
        sl.precompute(rows[:2], teacher, tmp_path / "out", max_length=2, progress=False)

"""Answers: the teacher goes on where prompts end, and every token that it wrote is labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.cli.app import run
from softlabels.errors import InputError, LabellingError, PlanMismatchError
from softlabels.verifying.verify import repair, verify

NEW = 12
Row = dict[str, Any]


@pytest.fixture(scope="module")
def prompts(texts: list[str]) -> list[Row]:
    """Twenty questions of unequal length, as text, as a chat and as token ids."""
    return [
        {
            "id": f"q{i}",
            "text": text[: 20 + 7 * i],
            "chat": [{"role": "user", "content": text[:30]}],
        }
        for i, text in enumerate(texts[:20])
    ]


def answer(prompts: list[Row], teacher: Any, out: Path, **options: Any) -> sl.LabelSet:
    settings: dict[str, Any] = {
        "answers": sl.Answers(max_new_tokens=NEW),
        "key": "id",
        "selection": sl.TopK(16),
        "codec": "plain",
        "max_length": 128,
        "unit_rows": 8,
        "batch_tokens": 256,
    }
    return sl.precompute(prompts, teacher, out, **(settings | options))


def written(model: Any, ids: list[int], ends: tuple[int, ...] = (2,)) -> list[int]:
    """The likeliest tokens, one after another, from the whole sequence each time."""
    found: list[int] = []
    while len(found) < NEW and not (found and found[-1] in ends):
        logits = model(input_ids=torch.tensor([ids + found])).logits[0, -1]
        found.append(int(logits.argmax()))
    return found


@pytest.mark.parametrize("column", ["text", "chat", "ids"])
def test_answers_are_what_the_teacher_writes_and_labels_what_it_believed(
    prompts: list[Row], teacher_dir: Path, model: Any, tokenizer: Any, tmp_path: Path, column: str
) -> None:
    def ids_of(row: Row) -> list[int]:
        if column != "chat":
            return list(tokenizer(row["text"])["input_ids"])
        chat = tokenizer.apply_chat_template(
            row["chat"], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(chat, add_special_tokens=False)["input_ids"])

    rows = [{**row, "ids": ids_of(row)} for row in prompts]
    labels = answer(rows, teacher_dir, tmp_path / "a", column=column)
    assert len(labels) == 20
    lengths = set()
    for number, row in enumerate(rows):
        records = labels.take([number])
        expected = row["ids"] + written(model, row["ids"])
        assert records.token_ids is not None
        assert records.token_ids.tolist() == expected
        lengths.add(len(expected) - len(row["ids"]))
        predicted = range(len(row["ids"]) - 1, len(expected) - 1)
        assert records.wanted.nonzero()[0].tolist() == list(predicted)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([expected])).logits[0, list(predicted)]
        exact = logits.log_softmax(-1)
        found = records.labels
        assert isinstance(found, sl.SoftLabels)
        assert torch.allclose(exact.gather(-1, found.ids), found.log_probs, atol=1e-5)
        hard = exact.gather(-1, torch.tensor(expected[len(row["ids"]) :])[:, None])[:, 0]
        assert found.hard_log_probs is not None
        assert torch.allclose(hard, found.hard_log_probs, atol=1e-5)
    assert max(lengths) == NEW
    assert not verify(tmp_path / "a").findings


def test_an_answer_ends_with_the_first_token_that_ends_it(
    prompts: list[Row], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ends = tuple(range(2, 200, 3))
    kept = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(ends)
    try:
        labels = answer(prompts, sl.teachers.pretrained(model, tokenizer=tokenizer), tmp_path / "a")
    finally:
        model.generation_config.eos_token_id = kept
    short = 0
    for number, row in enumerate(prompts):
        ids = tokenizer(row["text"])["input_ids"]
        found = labels.take([number]).token_ids
        assert found is not None
        assert found.tolist() == ids + written(model, ids, ends)
        short += len(found) - len(ids) < NEW
    assert short > 3


def test_drawn_answers_are_the_same_again_and_others_with_another_seed(
    prompts: list[Row], teacher_dir: Path, tmp_path: Path
) -> None:
    def ids(out: str, **settings: Any) -> list[Any]:
        drawn = sl.Answers(max_new_tokens=NEW, temperature=1.0, **settings)
        before = torch.random.get_rng_state()
        found = answer(prompts, teacher_dir, tmp_path / out, answers=drawn)
        assert torch.equal(torch.random.get_rng_state(), before)
        return [found.take([n]).token_ids.tolist() for n in range(len(found))]  # type: ignore[union-attr]

    first = ids("a")
    assert ids("b") == first
    assert ids("c", seed=1) != first
    assert ids("d", top_p=1e-6) == [
        found.tolist()
        for number in range(20)
        if (found := answer(prompts, teacher_dir, tmp_path / "e").take([number]).token_ids)
        is not None
    ]


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_and_in_two_processes(
    prompts: list[Row], teacher_dir: Path, tmp_path: Path
) -> None:
    whole = answer(prompts, teacher_dir, tmp_path / "a")
    assert [receipt.rows for receipt in whole.receipts] == [8, 8, 4]
    digests = whole.receipts.texts("sha256")
    (tmp_path / "a" / whole.receipts[1].path).unlink()
    assert repair(tmp_path / "a", verify(tmp_path / "a"))
    assert answer(prompts, teacher_dir, tmp_path / "a").receipts.texts("sha256") == digests
    both = answer(prompts, teacher_dir, tmp_path / "b", workers=2)
    assert both.receipts.texts("sha256") == digests
    with pytest.raises(PlanMismatchError, match=r"preparation\.answers\.max_new_tokens was 12"):
        answer(prompts, teacher_dir, tmp_path / "a", answers=sl.Answers(max_new_tokens=5))


def test_a_prompt_that_cannot_be_answered_costs_no_other(
    prompts: list[Row], teacher_dir: Path, tokenizer: Any, tmp_path: Path
) -> None:
    teacher = sl.teachers.pretrained(teacher_dir)
    answers = teacher.answers  # type: ignore[attr-defined]
    bad = tokenizer(prompts[5]["text"])["input_ids"][-1]

    def wrong(input_ids: torch.Tensor, **options: Any) -> Any:
        if (input_ids[:, -1] == bad).any():
            raise RuntimeError("no such token")
        return answers(input_ids, **options)

    teacher.answers = wrong  # type: ignore[attr-defined]
    faulty = {r["id"] for r in prompts if tokenizer(r["text"])["input_ids"][-1] == bad}
    rows = [*prompts, {"id": "long", "text": "word " * 200}, {"id": "none", "text": ""}]
    with pytest.raises(LabellingError, match="the teacher raised RuntimeError: no such token"):
        answer(rows, teacher, tmp_path / "a")
    labels = answer(rows, teacher, tmp_path / "b", on_error="skip")
    assert labels.rejected == faulty | {"long", "none"}
    assert set(labels.identities["key"].to_pylist()) == {r["id"] for r in prompts} - faulty
    assert not verify(tmp_path / "b").findings


def test_answers_never_pass_max_length(
    prompts: list[Row], teacher_dir: Path, tokenizer: Any, tmp_path: Path
) -> None:
    sizes = [len(tokenizer(row["text"])["input_ids"]) for row in prompts]
    most = sorted(sizes)[12]
    labels = answer(prompts, teacher_dir, tmp_path / "a", max_length=most)
    assert labels.rejected == {
        row["id"] for row, size in zip(prompts, sizes, strict=True) if size >= most
    }
    lengths = labels.columns(["length"])["length"].to_pylist()
    assert lengths == [min(most, size + NEW) for size in sizes if size < most]


def test_a_batch_has_prompts_and_answers_and_joins_the_data(
    prompts: list[Row], teacher_dir: Path, tmp_path: Path
) -> None:
    labels = answer(prompts, teacher_dir, tmp_path / "a")
    rows = [{**row, "weight": float(i)} for i, row in enumerate(prompts)]
    seen = 0
    for batch in sl.loader(labels, rows, batch_size=4, seed=0):
        y = batch["soft_labels"]
        assert batch["weight"].tolist() == [float(key[1:]) for key in batch["key"]]
        logits = torch.randn(*batch["input_ids"].shape, 512, requires_grad=True)
        hard = sl.losses.next_tokens(batch["input_ids"], batch["attention_mask"])
        loss = sl.losses.kl_divergence(logits, y, temperature=2.0)
        text = sl.losses.cross_entropy(logits, hard)
        sl.losses.reduce(loss + text, y.mask).backward()
        seen += int(y.mask.sum())
    assert seen == labels.totals.positions
    with pytest.raises(InputError, match="no answer to train on"):
        sl.loader(labels, rows, on_missing="hard-label")
    other = [{**row, "text": row["text"] + "!"} for row in rows]
    with pytest.raises(sl.errors.JoinError):
        next(iter(sl.loader(labels, other)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answers": 12}, "expected softlabels.Answers"),
        ({"store_inputs": False}, "leave out store_inputs"),
        ({"overlap": 3}, "prompts are not cut"),
        ({"on_long": "truncate"}, "prompts are not cut"),
        ({"column": "chat", "assistant_only": True}, "leave out assistant_only"),
    ],
)
def test_what_does_not_go_with_answers_is_refused(
    prompts: list[Row], teacher_dir: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        answer(prompts, teacher_dir, tmp_path / "a", **options)


def test_only_teachers_that_write_are_asked(
    prompts: list[Row], tmp_path: Path, tokenizer: Any
) -> None:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, 512),
        classes=512,
        tokenizer=tokenizer,
        name="zeros",
        version="1",
    )
    with pytest.raises(InputError, match="answers are written by causal language models"):
        answer(prompts, teacher, tmp_path / "a")


def test_plan_answers_a_sample(prompts: list[Row], teacher_dir: Path) -> None:
    found = sl.plan(
        prompts,
        teacher_dir,
        answers=sl.Answers(max_new_tokens=NEW),
        key="id",
        sample=10,
        max_length=128,
    )
    assert found.positions.mean == pytest.approx(20 * NEW, rel=0.3)
    assert found.tokens.mean > found.positions.mean


def test_the_commands_label_and_show_answers(
    prompts: list[Row], teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"id": r["id"], "text": r["text"]}) + "\n" for r in prompts))
    out = tmp_path / "set"
    command = ["precompute", "--teacher", str(teacher_dir), "--data", str(data), "--key", "id",
               "--max-length", "128"]  # fmt: skip
    assert run([*command, "--out", str(out), "--answers", "6", "--k", "8", "--quiet"]) == 0
    assert run(["info", str(out)]) == 0
    assert "the teacher's answers, at most 6 tokens, the likeliest tokens" in " ".join(
        capsys.readouterr().out.split()
    )
    assert run(["show", str(out), "q3"]) == 0
    assert "the teacher's answers, at most 6 tokens" in (out / "README.md").read_text()
    assert run([*command, "--out", str(tmp_path / "b"), "--answer-seed", "3"]) != 0
    assert "--answers" in capsys.readouterr().err
    assert run([*command, "--out", str(tmp_path / "b"), "--answers", "0"]) != 0
    assert "max_new_tokens" in capsys.readouterr().err

"""What is stored is what the teacher computes: against plain float32 log_softmax."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from same_set import contents

import softlabels as sl

# A few units in the last place of float32 values around 20 (2e-6 each). The oracle is the float64
# log_softmax of the model's own float32 logits: torch's float32 log_softmax is itself up to 2e-5
# away from that at 49,152 classes.
TOLERANCE = 1e-5


def check_against_model(
    labels: sl.LabelSet, model: Any, rows: dict[str, str], tokenizer: Any
) -> None:
    """Every stored number of every record, against the whole model on the whole sample's window."""
    for number in range(len(labels)):
        identity = labels.identities.slice(number, 1).to_pylist()[0]
        found = labels[number]
        key, start = identity["key"], identity["source_start"]
        sample = tokenizer(rows[key])["input_ids"]
        tokens = sample[start : start + len(found)]
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].double()
        dense = torch.log_softmax(logits, -1)
        kept = dense.gather(-1, found.ids)
        assert close(kept, found.log_probs)
        left_out = dense.scatter(-1, found.ids, -torch.inf).max(-1).values
        assert (left_out <= kept.min(-1).values + TOLERANCE).all()
        plain = torch.log_softmax(logits.float(), -1)
        plain_error = (plain - dense).abs().max()
        assert (plain.gather(-1, found.ids) - found.log_probs).abs().max() < plain_error + TOLERANCE
        assert close(logits.logsumexp(-1), found.logsumexp)
        for place, temperature in enumerate(labels.plan.temperatures):
            cool = torch.log_softmax(logits / temperature, -1).scatter(-1, found.ids, -torch.inf)
            tail = torch.logsumexp(cool, -1)
            assert close(tail, found.log_tails[:, place])
        following = torch.tensor(sample[start + 1 : start + 1 + len(found)])
        hard = dense[: len(following)].gather(-1, following[:, None])[:, 0]
        assert close(hard, found.hard_log_probs[: len(following)])
        assert torch.isnan(found.hard_log_probs[len(following) :]).all()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=0, atol=TOLERANCE)


def perplexity(labels: sl.LabelSet, *, shift: int = 0) -> float:
    """exp of the mean of −log p over stored hard labels; `shift` reads a neighbour's instead."""
    stored = torch.cat([r.hard_log_probs.roll(shift) for r in labels[:]])
    return math.exp(-float(stored[~stored.isnan()].double().mean()))


def own_perplexity(model: Any, rows: dict[str, str], tokenizer: Any) -> float:
    """The model's own loss over whole samples of at most its window."""
    total = count = 0.0
    for text in rows.values():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        if ids.shape[1] > 1:
            with torch.no_grad():
                loss = model(ids, labels=ids).loss.double().item()
            total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return math.exp(total / count)


def test_stored_values_equal_plain_log_softmax(
    finished_set: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    texts = {row["id"]: row["text"] for row in rows}
    check_against_model(sl.LabelSet.open(finished_set), model, texts, tokenizer)


def test_perplexity_from_stored_labels_is_the_models_own(
    tmp_path: Path, teacher_dir: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    short = [row for row in rows if len(tokenizer(row["text"])["input_ids"]) <= 256]
    labels = sl.precompute(
        short, teacher_dir, tmp_path / "set", selection=sl.TopK(4), key="id", max_length=256
    )
    own = own_perplexity(model, {row["id"]: row["text"] for row in short}, tokenizer)
    assert perplexity(labels) == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("shift", [1, -1])
def test_logits_compared_one_position_off_are_caught(
    finished_set: Path, model: Any, shift: int
) -> None:
    labels = sl.LabelSet.open(finished_set)
    tokens, y = labels.take([3]).token_ids, labels[3]
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0]
    right = sl.losses.kl_divergence(logits, y).abs().max()
    wrong = sl.losses.kl_divergence(logits.roll(shift, 0), y).mean()
    assert right < 1e-5
    assert wrong > 0.1


def test_the_last_position_of_a_window_knows_the_next_token(
    finished_set: Path, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    labels = sl.LabelSet.open(finished_set)
    first = labels.get("doc-000", part=0)
    last = labels.get("doc-000", part=labels.parts("doc-000")[-1])
    assert not first.hard_log_probs[-1].isnan()
    assert last.hard_log_probs[-1].isnan()


def test_padding_and_batching_do_not_change_what_is_stored(
    tmp_path: Path, teacher_dir: Path, finished_set: Path, rows: list[dict[str, Any]]
) -> None:
    one_by_one = sl.precompute(
        rows, teacher_dir, tmp_path / "set", selection=sl.TopK(16), key="id", max_length=64,
        unit_rows=16, batch_tokens=1, codec="plain",
    )  # fmt: skip
    for ours, theirs in zip(one_by_one[:], sl.LabelSet.open(finished_set)[:], strict=True):
        assert close(ours.log_probs, theirs.log_probs)
        assert close(ours.logsumexp, theirs.logsumexp)


def test_the_same_plan_gives_the_same_bytes(
    tmp_path: Path, teacher_dir: Path, finished_set: Path, rows: list[dict[str, Any]]
) -> None:
    sl.precompute(
        rows, teacher_dir, tmp_path / "set", selection=sl.TopK(16), key="id", max_length=64,
        unit_rows=16, batch_tokens=512, codec="plain",
    )  # fmt: skip
    found, expected = contents(tmp_path / "set"), contents(finished_set)
    assert found.keys() == expected.keys()
    for name, data in found.items():
        assert data == expected[name], name


def test_whole_logits_of_a_batch_are_never_made(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import softlabels.teachers.transformers as engine

    monkeypatch.setattr(engine, "_CHUNK_BYTES", {"cpu": 4 * 512 * 7})  # seven rows
    teacher = sl.teachers.causal_lm(teacher_dir)
    largest = 0

    def spy(_: Any, __: Any, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() // output.shape[-1])

    teacher.model.get_output_embeddings().register_forward_hook(spy)
    sl.precompute(rows, teacher, tmp_path / "set", selection=sl.TopK(4), key="id", max_length=64)
    assert largest == 8  # the eight tokens of the probe at the start; then seven at a time


@pytest.mark.slow
def test_a_real_135m_teacher_is_stored_faithfully(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.path.insert(0, str(Path(__file__).parents[2] / "pipelines"))
    from smollm2 import fetch

    folder = fetch()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {name: topics[name] for name in ("assert", "break", "while", "lambda")}
    rows = [{"id": name, "text": text} for name, text in texts.items()]
    # One record a batch: a matrix product's last bits depend on what else is in the batch.
    labels = sl.precompute(
        rows, folder, tmp_path / "set", key="id", max_length=512, batch_tokens=1, codec="lossless"
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert labels.plan.teacher.classes == 49_152
    check_against_model(labels, model, texts, tokenizer)
    assert perplexity(labels) == pytest.approx(own_perplexity(model, texts, tokenizer), rel=1e-3)

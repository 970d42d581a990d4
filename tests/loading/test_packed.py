"""Packed rows: each record as it is alone, and cut records as if they had been that short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError
from softlabels.loading.collate import block_causal_mask

Precompute = Callable[..., sl.LabelSet]
Batch = dict[str, Any]
TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "mask")


def records(batches: Any) -> dict[tuple[Any, int], dict[str, Any]]:
    """What each record has, from batches with a row each or several in a row."""
    found = {}
    for batch in batches:
        hard = sl.losses.next_tokens(
            batch["input_ids"],
            batch["attention_mask"],
            next_ids=batch["next_ids"],
            position_ids=batch.get("position_ids"),
        )
        pairs = iter(zip(batch["key"], batch["part"].tolist(), strict=True))
        for row in range(len(batch["input_ids"])):
            segments = batch.get("segment_ids", batch["attention_mask"])[row]
            for segment in range(1, int(segments.max()) + 1):
                at = segments == segment
                y = batch["soft_labels"][row][at]
                values = {name: getattr(y, name).tolist() for name in TENSORS}
                values |= {"tokens": batch["input_ids"][row][at].tolist()}
                found[next(pairs)] = values | {"hard": hard[row][at].tolist()}
        assert next(pairs, None) is None
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return repr(one) == repr(other)  # NaN is no label, and is not itself


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("row_length", [6, 7, 20, 100])
def test_a_packed_record_is_what_it_is_alone(
    labels: sl.LabelSet, samples: list[Any], seed: int | None, row_length: int
) -> None:
    expected = records(sl.loader(labels))
    loader = sl.loader(labels, samples, batch_size=3, seed=seed, row_length=row_length)
    batches = list(loader)
    assert len(batches) == len(loader)
    packed = records(batches)
    assert packed.keys() == expected.keys()
    assert all(same(packed[key], expected[key]) for key in expected)
    for batch in batches:
        assert batch["input_ids"].shape[1] == batch["soft_labels"].shape[1] == row_length
        assert batch["note"] == [f"n{key[1:]}" for key in batch["key"]]


def test_position_and_segment_ids_and_cu_seqlens_say_where_records_begin(
    labels: sl.LabelSet,
) -> None:
    for batch in sl.loader(labels, batch_size=2, row_length=14, pad_id=9):
        starts, ends = [], []
        flat = batch["segment_ids"].flatten().tolist()
        for place, segment in enumerate(flat):
            if place % 14 == 0 or segment != flat[place - 1]:
                starts.append(place)
            ends.append(starts[-1])
        assert batch["cu_seqlens"].tolist() == [*starts, len(flat)]
        assert batch["cu_seqlens"].dtype == torch.int32
        padding = batch["segment_ids"] == 0
        assert torch.equal(padding, batch["attention_mask"] == 0)
        assert bool((batch["input_ids"][padding] == 9).all())
        positions = torch.arange(len(flat)) - torch.tensor(ends)
        expected = torch.where(padding, 0, positions.view_as(padding))
        assert torch.equal(batch["position_ids"], expected)


@torch.no_grad()
def test_a_student_sees_in_a_packed_row_what_it_sees_alone(finished_set: Path, model: Any) -> None:
    labels = sl.LabelSet.open(finished_set)
    alone = {}
    for batch in sl.loader(labels, batch_size=1):
        logits = model(batch["input_ids"]).logits[0]
        alone[batch["key"][0], int(batch["part"][0])] = logits
    for batch in sl.loader(labels, batch_size=2, row_length=128, seed=0):
        logits = model(
            batch["input_ids"],
            attention_mask=block_causal_mask(batch["segment_ids"]),
            position_ids=batch["position_ids"],
        ).logits
        pairs = iter(zip(batch["key"], batch["part"].tolist(), strict=True))
        for row, segments in enumerate(batch["segment_ids"]):
            for segment in range(1, int(segments.max()) + 1):
                found, expected = logits[row][segments == segment], alone[next(pairs)]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 100])
@pytest.mark.parametrize("options", [{}, {"row_length": 10}, {"by_length": True}])
def test_a_record_is_cut_with_its_labels_and_knows_the_token_it_lost(
    labels: sl.LabelSet, length: int, options: dict[str, Any]
) -> None:
    whole = records(sl.loader(labels))
    cut = records(sl.loader(labels, max_length=length, batch_size=3, **options))
    for key, values in whole.items():
        expected = {name: value[:length] for name, value in values.items()}
        assert same(cut[key], expected)


@pytest.mark.parametrize("kind", [lambda rows: None, lambda rows: rows, iter])
def test_a_record_that_is_longer_than_a_row_is_an_error_that_names_it(
    labels: sl.LabelSet, samples: list[Any], kind: Callable[[list[Any]], Any]
) -> None:
    words = r'"s1", part 0 .* 6 tokens, .* row_length=5; .*max_length=5'
    with pytest.raises(InputError, match=words):
        list(sl.loader(labels, kind(samples), row_length=5))
    cut = records(sl.loader(labels, kind(samples), row_length=5, max_length=5))
    assert cut.keys() == records(sl.loader(labels)).keys()
    assert max(len(values["tokens"]) for values in cut.values()) == 5


def test_only_records_that_come_must_fit_into_a_row(labels: sl.LabelSet) -> None:
    lengths = labels.columns(["length"])["length"].to_pylist()
    short = [number for number, length in enumerate(lengths) if length <= 3]
    assert len(records(sl.loader(labels, row_length=3, records=short))) == len(short)


def test_who_sees_whole_records_sees_no_other(labels: sl.LabelSet) -> None:
    for batch in sl.loader(labels, batch_size=2, row_length=14):
        segments = batch["segment_ids"]
        same = segments[:, :, None] == segments[:, None, :]
        whole = block_causal_mask(segments, causal=False)
        assert torch.equal(whole, same[:, None])
        before = torch.ones(14, 14, dtype=torch.bool).tril()
        assert torch.equal(block_causal_mask(segments), whole & before)


def test_what_does_not_go_together_is_refused(labels: sl.LabelSet, samples: list[Any]) -> None:
    for options in ({"max_length": 0}, {"row_length": 0}, {"row_length": 9, "by_length": True}):
        with pytest.raises(InputError, match="length"):
            sl.loader(labels, **options)
    for options in ({"row_length": 9}, {"by_length": True}):
        with pytest.raises(InputError, match="without labels"):
            sl.loader(labels, samples, on_missing="hard-label", **options)

"""Batches depend on the unit and the plan alone, and hold every token once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.prepare import prepare
from softlabels.precomputing.batches import bucketed, packed, padded, rows_of_many
from softlabels.precomputing.label import Labeller

LENGTHS = st.lists(st.integers(1, 40) | st.integers(1, 900), max_size=30)


def cost(lengths: list[int], batches: list[list[int]]) -> int:
    """Padded tokens, and 256 a batch."""
    return sum(256 + len(batch) * max(lengths[i] for i in batch) for batch in batches)


def least_cost(lengths: list[int], batch_tokens: int) -> int:
    """Of every way to cut the records, longest first, into batches that fit."""
    ordered = sorted(lengths, reverse=True)

    @cache
    def best(first: int) -> int:
        if first == len(ordered):
            return 0
        fitting = range(1, max(1, batch_tokens // ordered[first]) + 1)
        return 256 + min(
            rows * ordered[first] + best(first + rows)
            for rows in fitting
            if first + rows <= len(ordered)
        )

    return best(0)


@given(LENGTHS, st.integers(1, 2000))
def test_buckets_cost_the_least_that_is_possible(lengths: list[int], batch_tokens: int) -> None:
    found = [b.tolist() for b in bucketed(np.asarray(lengths, np.int64), batch_tokens)]
    assert cost(lengths, found) == least_cost(lengths, batch_tokens)
    together = [record for batch in found for record in batch]
    assert together == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    assert sorted(record for batch in found for record in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens


def test_a_record_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert [b.tolist() for b in bucketed(np.asarray([3, 9, 3]), 6)] == [[1], [0, 2]]
    assert [b.tolist() for b in bucketed(np.asarray([3, 3]), 1)] == [[0], [1]]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8),
       st.data())  # fmt: skip
def test_padding_holds_each_records_tokens_and_what_is_wanted(
    samples: list[list[int]], data: st.DataObject
) -> None:
    limit = data.draw(st.integers(2, 12))
    overlap = data.draw(st.integers(0, limit - 1))
    preparation = Preparation(kind="input_ids", max_length=limit, overlap=overlap)
    windows = prepare(pa.chunked_array([samples]), preparation, tokenizer=None, classes=10)
    records = data.draw(st.permutations(range(len(windows))))[: data.draw(st.integers(1, 5))]
    ids, wanted, padding = padded(windows, np.asarray(records, np.int64))
    width = max(int(windows.lengths[record]) for record in records)
    assert ids.shape == wanted.shape == padding.shape == (len(records), width)
    assert (ids.dtype, wanted.dtype, padding.dtype) == (torch.int64, torch.bool, torch.bool)
    for row, record in enumerate(records):
        sample, start = samples[windows.rows[record]], int(windows.starts[record])
        tokens = sample[start : start + limit]
        rest = width - len(tokens)
        assert ids[row].tolist() == tokens + [0] * rest
        assert padding[row].tolist() == [False] * len(tokens) + [True] * rest
        context = overlap if windows.parts[record] else 0
        expected = [place >= context for place in range(len(tokens))] + [False] * rest
        assert wanted[row].tolist() == expected


def batches_of(run: Callable[..., sl.LabelSet], *args: Any, **options: Any) -> list[Any]:
    teacher = TableTeacher()
    run(*args, teacher=teacher, **options)
    return [batch.tolist() for batch in teacher.batches]


def test_batches_depend_on_the_unit_and_the_plan_alone(
    run: Callable[..., sl.LabelSet], id_rows: list[dict[str, Any]], tmp_path: Any
) -> None:
    whole = batches_of(run, out=tmp_path / "whole")
    assert batches_of(run, iter(id_rows), out=tmp_path / "stream") == whole
    assert len(whole) == 2  # one a unit: nothing is carried from a unit into the next
    (tmp_path / "whole" / "data" / "train-00001.parquet").unlink()
    assert batches_of(run, out=tmp_path / "whole") == whole[1:]


def test_little_padding_is_computed(run: Callable[..., sl.LabelSet], tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [{"id": str(i), "ids": [1] * int(n)} for i, n in enumerate(rng.integers(1, 64, 200))]
    computed = sum(
        len(batch) * len(batch[0])
        for batch in batches_of(run, rows, max_length=64, unit_rows=200, batch_tokens=256)
    )
    tokens = sum(len(row["ids"]) for row in rows)
    assert computed < 1.1 * tokens  # in the order of the rows it is 1.7 times as many


@given(st.lists(st.integers(1, 20), max_size=30))
def test_rows_of_many_hold_every_record_once_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = rows_of_many(np.asarray(lengths, np.int64), 20)
    held = [sum(lengths[record] for record in row) for row in rows]
    assert sorted(record for row in rows for record in row) == list(range(len(lengths)))
    assert all(total <= 20 for total in held)
    # Of any two rows, one is more than half full, or they would be one.
    assert sum(total <= 10 for total in held) <= 1


def test_packed_rows_hold_records_one_after_another_with_their_own_places() -> None:
    samples = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 1]]
    preparation = Preparation(kind="input_ids", max_length=4)
    windows = prepare(pa.chunked_array([samples]), preparation, tokenizer=None, classes=10)
    ids, wanted, padding, places = packed(windows, [np.asarray([3, 2]), np.asarray([0])])
    assert ids.tolist() == [[7, 8, 9, 1, 6], [1, 2, 3, 0, 0]]
    assert places.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert padding.tolist() == [[False] * 5, [False] * 3 + [True] * 2]
    assert torch.equal(wanted, ~padding)


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_packed_labels_are_those_of_records_alone(
    tmp_path: Any, teacher_dir: Any, rows: list[dict[str, Any]], batch_tokens: int
) -> None:
    settings: dict[str, Any] = {
        **{"key": "id", "max_length": 64, "unit_rows": 16, "batch_tokens": batch_tokens},
        **{"selection": sl.TopK(16), "codec": "plain", "progress": False},
    }
    apart = sl.precompute(rows, teacher_dir, tmp_path / "apart", **settings)
    together = sl.precompute(rows, teacher_dir, tmp_path / "packed", packing=True, **settings)
    assert together.plan.packing
    for ours, theirs in zip(together, apart, strict=True):
        assert torch.allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
        assert torch.allclose(ours.logsumexp, theirs.logsumexp, atol=1e-4)
        assert (ours.ids == theirs.ids).float().mean() > 0.99  # others are ties
        hard = ~theirs.hard_log_probs.isnan()
        assert torch.allclose(ours.hard_log_probs[hard], theirs.hard_log_probs[hard], atol=1e-4)


def test_packed_rows_are_no_longer_than_a_batch_may_be(
    tmp_path: Any, teacher_dir: Any, rows: list[dict[str, Any]]
) -> None:
    teacher: Any = sl.teachers.causal_lm(teacher_dir)
    made = sl.precompute(
        rows[1:9], teacher, tmp_path / "out", key="id", packing=True, max_length=256,
        batch_tokens=100, unit_rows=8, selection=sl.TopK(4), codec="plain", progress=False,
    )  # fmt: skip
    label = Labeller(teacher, sl.TopK(4), made.plan, "raise")
    column = pa.chunked_array([[row["text"] for row in rows[1:9]]])
    windows = prepare(column, made.plan.preparation, tokenizer=teacher.tokenizer, classes=512)
    longest = int(windows.lengths.max())
    for _, (ids, *_) in label._batches(windows, 100):
        assert ids.numel() <= max(100, longest)


def test_a_teacher_that_cannot_keep_records_apart_is_refused(
    run: Callable[..., sl.LabelSet], tmp_path: Any
) -> None:
    with pytest.raises(InputError, match="packing needs a teacher that can keep"):
        run(out=tmp_path / "out", packing=True)


def test_an_unwritable_folder_is_refused_before_a_teacher_that_might_pack_is_loaded(
    tmp_path: Any, teacher_dir: Any, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "file").write_text("")
    teacher: Any = sl.teachers.causal_lm(teacher_dir)
    with pytest.raises(InputError, match="a part of the path is a file"):
        sl.precompute(
            rows, teacher, tmp_path / "file" / "set", packing=True, max_length=64, progress=False
        )
    assert "model" not in vars(teacher)


def test_a_causal_lm_that_turns_out_not_to_pack_is_refused_in_the_same_words(
    tmp_path: Any, teacher_dir: Any, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher: Any = sl.teachers.causal_lm(teacher_dir)
    monkeypatch.setattr(type(teacher), "can_pack", property(lambda _: False))
    for label in (sl.plan, lambda *args, **options: sl.precompute(*args, tmp_path, **options)):
        with pytest.raises(InputError, match="packing needs a teacher that can keep"):
            label(rows, teacher, packing=True, max_length=64, progress=False)

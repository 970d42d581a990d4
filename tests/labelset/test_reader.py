"""LabelSet: every way to reach a record gives the same labels, and nothing else is reached."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import CorruptShardError, JoinError, LabelSetError
from softlabels.format import keys
from softlabels.labelset import held as in_memory
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]
KEYS = [("s0", 0), ("s1", 0), ("s1", 1), ("s1", 2), *((f"s{i}", 0) for i in range(2, 6))]
TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "mask")


def bits(labels: sl.SoftLabels) -> list[bytes | None]:
    found = [getattr(labels, name) for name in TENSORS]
    return [None if tensor is None else tensor.numpy().tobytes() for tensor in found]


def stored(root: Path) -> list[dict[str, Any]]:
    """The slow oracle: rows of the shards as Arrow reads them."""
    return [row for f in sorted(root.glob("data/*")) for row in pq.read_table(f).to_pylist()]


def check(labels: sl.SoftLabels, row: dict[str, Any]) -> None:
    length, k = row["length"], len(row["ids"]) // row["positions"]
    spans = row["label_spans"] or [{"start": 0, "length": length}]
    wanted = [t for s in spans for t in range(s["start"], s["start"] + s["length"])]
    assert labels.mask is not None
    assert labels.mask.tolist() == [t in wanted for t in range(length)]
    assert labels.ids.shape == (length, k)
    assert labels.ids[wanted].flatten().tolist() == row["ids"]
    assert labels.log_probs[wanted].flatten().tolist() == row["log_probs"]
    assert labels.logsumexp is not None
    assert labels.logsumexp[wanted].tolist() == row["logsumexp"]
    assert labels.log_tails is not None
    assert labels.log_tails[wanted].flatten().tolist() == row["log_tails"]


@pytest.fixture(scope="module")
def labels(pristine: Path) -> sl.LabelSet:
    return sl.LabelSet.open(pristine)


def test_records_hold_what_the_shards_hold(labels: sl.LabelSet, pristine: Path) -> None:
    rows = stored(pristine)
    assert len(labels) == len(rows) == 8
    assert [(row["key"], row["part"]) for row in rows] == KEYS
    for number, row in enumerate(rows):
        check(labels[number], row)


def test_a_number_counts_from_the_end_when_negative(labels: sl.LabelSet) -> None:
    for number in range(8):
        assert bits(labels[number - 8]) == bits(labels[number])
    for number in (8, -9, 1 << 40):
        with pytest.raises(IndexError, match="8 records"):
            labels[number]


optional = st.none() | st.integers(-10, 10)


@given(st.builds(slice, optional, optional, optional.filter(lambda step: step != 0)))
@settings(deadline=None, max_examples=50)
def test_slices_are_those_of_a_list(labels: sl.LabelSet, part: slice) -> None:
    assert list(map(bits, labels[part])) == list(map(bits, list(labels)))[part]


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.tensor, lambda n: map(int, n)])
def test_lists_of_numbers_of_any_kind(labels: sl.LabelSet, kind: Any) -> None:
    numbers = kind([3, -1, 3, 0])
    if isinstance(numbers, map):
        numbers = np.fromiter(numbers, np.int32)
    assert list(map(bits, labels[numbers])) == [bits(labels[i]) for i in (3, 7, 3, 0)]
    assert labels[[]] == []


@pytest.mark.parametrize("one", [np.int64(2), np.uint8(2), torch.tensor(2), np.asarray(2)])
def test_one_number_of_any_kind(labels: sl.LabelSet, one: Any) -> None:
    assert bits(labels[one]) == bits(labels[2])


@pytest.mark.parametrize("index", ["s1", "12", 1.0, [1.5], [True] * 8, True, None, ["s1"]])
def test_what_is_no_number_is_refused_and_not_read_as_one(labels: sl.LabelSet, index: Any) -> None:
    with pytest.raises(TypeError, match=r"record number.*labels\.get"):
        labels[index]


def test_a_record_is_the_caller_s_own(pristine: Path) -> None:
    labels = sl.LabelSet.open(pristine)
    before = bits(labels[1])
    for name in TENSORS:
        getattr(labels[1], name).zero_()
    assert bits(labels[1]) == before
    for one in (labels[1], labels[:][1], labels[[1, 2]][0]):
        assert one.ids.untyped_storage().nbytes() == one.ids.nbytes


def test_a_record_is_found_by_key_part_and_view(labels: sl.LabelSet) -> None:
    for number, (key, part) in enumerate(KEYS):
        assert labels.index(key, part=part) == number
        assert bits(labels.get(key, part=part)) == bits(labels[number])
    assert labels.parts("s1") == [0, 1, 2]
    assert labels.parts("s2") == [0]
    assert labels.parts("s9") == []


@pytest.mark.parametrize("where", [{"part": 3}, {"part": -1}, {"view": 1}])
def test_a_part_or_view_that_is_not_there(labels: sl.LabelSet, where: dict[str, int]) -> None:
    with pytest.raises(JoinError, match=r'"s1" has no .* it has parts 0, 1, 2'):
        labels.get("s1", **where)


@pytest.mark.parametrize("key", ["s9", "", "s1\x1b[2J", "\ud800", 1, None, b"s1"])
def test_a_key_that_is_not_there_is_a_key_error_that_names_it(
    labels: sl.LabelSet, key: Any
) -> None:
    with pytest.raises(KeyError) as error:
        labels.get(key)
    assert isinstance(error.value, JoinError)
    assert "string" in str(error.value)
    assert "\x1b" not in str(error.value)
    if key == "s9":
        assert '"s9"' in str(error.value)
        assert '"s0"' in str(error.value)  # what keys look like here


def test_integer_keys(tmp_path: Path, precompute: Precompute) -> None:
    keys = [7, -1, 2**63 - 1, -(2**63), 0]
    labels = precompute(tmp_path / "set", [{"id": key, "ids": [1, 2, 3]} for key in keys])
    assert [labels.index(key) for key in keys] == list(range(5))
    assert labels.index(np.int32(7)) == 0  # type: ignore[arg-type]
    for key in (1, 2**63, -(2**70)):
        with pytest.raises(JoinError, match=str(key)):
            labels.get(key)
    with pytest.raises(JoinError, match="int64"):
        labels.get("7")


def test_without_a_key_column_the_key_is_the_row_s_number(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    labels = precompute(tmp_path / "set", key=None)
    assert [labels.index(row) for row in range(6)] == [0, 1, 4, 5, 6, 7]
    assert labels.parts(1) == [0, 1, 2]


def test_keys_of_one_hash_are_told_apart_by_the_key(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "key_hashes", lambda given: np.zeros(len(given), np.uint64))
    labels = sl.LabelSet.open(pristine)
    labels._lookup.key_index = keys.KeyIndex.build([labels.identities["key"]])
    for number, (key, part) in enumerate(KEYS):
        assert labels.index(key, part=part) == number
    with pytest.raises(JoinError, match="s9"):
        labels.index("s9")


def test_an_unfinished_set_is_read_only_when_asked_for(
    tmp_path: Path, precompute: Precompute
) -> None:
    def fails(ids: torch.Tensor) -> torch.Tensor:
        if (ids == 15).any():
            raise KeyboardInterrupt
        return torch.zeros(*ids.shape, 16)

    teacher = sl.teachers.from_callable(fails, name="fails", version="1", classes=16)
    rows = [{"id": f"s{i}", "ids": [1, 2, 15 if i == 4 else 3]} for i in range(6)]
    with pytest.raises(KeyboardInterrupt):
        precompute(tmp_path / "set", rows, teacher=teacher)
    with pytest.raises(LabelSetError, match=r"unfinished.*unfinished=True"):
        sl.LabelSet.open(tmp_path / "set")
    labels = sl.LabelSet.open(tmp_path / "set", unfinished=True)
    assert not labels.finished
    assert labels.identities["key"].to_pylist() == ["s0", "s1", "s2"]
    assert len(labels[:]) == 3


def test_what_is_no_label_set_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="no such folder"):
        sl.LabelSet.open(tmp_path / "none")
    with pytest.raises(LabelSetError, match=r"plan\.json"):
        sl.LabelSet.open(tmp_path)


def test_a_set_of_rejects_only_holds_no_records(tmp_path: Path, precompute: Precompute) -> None:
    rows = [{"id": f"s{i}", "ids": [99]} for i in range(4)]
    labels = precompute(tmp_path / "set", rows, on_error="skip")
    assert len(labels) == 0
    assert labels[:] == []
    assert len(labels.identities) == 0
    assert labels.parts("s0") == []
    with pytest.raises(JoinError, match="s0"):
        labels.get("s0")
    with pytest.raises(IndexError, match="0 records"):
        labels[0]
    rejects = pq.read_table(tmp_path / "set" / "rejects.parquet").to_pylist()
    assert [reject["key"] for reject in rejects] == ["s0", "s1", "s2", "s3"]
    assert "99" in rejects[0]["reason"]


def test_where_every_class_is_kept_there_is_no_tail(tmp_path: Path, precompute: Precompute) -> None:
    labels = precompute(tmp_path / "set", selection=sl.TopK(16))
    for record in labels:
        assert record.k == 16
        assert record.log_tails is not None
        assert bool((record.log_tails == -torch.inf).all())
        assert record.log_probs.exp().sum(-1).allclose(torch.ones(len(record)))


def test_spans_become_masks(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    precompute(tmp_path / "set", overlap=2)
    labels, rows = sl.LabelSet.open(tmp_path / "set"), stored(tmp_path / "set")
    assert any(row["label_spans"] for row in rows)
    for number, row in enumerate(rows):
        check(labels[number], row)
    masks = [labels.get("s1", part=part).mask for part in labels.parts("s1")]
    assert sum(int(mask.sum()) for mask in masks if mask is not None) == len(id_rows[1]["ids"])


def test_memory_and_open_files_are_bounded(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 3]} for i in range(12)]
    labels = precompute(tmp_path / "set", rows, unit_rows=1)
    expected = list(map(bits, labels))
    one = labels._held.encoded(0).nbytes
    monkeypatch.setattr(in_memory, "_OPEN_SHARDS", 3)
    monkeypatch.setattr(in_memory, "_CACHE_BYTES", 4 * one)
    labels = sl.LabelSet.open(tmp_path / "set")
    for number in np.random.default_rng(0).integers(0, 12, 60).tolist():
        assert bits(labels[number]) == expected[number]
        assert len(labels._held._shards) <= 3
        assert labels._held._cached_bytes <= 4 * one
        assert labels._held._cached_bytes == sum(
            held.nbytes for held in labels._held._cache.values()
        )
    monkeypatch.setattr(in_memory, "_CACHE_BYTES", 0)
    assert list(map(bits, sl.LabelSet.open(tmp_path / "set"))) == expected


def test_a_pickled_set_reads_the_same_records_or_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    labels = sl.LabelSet.open(tiny.name)
    expected = list(map(bits, labels))
    data = pickle.dumps(labels)
    assert b"log_probs" not in data  # nothing that was read travels along
    monkeypatch.chdir(tmp_path.parent)
    again = pickle.loads(data)
    assert list(map(bits, again)) == expected
    assert again.plan == labels.plan
    shutil.copy(tiny / "data/train-00000.parquet", tiny / "data/train-00001.parquet")
    with pytest.raises(CorruptShardError, match="train-00001"):
        list(pickle.loads(data))


def test_datasets_reads_a_set_with_a_unit_of_rejects_alone(
    tmp_path: Path, precompute: Any, id_rows: list[dict[str, Any]]
) -> None:
    void = [{"id": f"void-{i}", "ids": []} for i in range(3)]
    rows = [*id_rows[:3], *void, *id_rows[3:]]
    labels = precompute(tmp_path / "labels", rows, on_error="skip")
    assert [receipt.rows for receipt in labels.receipts][1] == 0
    assert labels.to_dataset()["key"] == labels.identities["key"].to_pylist()
    assert verify(labels.root).findings == ()

"""take: records in any order are those one by one, only they are read, and damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import CorruptShardError
from softlabels.format import shard_writing
from softlabels.format.encoded import Encoded
from softlabels.format.records import IDENTITY, Records
from softlabels.format.shard import Shard
from softlabels.labelset import reader

Precompute = Callable[..., sl.LabelSet]
TENSORS = ("ids", "log_probs", "logits", "logsumexp", "log_tails", "hard_log_probs", "mask")
CODECS = ["plain", "compact", "lossless"]
# Of samples of one window, and of several.
LENGTHS = [5, 14, 1, 6, 3, 22, 2, 6, 12]


def bits(labels: sl.SoftLabels) -> list[bytes | None]:
    found = [getattr(labels, name) for name in TENSORS]
    return [None if tensor is None else tensor.numpy().tobytes() for tensor in found]


def contents(records: Records, row: int) -> dict[str, Any]:
    """All that a record says, without its place."""
    one = records.slice(row, row + 1)
    assert one.token_ids is not None
    assert one.next_ids is not None
    return {
        "identity": one.identity.select(IDENTITY).to_pylist(),
        "labels": bits(records.record_labels(row)),
        "tokens": one.token_ids.tolist(),
        "next": one.next_ids.tolist(),
        "wanted": one.wanted.tolist(),
        "offsets": (one.token_offsets.tolist(), one.label_offsets.tolist()),
    }


@dataclass(frozen=True)
class Set:
    """A set of three shards of several row groups, and what each of its records says."""

    root: Path
    codec: str
    records: list[dict[str, Any]]


@pytest.fixture(scope="module", params=CODECS)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    precompute: Precompute,
) -> Set:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"s{i}", "ids": rng.integers(0, 16, length).tolist()}
        for i, length in enumerate(LENGTHS)
    ]
    out = tmp_path_factory.mktemp("take") / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 9)
        labels = precompute(out, rows, codec=request.param, overlap=2)
    # The slow oracle: every row group decoded whole.
    records = [contents(group, row) for group in labels.groups() for row in range(len(group))]
    assert len(labels.receipts) == 3
    assert len(labels.row_groups) > 6, labels.row_groups
    assert any(not all(record["wanted"]) for record in records)
    return Set(out, request.param, records)


@pytest.fixture
def labels(made: Set) -> sl.LabelSet:
    return sl.LabelSet.open(made.root)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_records_in_any_order_are_those_one_by_one(made: Set, data: st.DataObject) -> None:
    count = len(made.records)
    some = st.integers(-count, count - 1)
    # Runs of neighbours, forwards and backwards, cross from one row group into the next.
    runs = st.builds(lambda a, b: [*range(a, b + 1)] or [*range(a, b - 1, -1)], some, some)
    numbers = data.draw(st.lists(some, max_size=9) | runs | st.lists(runs, max_size=3).map(sum_up))
    records = sl.LabelSet.open(made.root).take(numbers)
    assert len(records) == len(numbers)
    for row, number in enumerate(numbers):
        assert contents(records, row) == made.records[number]


def sum_up(runs: list[list[int]]) -> list[int]:
    return [number for run in runs for number in run]


def test_every_record_at_once_is_the_whole_set(made: Set, labels: sl.LabelSet) -> None:
    count = len(made.records)
    for numbers in (range(count), range(count - 1, -1, -1), range(-count, 0)):
        records = labels.take(numbers)
        found = [contents(records, row) for row in range(count)]
        assert found == [made.records[number] for number in numbers]


def test_a_record_may_be_taken_again_and_again(made: Set, labels: sl.LabelSet) -> None:
    records = labels.take([3, 3, -1, 3, len(made.records) - 1])
    for row, number in enumerate([3, 3, -1, 3, -1]):
        assert contents(records, row) == made.records[number]


def test_of_no_numbers_there_are_no_records(labels: sl.LabelSet) -> None:
    for numbers in ([], np.empty(0, np.int64), range(0)):
        records = labels.take(numbers)
        assert len(records) == len(records.labels) == len(records.wanted) == 0
        assert records.identity.column_names == list(IDENTITY)
        assert records.label_offsets.tolist() == records.token_offsets.tolist() == [0]
    assert labels._held._cache == {}, "nothing was read"
    assert labels[[]] == labels[3:3] == []


@pytest.mark.parametrize(
    "numbers",
    [(2, 0, 5), np.asarray([2, 0, 5], np.int32), np.uint8([2, 0, 5]), torch.tensor([2, 0, 5])],
    ids=lambda numbers: type(numbers).__name__,
)
def test_numbers_of_any_kind(made: Set, labels: sl.LabelSet, numbers: Any) -> None:
    records = labels.take(numbers)
    assert [contents(records, row) for row in range(3)] == [made.records[i] for i in (2, 0, 5)]


@pytest.mark.parametrize("number", [0, -1, 4])
def test_indexing_gives_what_take_gives(made: Set, labels: sl.LabelSet, number: int) -> None:
    count = len(made.records)
    assert bits(labels[number]) == made.records[number]["labels"]
    for index in ([number, 2, number], slice(None, None, 2), slice(-3, None), slice(7, 1, -3)):
        numbers = range(count)[index] if isinstance(index, slice) else index
        expected = [made.records[i]["labels"] for i in numbers]
        assert list(map(bits, labels[index])) == expected
    # More than are decoded together.
    many = [i % count for i in range(2 * reader._TAKEN_RECORDS + 3)]
    assert list(map(bits, labels[many])) == [made.records[i]["labels"] for i in many]


def test_a_number_beyond_the_records_is_an_index_error_that_names_it(
    made: Set, labels: sl.LabelSet
) -> None:
    count = len(made.records)
    for numbers in ([0, count], [-count - 1], [1, 1 << 40, 0]):
        wrong = next(n for n in numbers if not -count <= n < count)
        with pytest.raises(IndexError, match=rf"record {wrong}: the label set has {count} records"):
            labels.take(numbers)
        with pytest.raises(IndexError, match=f"{count} records"):
            labels[numbers]
    assert labels._held._cache == {}, "a row group was read for a list that cannot be had"


@pytest.mark.parametrize("numbers", [[1.7], ["3"], [True], np.asarray([2.0])], ids=repr)
def test_what_is_no_number_is_refused_and_not_read_as_one(
    labels: sl.LabelSet, numbers: Any
) -> None:
    with pytest.raises(TypeError):
        labels[numbers]
    with pytest.raises(TypeError):
        labels.take(numbers)


def test_a_number_beyond_int64_is_beyond_the_records(labels: sl.LabelSet) -> None:
    for numbers in (np.asarray([2**64 - 1], np.uint64), [2**64 - 1]):
        with pytest.raises(IndexError):
            labels.take(numbers)
        with pytest.raises(IndexError):
            labels[numbers]


def test_only_the_row_groups_of_the_records_are_read_and_each_once(
    made: Set, labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    table = Shard.table

    def spy(self: Shard, row_group: int, codec: Any, names: Any) -> pa.Table:
        read.append((self.name, row_group))
        return table(self, row_group, codec, names)

    monkeypatch.setattr(Shard, "table", spy)
    places = labels.row_groups
    first, second, last = places[1], places[3], places[-1]
    assert first.rows > 1
    numbers = [last.start, first.start + 1, second.start, first.start, last.start]
    labels.take(numbers)
    wanted = [(labels.receipts[place.shard].path, place.group) for place in (last, first, second)]
    assert read == wanted
    labels.take(numbers)
    assert read == wanted, "what was read a moment ago was read again"


def test_only_the_records_are_decoded_and_together(
    labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    records = Encoded.records

    def spy(self: Encoded, *rest: Any) -> Records:
        decoded.append(len(self.lengths))
        return records(self, *rest)

    monkeypatch.setattr(Encoded, "records", spy)
    labels.take([0, 9, 1, 5])
    assert decoded == [4]


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu_is_a_device_as_any_other(
    made: Set, labels: sl.LabelSet, device: str | torch.device
) -> None:
    records = labels.take([4, 0], device=device)
    assert [contents(records, row) for row in range(2)] == [made.records[4], made.records[0]]
    tensors = records.labels.tensors().values()
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_labels_come_to_the_device_that_is_asked_for(made: Set, labels: sl.LabelSet) -> None:
    if made.codec == "compact":
        pytest.skip("its bytes are unpacked on the device, and this one cannot compute")
    records = labels.take([4, 0], device="meta")
    assert {tensor.device.type for tensor in records.labels.tensors().values()} == {"meta"}
    assert {t.device.type for t in records.record_labels(1).tensors().values()} == {"meta"}


@pytest.mark.gpu
def test_what_is_unpacked_on_a_gpu_is_what_is_unpacked_here(made: Set, labels: sl.LabelSet) -> None:
    here, there = labels.take([4, 0, 9]), labels.take([4, 0, 9], device="cuda").labels
    assert {tensor.device.type for tensor in there.tensors().values()} == {"cuda"}
    for name, values in here.labels.tensors().items():
        found = getattr(there, name).cpu()
        torch.testing.assert_close(found, values, rtol=0, atol=1e-6, equal_nan=True)


def damaged(table: pa.Table, codec: str, row: int) -> pa.Table:
    """A record of a row group changed, as if its writer had been at fault."""
    name = "positions" if codec == "plain" else "packed"
    at = table.schema.get_field_index(name)
    values = table[name].to_pylist()
    if codec == "plain":
        values[row] += 1
    else:
        frame = bytearray(values[row])
        frame[len(frame) // 2] ^= 4
        values[row] = bytes(frame)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(values, field.type))


def test_a_record_that_cannot_be_decoded_names_its_shard_and_row_group_among_several(
    made: Set, labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = labels.row_groups[4]
    bad = labels.receipts[place.shard].path
    assert place.shard == 1
    table = Shard.table

    def spoiled(self: Shard, row_group: int, codec: Any, names: Any) -> pa.Table:
        whole = table(self, row_group, codec, names)
        is_bad = (self.name, row_group) == (bad, place.group)
        return damaged(whole, made.codec, 0) if is_bad else whole

    monkeypatch.setattr(Shard, "table", spoiled)
    others = [0, len(labels) - 1, place.start - 1]
    assert [contents(labels.take(others), row) for row in range(3)] == [
        made.records[number] for number in others
    ]
    for numbers in ([0, place.start, len(labels) - 1], [place.start]):
        with pytest.raises(CorruptShardError, match=f"{bad}: row group {place.group}: "):
            labels.take(numbers)
        with pytest.raises(CorruptShardError, match=bad):
            labels[numbers]
    # Its neighbours in the row group are whole, where each is packed for itself.
    if place.rows > 1 and made.codec != "plain":
        assert contents(labels.take([place.start + 1]), 0) == made.records[place.start + 1]


def test_a_changed_byte_on_disk_names_its_shard_and_spares_the_others(
    made: Set, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(made.root, tmp_path / "labels"))
    labels = sl.LabelSet.open(root)
    second = next(place for place in labels.row_groups if place.shard == 1)
    path = root / labels.receipts[1].path
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.unlink()
    path.write_bytes(data)
    labels = sl.LabelSet.open(root)
    with pytest.raises(CorruptShardError, match=labels.receipts[1].path):
        labels.take([0, second.start, len(labels) - 1])
    records = labels.take([0, len(labels) - 1])
    assert [contents(records, row) for row in range(2)] == [made.records[0], made.records[-1]]


def test_columns_that_the_format_does_not_know_are_not_read(
    made: Set, labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    read = Shard._arrow

    def spy(self: Shard, row_group: int, columns: Any = None, **options: Any) -> pa.Table:
        asked.append(columns)
        return read(self, row_group, columns, **options)

    monkeypatch.setattr(Shard, "_arrow", spy)
    labels.take([0])
    assert asked == [labels._held.shard(0).schema.names]


def test_where_no_inputs_are_stored_there_are_none(tmp_path: Path, precompute: Precompute) -> None:
    labels = precompute(tmp_path / "set", store_inputs=False, codec="compact")
    records = labels.take([7, 0])
    assert records.token_ids is None
    assert records.next_ids is None
    assert bits(records.record_labels(1)) == bits(labels[0])


@pytest.mark.parametrize("numbers", [3, [[1, 2], [3, 4]]], ids=repr)
def test_take_takes_a_list(labels: sl.LabelSet, numbers: Any) -> None:
    with pytest.raises(TypeError, match="list of record numbers"):
        labels.take(numbers)

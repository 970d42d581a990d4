"""The id table: a permutation of the classes, listed or, of millions of them, computed."""

from __future__ import annotations

import base64
import json
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels import SoftLabels, codecs
from softlabels.codecs import Compact, idtable
from softlabels.codecs.idtable import IdTable
from softlabels.errors import InputError

HUGE = 1 << 31


@dataclass(frozen=True)
class Both:
    """A table, and the ids by rank as docs/FORMAT.md says: the frequent ones, then the others."""

    table: IdTable
    ids: list[int]


@st.composite
def tables(draw: st.DrawFn) -> Both:
    classes = draw(st.integers(1, 300) | st.sampled_from([1, 2, 255, 256, 257]))
    inside = st.integers(0, classes - 1) | st.sampled_from([0, classes - 1])
    frequent = draw(st.lists(inside, unique=True, max_size=classes))
    rest = [index for index in range(classes) if index not in frequent]
    return Both(IdTable(classes, tuple(frequent)), [*frequent, *rest])


def with_every_class_frequent(classes: int) -> Both:
    ids = list(reversed(range(classes)))
    return Both(IdTable(classes, tuple(ids)), ids)


@pytest.mark.parametrize("listed", [True, False])
@given(tables())
@example(with_every_class_frequent(1))
@example(with_every_class_frequent(257))
@example(Both(IdTable(3), [0, 1, 2]))
@settings(deadline=None, max_examples=120)
def test_ranks_and_ids_are_inverse_and_those_of_the_format(listed: bool, both: Both) -> None:
    classes = both.table.classes
    every = np.arange(classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idtable, "_LISTED_CLASSES", classes if listed else classes - 1)
        assert both.table.listed == listed
        ids, ranks = both.table.to_ids(every), both.table.to_ranks(every)
        assert ids.tolist() == both.ids
        assert ranks[ids].tolist() == every.tolist()
        assert (ids.dtype, ranks.dtype) == (np.int64, np.uint32)
        # In any order, any shape and any integers that a codec has them in.
        some = every[::-1].reshape(-1, 1).repeat(2, 1)
        assert both.table.to_ids(some.astype(np.uint32)).tolist() == ids[some].tolist()
        assert both.table.to_ranks(some).tolist() == ranks[some].tolist()
        assert both.table.to_ids(every[:0]).tolist() == []
        assert both.table.to_ranks(every[:0].reshape(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("classes", [(1 << 24) + 1, HUGE])
def test_of_millions_of_classes_none_is_listed(classes: int) -> None:
    last = classes - 1
    table = IdTable(classes, (last, 5, 0))
    assert not table.listed
    ids = np.asarray([last, 5, 0, 1, 4, 6, 7, last - 1])
    ranks = [0, 1, 2, 3, 6, 7, 8, last]
    assert table.to_ranks(ids).tolist() == ranks
    assert table.to_ids(np.asarray(ranks, np.uint32)).tolist() == ids.tolist()


FREQUENT = (17, HUGE - 3, 1 << 24, 3, 1 << 30)


def huge_labels() -> SoftLabels:
    """Frequent and rare classes, both ends of the classes, and neighbours of the frequent ones."""
    ids = [
        [0, HUGE - 1, 17, 3, 5, 123_456_789],
        [HUGE - 2, HUGE - 3, HUGE - 4, (1 << 24) + 1, 1 << 24, 16],
        [1 << 30, (1 << 30) - 1, 1, 2, 4, 18],
    ]
    log_probs = torch.full((3, 6), -np.log(7), dtype=torch.float32)
    return SoftLabels(
        ids=torch.tensor(ids),
        log_probs=log_probs,
        logsumexp=torch.zeros(3),
        log_tails=log_probs[:, :1].contiguous(),
        temperatures=(1.0,),
    )


def test_two_to_the_31_classes_round_trip_in_little_memory() -> None:
    labels, offsets = huge_labels(), np.asarray([0, 2, 3])
    tracemalloc.start()
    try:
        made = Compact(HUGE, 6, (1.0,), IdTable(HUGE, FREQUENT))
        codec = codecs.from_json(json.loads(json.dumps(made.to_json())))
        columns = codec.encode(labels, offsets)
        table = pa.table({"positions": pa.array([2, 1], pa.int32()), **columns})
        found, _ = codec.decode(table)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert codec == made
    # A byte a class would be 2 GiB; what there is, is mostly the compiler.
    assert peak < 256 << 20
    assert found.ids.sort(-1).values.tolist() == labels.ids.sort(-1).values.tolist()


def test_beyond_two_to_the_31_classes_there_is_no_rank() -> None:
    table = IdTable(HUGE, (1,))
    with pytest.raises(ValueError, match="at most 2147483648"):
        Compact(HUGE + 1, 6, (), IdTable(HUGE + 1))
    codec = Compact(HUGE, 6, (1.0,), table)
    labels = huge_labels()
    labels.ids[0, 0] = HUGE
    with pytest.raises(InputError, match="not within"):
        codec.encode(labels, np.asarray([0, 3]))


def test_an_unlisted_table_gives_the_labels_that_a_listed_one_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    ids = np.stack([rng.choice(1000, 6, replace=False) for _ in range(40)])
    log_probs = torch.full((40, 6), -np.log(7), dtype=torch.float32)
    log_probs[torch.from_numpy(rng.random((40, 6)) < 0.3)] = -torch.inf  # some are not used
    labels = SoftLabels(torch.from_numpy(ids), log_probs, logsumexp=torch.zeros(40))
    offsets = np.asarray([0, 1, 1, 40])

    def both_ways() -> tuple[pa.Table, SoftLabels]:
        codec = Compact(1000, 6, (), IdTable.count(1000, ids[:20]))
        positions = pa.array(np.diff(offsets).astype(np.int32))
        table = pa.table({"positions": positions, **codec.encode(labels, offsets)})
        return table, codec.decode(table)[0]

    table, listed = both_ways()
    monkeypatch.setattr(idtable, "_LISTED_CLASSES", 10)
    again, computed = both_ways()
    assert again.equals(table)
    assert torch.equal(computed.ids, listed.ids)
    assert torch.equal(computed.log_probs, listed.log_probs)


def test_ids_are_counted_and_equally_frequent_ones_stand_in_order() -> None:
    table = IdTable.count(10, np.asarray([[7, 2], [7, 9], [2, 7], [0, 9]]))
    assert table.frequent == (7, 2, 9, 0)
    assert IdTable.count(10, np.empty(0, np.int64)).frequent == ()


@pytest.mark.parametrize(
    ("frequent", "words"), [((1, 1), "twice"), ((-1,), "outside 0 … 9"), ((0, 10), "outside 0 … 9")]
)
def test_what_is_no_permutation_is_refused(frequent: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IdTable(10, frequent)


@given(tables())
@settings(deadline=None, max_examples=50)
def test_a_table_comes_back_from_its_text(both: Both) -> None:
    assert IdTable.from_text(both.table.classes, both.table.to_text()) == both.table


def test_the_text_is_that_of_the_format() -> None:
    data = zstandard.decompress(base64.b64decode(IdTable(HUGE, (7, 0x01020304)).to_text()))
    assert data == bytes([7, 0, 0, 0, 4, 3, 2, 1])


def text(data: bytes) -> str:
    return base64.b64encode(zstandard.compress(data)).decode()


@pytest.mark.parametrize(
    "given",
    [
        "!",
        "AAAA",
        "",
        text(b"\1\0\0"),
        text(bytes(8)),
        text(b"\3\0\0\0"),
        text(bytes(4 * 1000)),
        text(b"\1\0\0\0")[:-8],
        "!" + text(b"\1\0\0\0"),
    ],
)
def test_a_text_that_no_table_wrote_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"table|buffer|base64"):
        IdTable.from_text(3, given)


def test_a_text_of_more_classes_than_there_are_is_refused_before_it_is_unpacked() -> None:
    assert IdTable.from_text(3, text(bytes([2, 0, 0, 0]))).frequent == (2,)
    with pytest.raises(ValueError, match="longer than there are classes"):
        IdTable.from_text(3, text(bytes(1 << 20)))

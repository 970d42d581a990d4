"""Unpacking by NumPy, numba and torch; on a device; in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.codecs import Compact, Lossless, unpack_numba, unpack_numpy, unpack_torch
from softlabels.codecs.curves import code_logs
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.ranks import Gaps
from softlabels.errors import CorruptShardError

ENGINES = [unpack_numpy, unpack_numba, unpack_torch]


def of(engine: ModuleType, values: Any) -> Any:
    """What the engine takes: arrays, or for torch tensors with indices in int64."""
    if engine is not unpack_torch or values is None:
        return values
    return torch.from_numpy(values.astype(np.int64) if values.dtype == np.uint32 else values)


def slow_ids(gaps: list[list[int]], k: int, of_rank: np.ndarray) -> np.ndarray:
    """The obvious version."""
    out = np.zeros((len(gaps), k), np.int64)
    for row, position in enumerate(gaps):
        rank = -1
        for entry, gap in enumerate(position):
            rank += gap + 1
            out[row, entry] = of_rank[rank]
    return out


@st.composite
def positions(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    k = draw(st.integers(1, 6))
    gap = st.sampled_from([0, 1, 254, 255, 256, 510, 511, 66_000])
    rows = st.lists(gap, min_size=k if draw(st.booleans()) else 0, max_size=k)
    return draw(st.lists(rows, max_size=8)), k


@given(positions())
@settings(deadline=None)
def test_every_engine_gives_the_ids_of_the_obvious_one(given_: tuple[list[list[int]], int]) -> None:
    rows, k = given_
    of_rank = np.random.default_rng(0).permutation(1 << 19)
    flat = Gaps.of(np.asarray([gap for row in rows for gap in row], np.uint32))
    starts = np.cumsum([0, *map(len, rows)])
    wanted = slow_ids(rows, k, of_rank)
    for engine in ENGINES:
        arrays = (of(engine, a) for a in (flat.first, flat.rest, starts))
        found = engine.ids(*arrays, k, of_rank=of(engine, of_rank))
        assert np.array_equal(np.asarray(found), wanted), engine.__name__


@pytest.mark.parametrize("classes", [49_152, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("k", [1, 3, 4, 16, 64, 70])
@pytest.mark.parametrize("ragged", [False, True])
def test_numpy_sums_gaps_of_few_classes_in_sixteen_bits(classes: int, k: int, ragged: bool) -> None:
    random = np.random.default_rng(k)
    ranks = np.sort([random.choice(classes, k, replace=False) for _ in range(2500)], axis=1)
    ranks[0, -1] = classes - 1
    used = np.arange(k) < random.integers(0 if ragged else k, k + 1, size=(len(ranks), 1))
    gaps = np.diff(ranks, axis=1, prepend=-1)[used] - 1
    flat, starts = Gaps.of(gaps.astype(np.uint32)), np.append(0, np.cumsum(used.sum(1)))
    of_rank = random.permutation(classes)
    found = unpack_numpy.ids(flat.first, flat.rest, starts, k, of_rank=of_rank)
    assert np.array_equal(found, np.where(used, of_rank[ranks], 0))


@given(positions(), st.booleans())
@settings(deadline=None)
def test_every_engine_gives_equal_log_probs(
    given_: tuple[list[list[int]], int], scaled: bool
) -> None:
    rows, k = given_
    # Of a likeliest class, code 20 and more.
    codes = np.asarray([20 + gap % 235 for row in rows for gap in row], np.uint8)
    starts = np.cumsum([0, *map(len, rows)])
    kept = -np.random.default_rng(1).random(len(rows)) if scaled else None
    found = [
        np.asarray(engine.log_probs(*(of(engine, a) for a in (codes, starts)), k, of(engine, kept)))
        for engine in ENGINES
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    flat = Gaps.of(np.asarray([gap for row in rows for gap in row], np.uint32))
    of_rank = np.random.default_rng(0).permutation(1 << 19)
    for engine in (unpack_numpy, unpack_numba):
        ids, log_probs = engine.entries(
            flat.first, flat.rest, codes, starts, k, of_rank=of_rank, log_kept=kept
        )
        assert np.array_equal(ids, slow_ids(rows, k, of_rank)), engine.__name__
        assert np.array_equal(log_probs, found[0]), engine.__name__
    for row, position in enumerate(rows):
        exact = code_logs()[[20 + gap % 235 for gap in position]].astype(np.float64)
        if kept is not None and len(position):
            exact += kept[row] - np.log(np.exp(exact).sum())
        assert np.allclose(found[0][row, : len(position)], exact, atol=1e-5)
        assert (found[0][row, len(position) :] == -np.inf).all()


def test_codes_ascend_by_a_nat_and_then_by_cube_roots() -> None:
    logs = code_logs()
    assert logs[0] == -np.inf
    assert np.allclose(np.diff(logs[1:36]), 1)
    assert np.allclose(np.exp(logs[35:] / 3), np.arange(3, 224))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gaps", [[0, 9], [4, 5], [10]])
def test_a_rank_beyond_the_classes_is_found(engine: ModuleType, gaps: list[int]) -> None:
    flat = Gaps.of(np.asarray(gaps, np.uint32))
    arrays = (of(engine, a) for a in (flat.first, flat.rest, np.asarray([0, len(gaps)])))
    with pytest.raises(CorruptShardError, match="beyond the classes"):
        engine.ids(*arrays, 2, of_rank=of(engine, np.arange(10)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "gaps",
    [
        [0, 65_535, 0, 0],  # the second step is 2¹⁶
        [40_000, 40_000, 0, 0],  # 2¹⁶ is passed, and no class reached again
        [9, 9, 9, 65_509],
        [60_000] * 4 + [5] * 4,
        [0] * 7 + [65_500],
        [30_000, 30_000, 30_000, 30_000, 30_000],
    ],
)
def test_ranks_that_go_round_in_sixteen_bits_are_found(engine: ModuleType, gaps: list[int]) -> None:
    flat = Gaps.of(np.asarray([0, 0, *gaps, 1], np.uint32))
    starts = np.asarray([0, 2, 2 + len(gaps), 3 + len(gaps)])
    arrays = (of(engine, a) for a in (flat.first, flat.rest, starts))
    with pytest.raises(CorruptShardError, match="beyond the classes"):
        engine.ids(*arrays, 8, of_rank=of(engine, np.arange(65_500)))


def labels(count: int, k: int) -> sl.SoftLabels:
    logits = torch.randn(count, 1000, generator=torch.Generator().manual_seed(0)) * 3
    return sl.TopK(k)(logits, torch.arange(count), temperatures=(1.0, 2.0))


def packed(codec: Any, given_: sl.SoftLabels, cut: list[int]) -> pa.Table:
    offsets = np.cumsum([0, *cut])
    return pa.table({"positions": pa.array(cut, pa.int32()), **codec.encode(given_, offsets)})


CODECS = [
    Compact(1000, 8, (1.0, 2.0), IdTable(1000, (5, 3))),
    Lossless(1000, 8, (1.0, 2.0), IdTable(1000, (5, 3))),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_frames_may_be_packed_and_unpacked_in_many_threads(codec: Any) -> None:
    given_ = labels(300, 8)
    tables = [packed(codec, given_[: 100 + i], [50, 50 + i]) for i in range(64)]
    with ThreadPoolExecutor(8) as threads:
        again = list(
            threads.map(lambda i: packed(codec, given_[: 100 + i], [50, 50 + i]), range(64))
        )
        found = list(threads.map(lambda table: codec.decode(table)[0], tables))
    assert again == tables
    for ours, table in zip(found, tables, strict=True):
        theirs, _ = codec.decode(table)
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.log_probs, theirs.log_probs)


@pytest.mark.gpu
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_on_a_device_the_labels_are_those_of_the_cpu(codec: Any) -> None:
    table = packed(codec, labels(300, 8), [100, 200])
    here, _ = codec.decode(table)
    there, _ = codec.decode(table, torch.device("cuda"))
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        ours, theirs = getattr(here, name), getattr(there, name)
        assert theirs.is_cuda
        assert torch.equal(ours, theirs.cpu()), name

"""Large gaps and their rests put together, entry by entry and sixteen at a time."""

from __future__ import annotations

import numpy as np
import pytest

from softlabels.codecs.steps_numba import widen_by_entry, widen_by_sixteen

WAYS = [widen_by_entry, widen_by_sixteen]


@pytest.mark.parametrize("widen", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("entries", [0, 1, 15, 16, 17, 64, 1003])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_each_large_gap_gets_the_next_rest(widen: object, entries: int, share: float) -> None:
    random = np.random.default_rng(entries)
    first = random.integers(255, size=entries, dtype=np.uint8)
    first[random.random(entries) < share] = 255
    places = np.flatnonzero(first == 255)
    rest = random.integers(1 << 31, size=entries + 1, dtype=np.uint32)
    out, where = np.empty((2, entries + 1), np.uint32)
    assert widen(first, rest, np.uint64(len(places)), out, where)
    wanted = first.astype(np.uint32) + np.uint32(1)
    wanted[places] += rest[: len(places)]
    assert np.array_equal(out[:entries], wanted)


@pytest.mark.parametrize("widen", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("said", [0, 2, 40])
def test_too_few_or_too_many_rests_are_found(widen: object, said: int) -> None:
    first = np.full(40, 7, np.uint8)
    first[[3, 20, 39]] = 255
    out, where, rest = np.zeros((3, 41), np.uint32)
    assert not widen(first, rest, np.uint64(said), out, where)

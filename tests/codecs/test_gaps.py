"""Entries by rank: the compiled pass and the one in NumPy give the same gaps and codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.codecs import gaps_numba, ranks
from softlabels.codecs.idtable import IdTable
from softlabels.errors import InputError


def sorted_both_ways(
    ids: np.ndarray, codes: np.ndarray, classes: int
) -> list[tuple[np.ndarray, ranks.Gaps, np.ndarray]]:
    table = IdTable.count(classes, ids[:1].ravel())
    used = np.ones(ids.shape, bool)
    found = []
    for split in (gaps_numba.split, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "_split", lambda split=split: split)
            found.append(ranks.sort_entries(ids, codes, used, table))
    return found


@settings(deadline=None)
@given(
    rows=st.integers(0, 20),
    k=st.sampled_from([1, 2, 7, 64]),
    classes=st.sampled_from([64, 300, 49_152]),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_compiled_pass_gives_what_numpy_gives(
    rows: int, k: int, classes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    drawn = [random.choice(classes, k, replace=False) for _ in range(rows)]
    ids = np.asarray(drawn, np.int64).reshape(rows, k)
    codes = random.integers(0, 256, ids.shape).astype(np.uint8)
    compiled, plain = sorted_both_ways(ids, codes, classes)
    for one, other in (
        (compiled[0], plain[0]),
        (compiled[1].first, plain[1].first),
        (compiled[1].rest, plain[1].rest),
        (compiled[2], plain[2]),
    ):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_what_is_compiled_is_used() -> None:
    assert ranks._split() is gaps_numba.split, "numba belongs to the test extra"


@pytest.mark.parametrize("ids", [[0, 0], [7, 7], [0, 5, 5], [299, 1, 299]])
def test_a_class_that_stands_twice_is_refused_by_both(ids: list[int]) -> None:
    given_ids = np.asarray([list(range(len(ids))), ids])
    codes = np.asarray([[3] * len(ids), list(range(len(ids)))], np.uint8)
    table, used = IdTable(300, ()), np.ones(given_ids.shape, bool)
    for split in (gaps_numba.split, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "_split", lambda split=split: split)
            with pytest.raises(InputError, match="twice at one position"):
                ranks.sort_entries(given_ids, codes, used, table)

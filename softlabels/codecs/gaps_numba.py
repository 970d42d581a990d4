"""Gaps and codes of sorted entries, compiled; importing it fails where numba is not installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs.ranks import LARGE
from softlabels.compiled import compiled
from softlabels.memory import empty


def split(
    both: NDArray[np.uint32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint8], int]:
    """The gaps and codes of entries, each a rank above `bits` of code, ascending in a position.

    Args:
        both: (N, k).
        bits: 8 at most.

    Returns:
        the first byte of each gap and what is left of the large ones, as `Gaps` has them; the
        codes, (N · k,); and the largest gap, beyond all ranks if two of a position are equal.
    """
    first, codes = np.empty((2, both.size), np.uint8)
    rest = empty((both.size + 1,), np.uint32)
    large, largest = _split(both, np.uint32(bits), first, rest, codes)
    return first, rest[: int(large)].copy(), codes, int(largest)


@compiled
def _split(
    both: NDArray[np.uint32],
    bits: np.uint32,
    first: NDArray[np.uint8],
    rest: NDArray[np.uint32],
    codes: NDArray[np.uint8],
) -> tuple[np.int64, np.uint32]:
    # Without a branch: which gaps are large is as if at random.
    one, most = np.uint32(1), np.uint32(LARGE)
    large, largest, at = np.uint64(0), np.uint32(0), 0
    for row in range(len(both)):
        entries = both[row]
        before = np.uint32(0)
        for i in range(len(entries)):
            rank = entries[i] >> bits
            gap = rank - before
            before = rank + one
            first[at + i] = np.uint8(min(gap, most))
            rest[large] = gap - most
            large += np.uint64(1) if gap >= most else np.uint64(0)
            codes[at + i] = np.uint8(entries[i])
            largest = max(largest, gap)
        at += len(entries)
    return np.int64(large), largest

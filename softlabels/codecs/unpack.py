"""Gaps of sorted ranks and value codes to ids and log-probs: NumPy, or numba if installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]
Floats = NDArray[np.float32]

CUBES = np.arange(256, dtype=np.int64) ** 3
with np.errstate(divide="ignore"):
    LOG_CUBES = (3 * np.log(np.arange(256))).astype(np.float32)


def unpack(planes: Bytes, codes: Bytes, starts: Int64s, ids: Int64s, k: int) -> Unpacked:
    """Entries of N positions, one position after another, to N rows of k.

    Args:
        planes: bytes of each entry's gap to the rank before it, less one, lowest first, (n, E).
        codes: value codes, (E,).
        starts: position i owns entries starts[i]:starts[i + 1], (N + 1,); at most k.
        ids: the class id of each rank, (V,).

    Returns:
        ids, int64 (N, k), 0 where unused; log of the cubes of the codes, float32 (N, k), −∞ where
        unused; the cubes' sums, int64 (N,).

    Raises:
        CorruptShardError: a rank is not below V.
    """
    return (_compiled() or with_numpy)(planes, codes, starts, ids, k)


Unpacked = tuple[Int64s, Floats, Int64s]


def with_numpy(planes: Bytes, codes: Bytes, starts: Int64s, ids: Int64s, k: int) -> Unpacked:
    """As `unpack`, in NumPy alone."""
    positions = len(starts) - 1
    gaps = planes[0].astype(np.int64)
    for place, plane in enumerate(planes[1:], start=1):
        gaps += plane.astype(np.int64) << (8 * place)
    if len(gaps) == positions * k:
        ranks = np.cumsum(gaps.reshape(positions, k) + 1, axis=1) - 1
        if len(ranks) and int(ranks[:, -1].max()) >= len(ids):
            raise _beyond()
        codes = codes.reshape(positions, k)
        return ids[ranks], LOG_CUBES[codes], CUBES[codes].sum(1)
    used = np.arange(k) < np.diff(starts)[:, None]
    ranks = np.zeros((positions, k), np.int64)
    ranks[used] = gaps + 1
    ranks = np.cumsum(ranks, axis=1) - 1
    ranks[~used] = 0
    if ranks.size and int(ranks.max()) >= len(ids):
        raise _beyond()
    padded = np.zeros((positions, k), np.uint8)
    padded[used] = codes
    return np.where(used, ids[ranks], 0), LOG_CUBES[padded], CUBES[padded].sum(1)


@cache
def _compiled() -> Callable[..., Unpacked] | None:
    """`unpack` compiled by numba, four to six times as fast; None where numba is not installed."""
    try:
        from numba import njit
    except ImportError:
        return None
    fill: Any = njit(nogil=True, cache=True)(_fill)

    def with_numba(planes: Bytes, codes: Bytes, starts: Int64s, ids: Int64s, k: int) -> Unpacked:
        rows = len(starts) - 1
        out = (
            np.zeros((rows, k), np.int64),
            np.full((rows, k), -np.inf, np.float32),
            np.zeros(rows, np.int64),
        )
        if not fill(planes, codes, starts, ids, LOG_CUBES, *out):
            raise _beyond()
        return out

    return with_numba


def _fill(
    planes: Bytes,
    codes: Bytes,
    starts: Int64s,
    ids: Int64s,
    log_cubes: Floats,
    out_ids: Int64s,
    out_logs: Floats,
    out_sums: Int64s,
) -> bool:
    for row in range(len(starts) - 1):
        rank, total = np.int64(-1), np.int64(0)
        for entry in range(starts[row], starts[row + 1]):
            gap = np.int64(1)
            for place in range(len(planes)):
                gap += np.int64(planes[place, entry]) << (8 * place)
            rank += gap
            if rank >= len(ids):
                return False
            code = np.int64(codes[entry])
            out_ids[row, entry - starts[row]] = ids[rank]
            out_logs[row, entry - starts[row]] = log_cubes[code]
            total += code * code * code
        out_sums[row] = total
    return True


def _beyond() -> CorruptShardError:
    return CorruptShardError("a class id is beyond the classes of the codec")

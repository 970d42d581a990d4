"""As `unpack_numpy`, compiled; importing it fails where numba is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from softlabels.codecs.curves import code_logs, code_weights
from softlabels.codecs.ranks import LARGE, beyond
from softlabels.codecs.unpack_numpy import (
    Bytes,
    Floats,
    Int64s,
    Uint32s,
    ranks,
    shifts,
)

__all__ = ["ids", "log_probs", "ranks"]


def ids(first: Bytes, rest: Uint32s, starts: Int64s, k: int, *, of_rank: Int64s) -> Int64s:
    """See `unpack_numpy.ids`."""
    out = np.empty((len(starts) - 1, k), np.int64)
    if not _ids(first, rest, starts, of_rank, out):
        raise beyond()
    return out


def log_probs(codes: Bytes, starts: Int64s, k: int, log_kept: NDArray[np.float64] | None) -> Floats:
    """See `unpack_numpy.log_probs`."""
    rows = len(starts) - 1
    shift = np.zeros(rows, np.float32)
    if log_kept is not None:
        weights = np.empty(rows, np.int64)
        _sums(codes, starts, code_weights(), weights)
        shift = shifts(weights, log_kept)
    out = np.empty((rows, k), np.float32)
    _spread(codes, starts, code_logs(), shift, out)
    return out


def _compiled(function: Any) -> Any:
    return njit(nogil=True, cache=True, boundscheck=False)(function)


@_compiled
def _ids(first: Bytes, rest: Uint32s, starts: Int64s, of_rank: Int64s, out: Int64s) -> bool:
    # Unsigned, and slices of one position: indices that might count from the end, and indexing the
    # whole arrays, cost half as much again.
    last, done, large = np.uint64(len(of_rank) - 1), np.uint64(0), np.uint64(len(rest))
    one, escape = np.uint64(1), np.uint64(LARGE)
    for row in range(len(starts) - 1):
        gaps, found = first[starts[row] : starts[row + 1]], out[row]
        rank = np.uint64(0)
        for i in range(len(gaps)):
            gap = np.uint64(gaps[i])
            if gap == escape:
                if done == large:
                    return False
                gap += np.uint64(rest[done])
                done += one
            rank += gap
            found[i] = of_rank[min(rank, last)]
            rank += one
        if rank > last + one:  # ranks ascend: the last one is the largest
            return False
        found[len(gaps) :] = 0
    return bool(done == large)


@_compiled
def _sums(codes: Bytes, starts: Int64s, weights: Int64s, out: Int64s) -> None:
    for row in range(len(starts) - 1):
        held, total = codes[starts[row] : starts[row + 1]], np.int64(0)
        for i in range(len(held)):
            total += weights[held[i]]
        out[row] = total


@_compiled
def _spread(codes: Bytes, starts: Int64s, logs: Floats, shifts: Floats, out: Floats) -> None:
    for row in range(len(starts) - 1):
        held, found, shift = codes[starts[row] : starts[row + 1]], out[row], shifts[row]
        for i in range(len(held)):
            found[i] = logs[held[i]] + shift
        found[len(held) :] = -np.inf

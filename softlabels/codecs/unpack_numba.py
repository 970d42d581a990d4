"""As `unpack_numpy`, compiled; importing it fails where numba is not installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs.curves import code_logs, code_weights
from softlabels.codecs.ranks import LARGE, beyond
from softlabels.codecs.unpack_frames import compact
from softlabels.codecs.unpack_numpy import (
    Bytes,
    Floats,
    Int64s,
    Uint32s,
    ranks,
    shifts,
)
from softlabels.compiled import compiled
from softlabels.memory import empty

__all__ = ["compact", "copy", "entries", "ids", "log_probs", "ranks"]


def copy(data: Bytes, starts: Int64s, lengths: Int64s, out: Bytes) -> None:
    """See `unpack_numpy.copy`."""
    _copy(data, starts, lengths, out)


def ids(first: Bytes, rest: Uint32s, starts: Int64s, k: int, *, of_rank: Int64s) -> Int64s:
    """See `unpack_numpy.ids`."""
    return _ids_and_sums(first, rest, first, starts, k, of_rank)[0]


def entries(
    first: Bytes,
    rest: Uint32s,
    codes: Bytes,
    starts: Int64s,
    k: int,
    *,
    of_rank: Int64s,
    log_kept: NDArray[np.float64] | None,
) -> tuple[Int64s, Floats]:
    """See `unpack_numpy.entries`."""
    found, weights = _ids_and_sums(first, rest, codes, starts, k, of_rank)
    return found, _log_probs(codes, weights, starts, k, log_kept)


def log_probs(codes: Bytes, starts: Int64s, k: int, log_kept: NDArray[np.float64] | None) -> Floats:
    """See `unpack_numpy.log_probs`."""
    weights = np.empty(len(starts) - 1, np.int64)
    _sums(codes, starts, code_weights(), weights)
    return _log_probs(codes, weights, starts, k, log_kept)


def _ids_and_sums(
    first: Bytes, rest: Uint32s, codes: Bytes, starts: Int64s, k: int, of_rank: Int64s
) -> tuple[Int64s, Int64s]:
    out, weights = empty((len(starts) - 1, k), np.int64), np.empty(len(starts) - 1, np.int64)
    if np.count_nonzero(first == LARGE) != len(rest):
        raise beyond()
    # One more, which the kernel reads but never uses.
    rest = np.append(rest, np.uint32(0))
    if not _ids(first, rest, codes, starts, of_rank, code_weights(), out, weights):
        raise beyond()
    return out, weights


def _log_probs(
    codes: Bytes, weights: Int64s, starts: Int64s, k: int, log_kept: NDArray[np.float64] | None
) -> Floats:
    rows = len(starts) - 1
    shift = np.zeros(rows, np.float32) if log_kept is None else shifts(weights, log_kept)
    out = empty((rows, k), np.float32)
    _spread(codes, starts, code_logs(), shift, out)
    return out


@compiled
def _copy(data: Bytes, starts: Int64s, lengths: Int64s, out: Bytes) -> None:
    end = 0
    for run in range(len(starts)):
        start, length = starts[run], lengths[run]
        source, target = data[start : start + length], out[end : end + length]
        for i in range(length):
            target[i] = source[i]
        end += length


@compiled
def _ids(
    first: Bytes,
    rest: Uint32s,
    codes: Bytes,
    starts: Int64s,
    of_rank: Int64s,
    weights: Int64s,
    out: Int64s,
    sums: Int64s,
) -> bool:
    # Unsigned, and slices of one position: indices that might count from the end, and indexing the
    # whole arrays, cost half as much again. No branch on large gaps: they are as if at random, and
    # to guess each costs a quarter. The sums, which `_sums` gives too, are almost free here.
    zero, one, none = np.uint64(0), np.uint64(1), np.uint32(0)
    last, done = np.uint64(len(of_rank) - 1), zero
    for row in range(len(starts) - 1):
        gaps, held = first[starts[row] : starts[row + 1]], codes[starts[row] : starts[row + 1]]
        found, rank, total = out[row], zero, np.int64(0)
        for i in range(len(gaps)):
            gap = gaps[i]
            more = rest[done]
            rank += np.uint64(gap) + np.uint64(more if gap == LARGE else none)
            done += one if gap == LARGE else zero
            found[i] = of_rank[min(rank, last)]
            rank += one
            total += weights[held[i]]
        if rank > last + one:  # ranks ascend: the last one is the largest
            return False
        found[len(gaps) :] = 0
        sums[row] = total
    return True


@compiled
def _sums(codes: Bytes, starts: Int64s, weights: Int64s, out: Int64s) -> None:
    for row in range(len(starts) - 1):
        held, total = codes[starts[row] : starts[row + 1]], np.int64(0)
        for i in range(len(held)):
            total += weights[held[i]]
        out[row] = total


@compiled
def _spread(codes: Bytes, starts: Int64s, logs: Floats, shifts: Floats, out: Floats) -> None:
    for row in range(len(starts) - 1):
        held, found, shift = codes[starts[row] : starts[row + 1]], out[row], shifts[row]
        for i in range(len(held)):
            found[i] = logs[held[i]] + shift
        found[len(held) :] = -np.inf

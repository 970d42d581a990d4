"""As `unpack`, in NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs.curves import WEIGHT_BITS, code_logs, code_weights
from softlabels.codecs.ranks import LARGE, beyond
from softlabels.memory import empty

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]
Uint32s = NDArray[np.uint32]
Floats = NDArray[np.float32]

# Records are unpacked plane by plane; see `unpack_numba.compact`.
compact = None

# Rows whose temporaries stay in cache: twice as fast as all rows at once.
_ROWS = 2048


def copy(data: Bytes, starts: Int64s, lengths: Int64s, out: Bytes) -> None:
    """Runs of `data`, each from its start, one after another to `out`."""
    ends = np.cumsum(lengths)
    for start, length, end in zip(starts.tolist(), lengths.tolist(), ends.tolist(), strict=True):
        out[end - length : end] = data[start : start + length]


def ids(first: Bytes, rest: Uint32s, starts: Int64s, k: int, *, of_rank: Int64s) -> Int64s:
    """Class ids, (N, k), 0 where unused.

    Args:
        first, rest: of the gaps of E entries, see `softlabels.codecs.ranks.Gaps`.
        starts: position i owns entries starts[i]:starts[i + 1], at most k, (N + 1,).
        of_rank: the class id of each rank, (V,).

    Raises:
        CorruptShardError: a rank is not below V.
    """
    out = ranks(first, rest, starts, k, classes=len(of_rank))
    for rows in _blocks(len(out)):
        np.take(of_rank, out[rows], out=out[rows], mode="clip")  # `ranks` has checked the bounds
    if len(first) != out.size:
        out[~_used(starts, k)] = 0
    return out


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
    """`ids` and `log_probs` of the same entries."""
    return ids(first, rest, starts, k, of_rank=of_rank), log_probs(codes, starts, k, log_kept)


def ranks(first: Bytes, rest: Uint32s, starts: Int64s, k: int, *, classes: int) -> Int64s:
    """Ranks, (N, k), in place of ids; 0 where unused."""
    out = empty((len(starts) - 1, k), np.int64)
    done = 0
    for rows in _blocks(len(out)):
        gaps = first[starts[rows.start] : starts[rows.stop]]
        steps = gaps.astype(np.int64)
        large = np.flatnonzero(gaps == LARGE)
        if done + len(large) > len(rest):
            raise beyond()
        steps[large] += rest[done : done + len(large)]
        done += len(large)
        steps += 1
        steps, used = _rows(steps, starts[rows.start : rows.stop + 1], k)
        np.cumsum(steps, axis=1, out=out[rows])
        out[rows] -= 1
        if used is not None:
            out[rows][~used] = 0
    if done != len(rest) or (out.size and int(out.max()) >= classes):
        raise beyond()
    return out


def log_probs(codes: Bytes, starts: Int64s, k: int, log_kept: NDArray[np.float64] | None) -> Floats:
    """Logs of the codes' values, (N, k), −∞ where unused; scaled to sum to exp(log_kept), (N,)."""
    out = empty((len(starts) - 1, k), np.float32)
    for rows in _blocks(len(out)):
        bounds = starts[rows.start : rows.stop + 1]
        padded, _ = _rows(codes[bounds[0] : bounds[-1]], bounds, k)
        wide = padded.astype(np.intp)
        np.take(code_logs(), wide, out=out[rows], mode="clip")
        if log_kept is not None:
            weights = np.take(code_weights(), wide, mode="clip").sum(1)
            out[rows] += shifts(weights, log_kept[rows])[:, None]
    return out


def shifts(weights: Int64s, log_kept: NDArray[np.float64]) -> Floats:
    """What makes the logs of values of these weights log-probs that sum to exp(log_kept)."""
    return (log_kept - np.log(np.maximum(weights, 1) / 2.0**WEIGHT_BITS)).astype(np.float32)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS))


def _rows(
    values: NDArray[Any], starts: Int64s, k: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Values of each entry as rows of a position, 0 where unused; None if all are used."""
    if len(values) == (len(starts) - 1) * k:
        return values.reshape(-1, k), None
    used = _used(starts, k)
    out = np.zeros(used.shape, values.dtype)
    out[used] = values
    return out, used


def _used(starts: Int64s, k: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.arange(k) < np.diff(starts)[:, None]
    return found

"""As `unpack`, in NumPy alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

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
    out = empty((len(starts) - 1, k), np.int64)
    for block in _blocks_of_ranks(first, rest, starts, k, classes=len(of_rank)):
        found = out[block.rows]
        found[...] = block.ranks
        np.take(of_rank, found, out=found, mode="clip")  # the bounds were checked
        if block.used is not None:
            found[~block.used] = 0
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
    for block in _blocks_of_ranks(first, rest, starts, k, classes=classes):
        out[block.rows] = block.ranks
        if block.used is not None:
            out[block.rows][~block.used] = 0
    return out


class _Block(NamedTuple):
    """Ranks of some rows, any integers, (n, k); what is not used is at most their row's largest."""

    rows: slice
    ranks: NDArray[Any]
    used: NDArray[np.bool_] | None


def _blocks_of_ranks(
    first: Bytes, rest: Uint32s, starts: Int64s, k: int, *, classes: int
) -> Iterator[_Block]:
    largest = LARGE + int(rest.max(initial=0))
    narrow = classes <= 1 << 16 and largest < (1 << 16) - 1 and sys.byteorder == "little"
    kind: Any = np.uint16 if narrow else np.int64
    large_gaps, done = rest.astype(kind) + kind(LARGE), 0
    for rows in _blocks(len(starts) - 1):
        bounds = starts[rows.start : rows.stop + 1]
        gaps = first[bounds[0] : bounds[-1]]
        steps, large = gaps.astype(kind), np.flatnonzero(gaps == LARGE)
        if done + len(large) > len(rest):
            raise beyond()
        steps[large] = large_gaps[done : done + len(large)]
        done += len(large)
        steps += kind(1)
        steps, used = _rows(steps, bounds, k)
        steps[:, 0] -= kind(1) if used is None else used[:, 0]
        found = _running_sums(steps) if narrow else np.cumsum(steps, axis=1)
        # Sums that reach 2¹⁶ begin again below the one before: no step is as large.
        if (narrow and (found[:, 1:] < found[:, :-1]).any()) or int(found[:, -1].max()) >= classes:
            raise beyond()
        yield _Block(rows, found, used)
    if done != len(rest):
        raise beyond()


def _running_sums(steps: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Of each row, (n, k), modulo 2¹⁶, on hosts with the lowest byte first.

    Four numbers are one of 64 bits, and one multiplication gives all their sums: a quarter of the
    time of `cumsum`.
    """
    rows, k = steps.shape
    if k == 1:
        return steps
    if k % 4:
        steps = np.concatenate([steps, np.zeros((rows, -k % 4), np.uint16)], axis=1)
    fours = np.ascontiguousarray(steps).view(np.uint64) * _ONES
    totals = (fours >> np.uint64(48)).astype(np.uint16)
    # What carries into the next number of four does so only where a sum has reached 2¹⁶.
    fours += (_running_sums(totals) - totals).astype(np.uint64) * _ONES
    return fours.view(np.uint16)[:, :k]


_ONES = np.uint64(0x0001_0001_0001_0001)


def log_probs(codes: Bytes, starts: Int64s, k: int, log_kept: NDArray[np.float64] | None) -> Floats:
    """Logs of the codes' values, (N, k), −∞ where unused; scaled to sum to exp(log_kept), (N,)."""
    out = empty((len(starts) - 1, k), np.float32)
    width = 1 if k % 2 else 2
    weight, log = _tables(width)
    for rows in _blocks(len(out)):
        bounds = starts[rows.start : rows.stop + 1]
        padded, _ = _rows(codes[bounds[0] : bounds[-1]], bounds, k)
        runs = np.ascontiguousarray(padded).view(f"u{width}").astype(np.intp)
        np.take(log, runs, out=out[rows].view(log.dtype), mode="clip")
        if log_kept is not None:
            # A quarter of the time of `sum`, whose rows here are short.
            weights = np.einsum("ij->i", np.take(weight, runs, mode="clip"))
            out[rows] += shifts(weights, log_kept[rows])[:, None]
    return out


@cache
def _tables(width: int) -> tuple[Int64s, NDArray[Any]]:
    """The weight, and the logs as one number, of one code or two together, (256 ** width,).

    Two need half as many look-ups.
    """
    codes = np.arange(256**width, dtype=f"u{width}").view(np.uint8).reshape(-1, width)
    return code_weights()[codes].sum(1), code_logs()[codes].view(f"u{4 * width}").ravel()


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

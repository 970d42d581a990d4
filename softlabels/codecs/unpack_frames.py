"""Whole frames of the codec compact to labels, compiled.

Unpacked plane by plane, a batch takes some twenty calls of NumPy, between which threads wait for
each other; here one, and every byte is read where it was decompressed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs.curves import (
    FIRST,
    MIDDLE,
    MINUS_INFINITY,
    NULL,
    SCALAR_STEPS,
    WEIGHT_BITS,
    code_log_kept,
    code_log_tails,
    code_logs,
    code_weights,
)
from softlabels.codecs.planes import Opened, misfit
from softlabels.codecs.ranks import beyond
from softlabels.codecs.steps_numba import steps
from softlabels.codecs.unpack_numpy import Bytes, Floats, Int64s, Uint32s
from softlabels.compiled import compiled
from softlabels.memory import empty

_GOOD, _BEYOND, _MISFIT = 0, 1, 2


class Unpacked(NamedTuple):
    """Of N positions.

    Attributes:
        ids, log_probs: int64 and float32, (N, k), 0 and −∞ where unused.
        log_tails: float32, (N, temperatures).
        logsumexps: float32, (N,); empty where they are not known.
        hard: the hard labels' log-probs, float32, (N,), NaN where there is none.
    """

    ids: Int64s
    log_probs: Floats
    log_tails: Floats
    logsumexps: Floats
    hard: Floats


def compact(
    opened: Opened,
    k: int,
    *,
    of_rests: int,
    of_rank: Uint32s,
    tails: int,
    whole: int,
    logits_known: bool,
) -> Unpacked:
    """Labels of decompressed records.

    Args:
        k: entries at a position, at most.
        of_rests: planes of what is left of large gaps, at most three.
        of_rank: the class id of each rank, (V,).
        tails: log tails at a position.
        whole: which of them is at T = 1.
        logits_known: whether there are logsumexps.

    Raises:
        CorruptShardError: a rank is not below V, or counts do not fit their record.
    """
    shapes = opened.shapes
    rows, most = int(shapes[:, 1].sum()), int(shapes[:, 2].max(initial=0))
    found = Unpacked(
        empty((rows, k), np.int64),
        empty((rows, k), np.float32),
        np.empty((rows, tails), np.float32),
        np.empty(rows if logits_known else 0, np.float32),
        np.empty(rows, np.float32),
    )
    state = _unpack(
        opened.data,
        shapes,
        of_rests,
        whole,
        (of_rank, *_tables(), code_log_tails(), code_log_kept()),
        # Plain: of a named tuple numba asks Python for the type at every call.
        tuple(found),
        tuple(empty((3, most + 1), np.uint32)),
    )
    if state != _GOOD:
        raise beyond() if state == _BEYOND else misfit()
    return found


@cache
def _tables() -> tuple[Int64s, Floats]:
    """Weights and logs of the codes from a floor on: codes go round at 256, as bytes do."""
    return np.tile(code_weights(), 2), np.tile(code_logs(), 2)


@compiled
def _unpack(
    records: Bytes,
    shapes: Int64s,
    of_rests: int,
    whole: int,
    tables: tuple[Uint32s, Int64s, Floats, Floats, NDArray[np.float64]],
    found: tuple[Int64s, Floats, Floats, Floats, Floats],
    scratch: tuple[Uint32s, Uint32s, Uint32s],
) -> int:
    of_rank, weights, logs, tail_logs, log_kept = tables
    ids, log_probs, log_tails, logsumexps, hard = found
    k, tails, known = ids.shape[1], log_tails.shape[1], len(logsumexps) > 0
    place, row = 0, 0
    for record in range(len(shapes)):
        size, positions, entries, large, ragged = shapes[record]
        data = records[place : place + size]
        place += size
        stop, at = row + positions, entries + large * of_rests
        codes, scalars = data[at : at + entries], data[at + entries :]
        floors, planes = scalars[:positions], scalars[positions : (1 + tails) * positions]
        rest = scalars[(1 + tails) * positions :]
        if known:
            _logsumexps(rest, logsumexps[row:stop])
            rest = rest[4 * positions :]
        _hard(rest, hard[row:stop])
        counts = _counts(rest[4 * positions :], positions, k, ragged)
        if counts.sum() != entries or (counts > k).any():
            return _MISFIT
        if not steps(data[:entries], data[entries:at], large, of_rests, scratch):
            return _BEYOND
        if not _ids(scratch[0], counts, of_rank, ids[row:stop]):
            return _BEYOND
        totals = _logs(codes, counts, floors, (weights, logs), log_probs[row:stop])
        kept = planes[whole * positions :][:positions]
        _shift(totals, counts, log_kept[kept], log_probs[row:stop])
        for tail in range(tails):
            plane = planes[tail * positions :][:positions]
            for i in range(positions):
                log_tails[row + i, tail] = tail_logs[plane[i]]
        row = stop
    return _GOOD


@compiled
def _counts(planes: Bytes, positions: int, k: int, ragged: int) -> Int64s:
    counts = np.full(positions, k)
    if ragged:
        for i in range(positions):
            counts[i] = _four(planes, positions, i)
    return counts


@compiled
def _ids(taken: Uint32s, counts: Int64s, of_rank: Uint32s, out: Int64s) -> bool:
    # Unsigned, and slices of one position: indices that might count from the end, and indexing the
    # whole arrays, cost half as much again.
    classes, at = np.uint64(len(of_rank)), 0
    for row in range(len(counts)):
        held, found = taken[at : at + counts[row]], out[row]
        ranks = np.uint64(0)
        for i in range(len(held)):
            ranks += np.uint64(held[i])
        if ranks > classes:  # ranks ascend: the last one is the largest
            return False
        rank = np.uint64(0) - np.uint64(1)
        for i in range(len(held)):
            rank += np.uint64(held[i])
            found[i] = of_rank[rank]
        found[len(held) :] = 0
        at += counts[row]
    return True


@compiled
def _logs(
    codes: Bytes, counts: Int64s, floors: Bytes, tables: tuple[Int64s, Floats], out: Floats
) -> Int64s:
    # Of the values, and what they sum to. In a loop with the ids the sums take half as much again.
    weights, logs = tables
    totals, at = np.empty(len(counts), np.int64), 0
    for row in range(len(counts)):
        held, found = codes[at : at + counts[row]], out[row]
        weight, log = weights[np.int64(floors[row]) :], logs[np.int64(floors[row]) :]
        total = np.int64(0)
        for i in range(len(held)):
            total += weight[held[i]]
            found[i] = log[held[i]]
        totals[row] = total
        at += counts[row]
    return totals


@compiled
def _shift(totals: Int64s, counts: Int64s, log_kept: NDArray[np.float64], out: Floats) -> None:
    # As `unpack_numpy.shifts`; all at once, since loops around a logarithm wait for it.
    shifts = np.empty(len(totals), np.float32)
    for row in range(len(totals)):
        log_sum = np.log(max(totals[row], np.int64(1)) / 2.0**WEIGHT_BITS)
        shifts[row] = np.float32(log_kept[row] - log_sum)
    for row in range(len(totals)):
        found, shift = out[row], shifts[row]
        for i in range(len(found)):
            found[i] += shift
        found[counts[row] :] = -np.inf


@compiled
def _logsumexps(planes: Bytes, out: Floats) -> None:
    for i in range(len(out)):
        out[i] = (np.float64(_four(planes, len(out), i)) - MIDDLE) / SCALAR_STEPS


@compiled
def _hard(planes: Bytes, out: Floats) -> None:
    for i in range(len(out)):
        code = _four(planes, len(out), i)
        value = np.float32((FIRST - np.float64(code)) / SCALAR_STEPS)
        value = np.float32(-np.inf) if code == MINUS_INFINITY else value
        out[i] = np.float32(np.nan) if code == NULL else value


@compiled
def _four(planes: Bytes, length: int, i: int) -> np.uint32:
    """The number whose bytes are the i-th of four planes, lowest first."""
    low = np.uint32(planes[i]) | np.uint32(planes[length + i]) << np.uint32(8)
    high = np.uint32(planes[2 * length + i]) | np.uint32(planes[3 * length + i]) << np.uint32(8)
    return low | high << np.uint32(16)

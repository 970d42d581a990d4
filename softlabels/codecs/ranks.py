"""Entries to gaps of sorted ranks, each with its code: what a packed codec writes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs.idtable import IdTable
from softlabels.errors import CorruptShardError, InputError

Unsigned = NDArray[Any]

# What a gap's byte says of a gap that has no place in it.
LARGE = 255


@dataclass(frozen=True)
class Gaps:
    """Ranks of entries, each less the one before it at its position less 1.

    One in four to six is too large for a byte. To write them apart takes a fiftieth to a twentieth
    less than to write two bytes of each, and a third fewer bytes are unpacked.

    Attributes:
        first: the smaller of the gap and 255, uint8, (E,).
        rest: of each entry where that is 255, the gap less 255, uint32, (X,).
    """

    first: NDArray[np.uint8]
    rest: NDArray[np.uint32]

    @classmethod
    def of(cls, gaps: NDArray[np.uint32]) -> Self:
        """From gaps, (E,)."""
        large = np.flatnonzero(gaps >= LARGE)
        return cls(np.minimum(gaps, LARGE).astype(np.uint8), gaps.take(large) - np.uint32(LARGE))


def rest_width(classes: int) -> int:
    """Bytes that the rest of a gap between V ranks may take; 0 where it can only be 0."""
    return -(-max(0, classes - 1 - LARGE).bit_length() // 8)


def sort_entries(
    ids: NDArray[np.int64], codes: Unsigned, used: NDArray[np.bool_], table: IdTable
) -> tuple[NDArray[np.int64], Gaps, Unsigned]:
    """Entries of N positions by ascending rank.

    Args:
        ids, codes, used: (N, k).

    Returns:
        used entries of each position, (N,); of these E entries, one position after another, the
        gaps and the codes, (E,).

    Raises:
        InputError: an id is not below the codec's classes, or stands twice at a position.
    """
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= table.classes):
        raise InputError(
            f"class ids from {int(ids.min())} to {int(ids.max())} are not within the codec's "
            f"0 … {table.classes - 1}"
        )
    # One sort of numbers in place of a sort of indices: the rank above, the code below.
    bits = 8 * codes.itemsize
    kind: Any = np.uint32 if (table.classes - 1).bit_length() + bits <= 32 else np.uint64
    both: Unsigned = table.to_ranks(ids).astype(kind, copy=False)
    both <<= kind(bits)
    both |= codes
    full = bool(used.all())
    if not full:
        both[~used] = np.iinfo(kind).max
    both.sort(axis=-1)
    split = _split()
    if split is not None and full and both.dtype == np.uint32 and codes.dtype == np.uint8:
        first, rest, sorted_codes, largest = split(both, bits)
        _check_gaps(largest, table)
        return np.full(len(ids), ids.shape[1]), Gaps(first, rest), sorted_codes
    ranks = (both >> kind(bits)).astype(np.uint32)
    sorted_codes = both.astype(codes.dtype)
    gaps = np.empty_like(ranks)
    gaps[:, 0] = ranks[:, 0]
    np.subtract(ranks[:, 1:], ranks[:, :-1], out=gaps[:, 1:])
    gaps[:, 1:] -= np.uint32(1)
    counts = used.sum(-1, dtype=np.int64)
    if full:
        gaps, sorted_codes = gaps.ravel(), sorted_codes.ravel()
    else:
        kept = np.arange(ids.shape[1]) < counts[:, None]
        gaps, sorted_codes = gaps[kept], sorted_codes[kept]
    _check_gaps(int(gaps.max(initial=0)), table)
    return counts, Gaps.of(gaps), sorted_codes


def _check_gaps(largest: int, table: IdTable) -> None:
    # Of two equal ranks the second's gap would be −1.
    if largest >= table.classes:
        raise InputError("a class is kept twice at one position")


@cache
def _split() -> Callable[..., Any] | None:
    """What takes sorted entries apart in one pass, where numba is installed."""
    try:
        from softlabels.codecs.gaps_numba import split
    except (ImportError, RuntimeError):  # not installed, or nowhere to keep what it compiles
        return None
    return split


def less_floor(codes: Unsigned, counts: NDArray[np.int64]) -> tuple[Unsigned, Unsigned]:
    """Codes less the smallest one of their position, (E,), and these floors, (N,); 0 if empty."""
    floors = np.zeros(len(counts), codes.dtype)
    some = counts > 0
    if some.any():
        starts = np.cumsum(counts) - counts
        floors[some] = np.minimum.reduceat(codes, starts[some])
    return codes - np.repeat(floors, counts), floors


def beyond() -> CorruptShardError:
    """What unpacking raises at a rank that is not below V, or too few or too many large gaps."""
    return CorruptShardError(
        "a class id is beyond the classes of the codec, or large gaps are too few or too many"
    )

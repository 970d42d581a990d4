"""Which records an epoch delivers: all or some, every part of a sample or one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.inputs.digests import key_hashes
from softlabels.labelset.reader import LabelSet

Int64s = NDArray[np.int64]
Uint64s = NDArray[np.uint64]
Parts = Literal["all", "one", "cycle"]

# Rows without labels in a block of the order: about as many as a row group has records.
_ROWS = 32


class Choice(Protocol):
    """The record that stands for each item of an order.

    Attributes:
        bounds: items of each row group, as an `Order` takes them.
        name: what a saved place depends on.
    """

    @property
    def bounds(self) -> Int64s: ...

    @property
    def name(self) -> bytes: ...

    def __call__(self, items: Int64s, epoch: int) -> Int64s: ...


@dataclass(frozen=True)
class Everything:
    """Every record of a set; nothing as long as the set is held.

    Attributes:
        bounds: the first record of each row group, then their number.
    """

    bounds: Int64s
    name = b""

    def __call__(self, items: Int64s, epoch: int) -> Int64s:
        return items


@dataclass(frozen=True)
class Some:
    """Certain records.

    Attributes:
        records: their numbers, ascending.
    """

    bounds: Int64s
    records: Int64s

    @property
    def name(self) -> bytes:
        return self.records.tobytes()

    def __call__(self, items: Int64s, epoch: int) -> Int64s:
        return self.records[items]


@dataclass(frozen=True)
class OnePart:
    """One record of each sample, another one in every epoch.

    Attributes:
        records: their numbers, ascending, those of a sample one after another.
        starts: sample i has the records starts[i] up to starts[i + 1] of these, (samples + 1,).
        hashes: of the samples' keys, (samples,); None takes the parts in turn.
        seed: changes what is drawn.
    """

    bounds: Int64s
    records: Int64s
    starts: Int64s
    hashes: Uint64s | None
    seed: int

    @property
    def name(self) -> bytes:
        kind = b"cycle" if self.hashes is None else f"one {self.seed} ".encode()
        return kind + self.records.tobytes()

    def __call__(self, items: Int64s, epoch: int) -> Int64s:
        first = self.starts[items]
        counts = self.starts[items + 1] - first
        if self.hashes is None:
            return self.records[first + epoch % counts]
        picked: Int64s = first + drawn(self.hashes[items], counts, epoch, self.seed)
        return self.records[picked]


@dataclass(frozen=True)
class AndUnlabelled:
    """A choice of records, and rows that have no labels: row i of these is −1 − i.

    Attributes:
        choice: of the records.
        rows: how many such rows there are.
    """

    choice: Choice
    rows: int

    @property
    def bounds(self) -> Int64s:
        known = self.choice.bounds
        ends = np.minimum(np.arange(_ROWS, self.rows + _ROWS, _ROWS), self.rows)
        return np.concatenate([known, known[-1] + ends])

    @property
    def name(self) -> bytes:
        return self.choice.name + f"and {self.rows} rows".encode()

    def __call__(self, items: Int64s, epoch: int) -> Int64s:
        known = int(self.choice.bounds[-1])
        found = known - 1 - items
        labelled = items < known
        found[labelled] = self.choice(items[labelled], epoch)
        return found


def drawn(hashes: Uint64s, counts: Int64s, epoch: int, seed: int) -> Int64s:
    """A number below each count: a function of (seed, epoch, key) alone, whatever else is loaded.

    The finaliser of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators",
    OOPSLA 2014).
    """
    gamma, bits = 0x9E3779B97F4A7C15, (1 << 64) - 1
    offset = np.uint64((seed * 0xD1342543DE82EF95 + (epoch + 1) * gamma) & bits)
    with np.errstate(over="ignore"):
        x = hashes + offset
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x % counts.astype(np.uint64)).astype(np.int64)


def choose(
    labels: LabelSet, records: Int64s | None, *, parts: Parts, seed: int | None
) -> Everything | Some | OnePart:
    """The choice among a set's records.

    Args:
        records: their numbers, ascending; None for all.
    """
    if parts not in ("all", "one", "cycle"):
        raise InputError(f"parts is {parts!r}; it is 'all', 'one' or 'cycle'")
    if records is not None and len(records) == len(labels):
        records = None
    starts = labels.row_groups.bounds
    if parts == "all":
        if records is None:
            return Everything(starts)
        return Some(_bounds(records, starts), records)
    if records is None:
        records = np.arange(len(labels))
    keys = labels.columns(["key"])["key"].take(records).combine_chunks()
    hashes = key_hashes(keys)
    first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
    ends = np.append(first, len(records))
    bounds = _bounds(records[first], starts)
    return OnePart(bounds, records, ends, hashes[first] if parts == "one" else None, seed or 0)


def numbers(labels: LabelSet, records: Sequence[int]) -> Int64s:
    """A user's record numbers, ascending.

    Raises:
        InputError: they are no different numbers of records.
    """
    given: Any = np.asarray(records)
    chosen = np.unique(given)
    if len(chosen) and not (
        chosen.dtype.kind in "iu"
        and given.shape == chosen.shape
        and 0 <= chosen[0] <= chosen[-1] < len(labels)
    ):
        raise InputError(
            f"records must be different numbers from 0 to {len(labels) - 1}, the records of the set"
        )
    return chosen.astype(np.int64)


def _bounds(records: Int64s, starts: Int64s) -> Int64s:
    """How many of some records lie before each row group, without those that hold none."""
    bounds = np.searchsorted(records, starts)
    kept = [0, *(stop for start, stop in pairwise(bounds.tolist()) if stop > start)]
    return np.asarray(kept, np.int64)

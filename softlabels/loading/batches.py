"""An order cut into batches: as it comes, by length, or packed into rows of one length."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from softlabels.loading.order import permutation

Int64s = NDArray[np.int64]
C = TypeVar("C")
T = TypeVar("T")

# Batches that are arranged together. More waste less on padding, and reach further for records.
ARRANGED_BATCHES = 64


@dataclass(frozen=True)
class Place:
    """How far an epoch has come.

    Attributes:
        seen: items before the chunk that is being delivered.
        batch: batches of that chunk that were delivered.
    """

    seen: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Batch:
    """What a batch is made of.

    Attributes:
        items: places in a chunk, or what stands there, (R,) int64.
        rows: row i has the items rows[i] up to rows[i + 1]; None where each has a row.
    """

    items: Int64s
    rows: Int64s | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.items) if self.rows is None else len(self.rows) - 1


class Arrangement(Protocol):
    """How a chunk of items becomes batches: a pure function of their lengths and its place.

    Attributes:
        batch_size: rows in a batch.
        chunk: items that are arranged together.
        name: what a saved place depends on.
        rows_are_items: a row holds one item, so that the number of batches follows from theirs.
    """

    rows_are_items: ClassVar[bool]

    @property
    def batch_size(self) -> int: ...

    @property
    def chunk(self) -> int: ...

    @property
    def name(self) -> str: ...

    def __call__(self, lengths: Int64s, *place: int) -> list[Batch]:
        """Batches of places in the chunk.

        Args:
            lengths: tokens of each item, (items,).
            place: numbers that no other chunk has.
        """
        ...


@dataclass(frozen=True)
class AsTheyCome:
    """Items in their order, `batch_size` at a time; their lengths do not matter."""

    batch_size: int
    rows_are_items: ClassVar[bool] = True
    name: ClassVar[str] = ""

    @property
    def chunk(self) -> int:
        return self.batch_size

    def __call__(self, lengths: Int64s, *place: int) -> list[Batch]:
        return [Batch(np.arange(len(lengths)))]


@dataclass(frozen=True)
class ByLength:
    """Items of about one length in a batch, the batches of a chunk in random order.

    Attributes:
        seed: of the batches' order; None leaves the shortest first.
    """

    batch_size: int
    seed: int | None
    rows_are_items: ClassVar[bool] = True

    @property
    def chunk(self) -> int:
        return ARRANGED_BATCHES * self.batch_size

    @property
    def name(self) -> str:
        return f"by length {self.batch_size}"

    def __call__(self, lengths: Int64s, *place: int) -> list[Batch]:
        order = np.argsort(lengths, kind="stable")
        starts = range(0, len(order), self.batch_size)
        made = [Batch(order[at : at + self.batch_size]) for at in starts]
        return made if self.seed is None else _shuffled(made, self.seed, *place)


@dataclass(frozen=True)
class Packed:
    """Several items in a row of `length` tokens: the longest first, each where it fits best.

    Attributes:
        length: tokens in a row; no item has more.
        mean: tokens of an item, on average.
        seed: of the rows' order; None leaves those first that were begun first.
    """

    batch_size: int
    length: int
    mean: float
    seed: int | None
    rows_are_items: ClassVar[bool] = False

    @property
    def chunk(self) -> int:
        rows = ARRANGED_BATCHES * self.batch_size
        return max(rows, int(rows * self.length / max(1.0, self.mean)))

    @property
    def name(self) -> str:
        return f"packed {self.batch_size} {self.length}"

    def __call__(self, lengths: Int64s, *place: int) -> list[Batch]:
        rows = self._fill(lengths)
        if self.seed is not None:
            rows = _shuffled(rows, self.seed, *place)
        starts = range(0, len(rows), self.batch_size)
        return [_of_rows(rows[at : at + self.batch_size]) for at in starts]

    def _fill(self, lengths: Int64s) -> list[list[int]]:
        """Best fit, decreasing: never above 11/9 of the fewest rows, and some.

        Johnson et al., "Worst-case performance bounds for simple one-dimensional packing
        algorithms", SIAM J. Comput. 3 (1974).
        """
        order = np.argsort(-lengths, kind="stable")
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # tokens left and row, ascending
        for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
            at = bisect.bisect_left(room, (length, -1))
            if at == len(room):
                rows.append([])
                left, row = self.length, len(rows) - 1
            else:
                left, row = room.pop(at)
            rows[row].append(item)
            bisect.insort(room, (left - length, row))
        return rows


def _shuffled(made: list[T], seed: int, *place: int) -> list[T]:
    # One number more than the order's own places have, so that the two are independent.
    return [made[i] for i in permutation(len(made), seed, *place, 0)]


def _of_rows(rows: list[list[int]]) -> Batch:
    ends = np.cumsum([0, *map(len, rows)])
    return Batch(np.asarray([item for row in rows for item in row], np.int64), ends)


def arranged(
    chunks: Iterator[tuple[C, Int64s]], arrangement: Arrangement, epoch: int, place: Place
) -> Iterator[tuple[C, Batch, Place]]:
    """The batches of an epoch from a place on.

    Args:
        chunks: from `place.seen` on, each with the lengths of its items.

    Yields:
        the chunk, a batch of places in it, and the place after it.
    """
    start, skip = place.seen, place.batch
    for chunk, lengths in chunks:
        made = arrangement(lengths, epoch, start)
        after = start + len(lengths)
        for number, batch in list(enumerate(made, 1))[skip:]:
            yield chunk, batch, Place(after) if number == len(made) else Place(start, number)
        start, skip = after, 0


def regroup(parts: Iterator[Int64s], size: int) -> Iterator[Int64s]:
    """Arrays of one size, the last one shorter."""
    held = np.empty(0, np.int64)
    for part in parts:
        held = np.concatenate([held, part])
        whole = len(held) - len(held) % size
        yield from (held[a:b] for a, b in pairwise(range(0, whole + 1, size)))
        held = held[whole:]
    if len(held):
        yield held

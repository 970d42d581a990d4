"""Row groups of a set: where each lies, and which one a record is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class RowGroup:
    """A row group's place in the set.

    Attributes:
        shard: index into `LabelSet.receipts`.
        group: row group within the shard.
        start: number of its first record.
        rows: how many records it holds.
    """

    shard: int
    group: int
    start: int
    rows: int


class RowGroups(Sequence[RowGroup]):
    """Every row group that holds records, in record order; 8 bytes each.

    Args:
        rows: records of every row group, empty ones too, (all,).
        counts: how many of these each shard has, (shards,).

    Attributes:
        bounds: the first record of each, then the number of records, (row groups + 1,).
    """

    def __init__(self, rows: Int64s, counts: Int64s) -> None:
        self._firsts: Int64s = np.cumsum(counts) - counts
        filled = rows > 0
        self._filled = None if filled.all() else np.flatnonzero(filled)
        self.bounds: Int64s = np.append(0, np.cumsum(rows[filled]))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def records(self) -> int:
        """In all of them."""
        return int(self.bounds[-1])

    @overload
    def __getitem__(self, index: int) -> RowGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowGroup]: ...
    def __getitem__(self, index: int | slice) -> RowGroup | list[RowGroup]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row group {index} of {len(self)}")
        place = index % len(self)
        number = place if self._filled is None else int(self._filled[place])
        # A shard without any begins where the next one does.
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        start, stop = (int(bound) for bound in self.bounds[place : place + 2])
        return RowGroup(shard, number - int(self._firsts[shard]), start, stop - start)

    def of(self, records: Int64s) -> Int64s:
        """Which row group each of these records is in."""
        found: Int64s = np.searchsorted(self.bounds[:-1], records, side="right") - 1
        return found

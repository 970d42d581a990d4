"""The order of records: a pure function of (seed, epoch, place)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

# Row groups whose records are mixed with each other, at most. More mix better and cost memory: 16
# of 16,384 positions hold some 500 records of 512 tokens.
MIXED_GROUPS = 16


@dataclass(frozen=True)
class Order:
    """Record numbers of an epoch.

    Shuffled, row groups are permuted, then mixed a few at a time; so each row group is read once,
    and a set of no more row groups than that is shuffled uniformly.

    Attributes:
        groups: the record numbers that each row group contributes, ascending.
        seed: None for the stored order.
        mixed: how many row groups are mixed; no more than fit in memory together.
    """

    groups: Sequence[Int64s]
    seed: int | None
    mixed: int = MIXED_GROUPS

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def numbers(self, epoch: int, *, skip: int = 0) -> Iterator[int]:
        """Record numbers from place `skip` on; earlier row groups are not touched."""
        for window, groups in enumerate(self._windows(epoch)):
            size = sum(map(len, groups))
            if skip >= size:
                skip -= size
                continue
            mixed = np.concatenate(groups)
            if self.seed is not None:
                mixed = mixed[_permutation(size, self.seed, epoch, window)]
            yield from mixed[skip:].tolist()
            skip = 0

    def _windows(self, epoch: int) -> Iterator[list[Int64s]]:
        if self.seed is None:
            yield from ([group] for group in self.groups)
            return
        order = _permutation(len(self.groups), self.seed, epoch)
        for start in range(0, len(order), self.mixed):
            yield [self.groups[index] for index in order[start : start + self.mixed]]


def _permutation(size: int, seed: int, *place: int) -> Int64s:
    """Independent for every place: as a spawn key, (1,) and (1, 0) are two; as entropy, one."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place))
    # NumPy keeps the raw stream for ever, but may change what Generator.permutation makes of it:
    # a run must resume in the same order after an upgrade.
    return np.argsort(bits.random_raw(size), kind="stable")

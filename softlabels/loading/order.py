"""The order of records: a pure function of (seed, epoch, place)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

# Row groups whose records are mixed with each other. More mix better and cost memory: 16 of
# 16,384 positions hold some 500 records of 512 tokens.
MIXED_GROUPS = 16


@dataclass(frozen=True)
class Order:
    """Record numbers of an epoch.

    Shuffled, row groups are permuted, then mixed 16 at a time; so each row group is read once, and
    a set of up to 16 row groups is shuffled uniformly.

    Attributes:
        groups: the record numbers that each row group contributes, ascending.
        seed: None for the stored order.
    """

    groups: Sequence[Int64s]
    seed: int | None

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
                mixed = np.random.default_rng([self.seed, epoch, window]).permutation(mixed)
            yield from mixed[skip:].tolist()
            skip = 0

    def _windows(self, epoch: int) -> Iterator[list[Int64s]]:
        if self.seed is None:
            yield from ([group] for group in self.groups)
            return
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        for start in range(0, len(order), MIXED_GROUPS):
            yield [self.groups[index] for index in order[start : start + MIXED_GROUPS]]

"""The order of an epoch: a pure function of (seed, epoch, place)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

# Blocks whose items are mixed with each other, at most. Of a batch of 8 out of 64 blocks 7.6 stand
# in different ones, where a uniform shuffle has 8; of 16 blocks, 6.5. Row groups of 16,384
# positions at k = 64 are 1.7 MB each.
MIXED_BLOCKS = 64
# Blocks that are looked ahead to in the stored order, where each is a window.
STORED_AHEAD = 8


@dataclass(frozen=True)
class Order:
    """Places of the items 0 … n − 1, which lie in blocks that are read as one.

    Shuffled, the blocks of the whole set are permuted, and then the items of a few blocks at a
    time: each block is read once, a set of no more blocks than that is shuffled uniformly, and
    nothing as long as the set is held in memory.

    Attributes:
        bounds: block i holds the items bounds[i] up to bounds[i + 1], (blocks + 1,) int64.
        seed: None for the stored order.
        mixed: how many blocks are mixed; no more than fit in memory together.
    """

    bounds: Int64s
    seed: int | None
    mixed: int = MIXED_BLOCKS

    def __len__(self) -> int:
        return int(self.bounds[-1])

    @property
    def ahead(self) -> int:
        """How many windows to look ahead: about as many blocks as are mixed, or a few."""
        return STORED_AHEAD if self.seed is None else 1

    def windows(self, epoch: int, *, skip: int = 0) -> Iterator[Int64s]:
        """The items from place `skip` on, a few blocks at a time; earlier ones are not touched."""
        for window, blocks in enumerate(self._blocks(epoch)):
            starts, stops = self.bounds[blocks], self.bounds[blocks + 1]
            size = int((stops - starts).sum())
            if skip >= size:
                skip -= size
                continue
            items = np.concatenate([np.arange(*ends) for ends in zip(starts, stops, strict=True)])
            if self.seed is not None:
                items = items[permutation(size, self.seed, epoch, window)]
            yield items[skip:]
            skip = 0

    def _blocks(self, epoch: int) -> Iterator[Int64s]:
        """The blocks of each window."""
        count = len(self.bounds) - 1
        if self.seed is None:
            yield from np.arange(count).reshape(-1, 1)
            return
        order = permutation(count, self.seed, epoch)
        for start in range(0, count, self.mixed):
            yield order[start : start + self.mixed]


def permutation(size: int, seed: int, *place: int) -> Int64s:
    """Of 0 … size − 1, another one for every place."""
    # As a spawn key, (1,) and (1, 0) are two places; as entropy, one.
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place))
    # NumPy keeps the raw stream for ever, but may change what Generator.permutation makes of it:
    # a run must resume in the same order after an upgrade.
    return np.argsort(bits.random_raw(size), kind="stable")

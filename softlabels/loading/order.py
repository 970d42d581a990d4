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
# More blocks are permuted a window at a time: these take 0.8 s and 80 MB at the start of an epoch.
_PERMUTED_AT_ONCE = 1 << 22
_ROUNDS = 6
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
        if count > _PERMUTED_AT_ONCE:
            for start in range(0, count, self.mixed):
                some = np.arange(start, min(start + self.mixed, count))
                yield permuted(some, count, self.seed, epoch)
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


def permuted(places: Int64s, size: int, seed: int, *place: int) -> Int64s:
    """What stands at these places of a permutation of 0 … size − 1, of which nothing else is made.

    A Feistel network over the next power of four, walked along until it is below `size`: at most
    four steps on average (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    bits = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    keys = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)).random_raw(_ROUNDS)
    found = places.astype(np.uint64)
    beyond = np.ones(len(found), bool)
    while beyond.any():
        left, right = found[beyond] >> bits, found[beyond] & mask
        for key in keys:
            with np.errstate(over="ignore"):
                mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
                mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        found[beyond] = (left << bits) | right
        beyond = found >= np.uint64(size)
    return found.astype(np.int64)

"""The key index: which records have a key, in 16 bytes a record, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.inputs.digests import key_hashes

_NUMBER = np.dtype("<u8")


class KeyIndex:
    """From a key to the few records that may have it; each is to be compared by the key itself.

    Args:
        hashes: of the keys, uint64, ascending, (R,).
        records: the number of the record of each, ascending where hashes are equal, (R,).
    """

    def __init__(self, hashes: NDArray[np.uint64], records: NDArray[np.uint64]) -> None:
        self._hashes, self._records = hashes, records

    @classmethod
    def build(cls, keys: Iterable[pa.Array | pa.ChunkedArray]) -> Self:
        """From the keys of every record, in record order."""
        hashes = np.concatenate([np.empty(0, np.uint64), *map(key_hashes, keys)])
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.uint64))

    @classmethod
    def map(cls, path: Path) -> Self:
        """The index in a file; only the pages that a search touches are read."""
        empty = not path.stat().st_size  # which cannot be mapped
        numbers = np.empty(0, _NUMBER) if empty else np.memmap(path, _NUMBER, mode="r")
        half = len(numbers) // 2
        return cls(numbers[:half], numbers[half:])

    def to_bytes(self) -> bytes:
        """The file: all hashes, then all record numbers, little-endian uint64."""
        return bytes(
            self._hashes.astype(_NUMBER).tobytes() + self._records.astype(_NUMBER).tobytes()
        )

    def match(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every pair of a place in `hashes` and a record whose key has that hash.

        Returns:
            places, ascending, and records, ascending where places are equal; both (pairs,).
        """
        first = np.searchsorted(self._hashes, hashes)
        counts = np.searchsorted(self._hashes, hashes, side="right") - first
        places = np.repeat(np.arange(len(hashes)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self._records[first[places] + within].astype(np.int64)

    def candidates(self, key: pa.Array) -> list[int]:
        """Records, ascending, whose key has the same hash as this array's only one."""
        value = key_hashes(key)[0]
        first = np.searchsorted(self._hashes, value)
        last = np.searchsorted(self._hashes, value, side="right")
        found: list[int] = self._records[first:last].tolist()
        return found

"""The key index: which records have a key, in 16 bytes a record, memory-mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.inputs.digests import key_hashes

_NUMBER = np.dtype("<u8")
_PAIR = np.dtype([("hash", _NUMBER), ("record", _NUMBER)])
# Records that are sorted in memory together, at 16 bytes and as much again for the order.
_SORTED_RECORDS = 1 << 19
# Keys that are hashed together at least, or row groups, of which some may be empty.
_HASHED_KEYS = 256
# Records that are held before they are put to those of like hashes.
_HELD_RECORDS = 1 << 18
# Files open at a time, of which a process has about a thousand.
_MAX_BITS = 9


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


def write_index(
    file: Path, keys: Iterable[pa.Array | pa.ChunkedArray], *, records: int, scratch: Path
) -> None:
    """Write the index of any number of records, in memory that does not grow with them.

    Records are first put into files by the highest bits of their hash, each of which is then sorted
    by itself: 16 bytes a record, written twice. A key of very many records is in one file.

    Args:
        file: is made.
        keys: of every record, in record order.
        records: how many there are.
        scratch: a folder for as many bytes again, for a while.

    Raises:
        ValueError: the keys are not so many.
    """
    bits = min(_MAX_BITS, max(0, -(-records // _SORTED_RECORDS) - 1).bit_length())
    with ExitStack() as stack:
        parts = [
            stack.enter_context(tempfile.TemporaryFile(dir=scratch, buffering=0))
            for _ in range(1 << bits)
        ]
        found = sum(_part(pairs, parts, bits) for pairs in _pairs(keys))
        if found != records:
            raise ValueError(f"{file}: {found} keys came, of {records} records")
        with file.open("wb") as hashes, file.open("r+b") as numbers:
            numbers.seek(records * _NUMBER.itemsize)
            for part in parts:
                pairs = _read(part)
                sorted_by = pairs["hash"].copy()  # in one piece it is sorted faster
                order = np.argsort(sorted_by, kind="stable")
                hashes.write(sorted_by[order].tobytes())
                numbers.write(pairs["record"][order].tobytes())
                part.close()


def _pairs(keys: Iterable[pa.Array | pa.ChunkedArray]) -> Iterator[NDArray[np.void]]:
    """Hash and number of every record, many at a time."""
    # One array of all: an array for each of many short row groups takes ten times their bytes.
    held = np.empty(_HELD_RECORDS, np.uint64)
    size = start = 0
    for some in _together(keys):
        hashes = key_hashes(some)
        if size + len(hashes) > len(held):
            yield _numbered(held[:size], start)
            start, size = start + size, 0
        if len(hashes) > len(held):
            yield _numbered(hashes, start)
            start += len(hashes)
        else:
            held[size : size + len(hashes)] = hashes
            size += len(hashes)
    yield _numbered(held[:size], start)


def _together(keys: Iterable[pa.Array | pa.ChunkedArray]) -> Iterator[pa.ChunkedArray]:
    """Keys of many short row groups as one array: a call of NumPy costs as much as some keys."""
    held: list[pa.Array] = []
    rows = 0
    for some in keys:
        held += some.chunks if isinstance(some, pa.ChunkedArray) else [some]
        rows += len(some)
        if max(rows, len(held)) >= _HASHED_KEYS:
            yield pa.chunked_array(held)
            held, rows = [], 0
    if held:
        yield pa.chunked_array(held)


def _numbered(hashes: NDArray[np.uint64], start: int) -> NDArray[np.void]:
    pairs = np.empty(len(hashes), _PAIR)
    pairs["hash"], pairs["record"] = hashes, np.arange(start, start + len(hashes))
    return pairs


def _part(pairs: NDArray[np.void], parts: Sequence[IO[bytes]], bits: int) -> int:
    """Put pairs into the file of their hash's highest bits, in order; returns how many."""
    # Of a shift by all 64 bits NumPy makes 0: one file has them all.
    of = (pairs["hash"] >> np.uint64(64 - bits)).astype(np.uint16)
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of, minlength=len(parts)))
    for part, some in zip(parts, np.split(pairs[order], ends[:-1]), strict=True):
        part.write(some.tobytes())
    return len(pairs)


def _read(part: IO[bytes]) -> NDArray[np.void]:
    part.seek(0)
    return np.fromfile(part, _PAIR)

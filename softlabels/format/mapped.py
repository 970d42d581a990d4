"""A file's bytes, and a binary column's values, where they lie: nothing is copied.

All processes that map a file share its pages, which the kernel keeps and gives up as it sees fit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Smaller columns are copied: it takes no longer, and a process has 65,530 mappings.
_LEAST_BYTES = 1 << 16
# Of Arrow's binary views: a value up to this long has no place but in the view itself.
_INLINE = 12
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<u4"), ("buffer", "<i4"), ("start", "<i4")])
# What Parquet calls things: a page of data, values as they are; and Thrift's types of a field.
_DATA_PAGE, _PLAIN = 0, 0
_TRUE, _FALSE, _NUMBERS, _STRUCT = 1, 2, (4, 5, 6), 12


class Piece(NamedTuple):
    """Bytes start … stop − 1 of a file, and their digest."""

    start: int
    stop: int
    digest: str


class Sparse(Protocol):
    """A file of which some ranges are here, and others come when they are asked for."""

    @property
    def buffer(self) -> pa.Buffer:
        """Its bytes; of a range that is not here, zeros."""

    @property
    def dropped(self) -> bool:
        """Whether what is brought helps nobody else."""

    def bring(self, pieces: Sequence[Piece], digest: Callable[[memoryview], str]) -> None:
        """Have those that are not here; what cannot be had with its digest stays away."""


class Mapped:
    """A file, mapped to be read; it takes no file descriptor.

    Attributes:
        buffer: its bytes. Those of a file that was replaced or removed stay what they were.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.memory_map(str(path)) as file:
            self.buffer: pa.Buffer = file.read_buffer()
        self._file = _identity(os.stat(path))

    @property
    def cut_to(self) -> int | None:
        """Its bytes if it was cut in place: to read what is gone would end the process."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        if found.st_size < self.buffer.size and _identity(found) == self._file:
            return found.st_size
        return None


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def values_in_place(file: pa.Buffer, chunk: pq.ColumnChunkMetaData) -> pa.Array | None:
    """A large binary column of a row group as Arrow's binary views of the file.

    Args:
        chunk: of a column that is neither nullable nor nested.

    Returns:
        None where it does not lie there as values one after another, or is small, or damaged.
    """
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    as_written = (chunk.physical_type, chunk.compression) == ("BYTE_ARRAY", "UNCOMPRESSED")
    if not as_written or chunk.has_dictionary_page or size < _LEAST_BYTES:
        return None
    held = file.slice(start, size)
    try:
        views = _views(memoryview(held).cast("B"), chunk.num_values)
    except (_Unlike, IndexError, struct.error):
        return None
    return pa.Array.from_buffers(pa.binary_view(), len(views), [None, pa.py_buffer(views), held])


class _Unlike(Exception):
    """The bytes are something else than pages of plain values."""


def _views(data: memoryview, count: int) -> np.ndarray[Any, Any]:
    """Where each value of a column chunk stands: a page's header, then each after its length."""
    places: list[tuple[int, int, int, int]] = []
    length_and_prefix = struct.Struct("<iI")
    at = 0
    while at < len(data):
        header, at = _thrift(data, at)
        page = header.get(5)
        if header.get(1) != _DATA_PAGE or not isinstance(page, dict) or page.get(2) != _PLAIN:
            raise _Unlike
        stop = at + header[3]
        for _ in range(page[1]):
            length, prefix = length_and_prefix.unpack_from(data, at)
            if length <= _INLINE:
                raise _Unlike
            places.append((length, prefix, 0, at + 4))
            at += 4 + length
        if at != stop:
            raise _Unlike
    if len(places) != count or at != len(data):
        raise _Unlike
    return np.array(places, _VIEW)


def _thrift(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Truths, numbers and structs of a struct in Thrift's compact protocol, and where it ends.

    Raises:
        _Unlike: it has fields of other types.
    """
    found: dict[int, Any] = {}
    field = 0
    while (first := data[at]) != 0:
        kind, step = first & 15, first >> 4
        at += 1
        field += step
        if kind in (_TRUE, _FALSE):
            found[field] = kind == _TRUE
        elif step and kind in (*_NUMBERS, _STRUCT):
            found[field], at = (_thrift if kind == _STRUCT else _number)(data, at)
        else:
            raise _Unlike
    return found, at + 1


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the sign is the lowest bit."""
    coded = shift = 0
    while True:
        byte = data[at]
        at += 1
        coded |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return coded >> 1 ^ -(coded & 1), at

"""Parquet files whose footer has the digests of their column chunks, so that parts can be checked.

The footer's own digest stands elsewhere, and vouches for the rest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, LabelSetError

KEY = "softlabels.chunk_digests"
_DIGEST_BYTES = 8
# Row groups that were read last; looked up in no order, each is read anew.
_KEPT_GROUPS = 16
_TODO = (
    "run `softlabels verify DIR --repair`, then the same `softlabels precompute` command, to "
    "rebuild it"
)


@dataclass(frozen=True)
class Footer:
    """The end of a file: Parquet metadata, its length and the closing magic.

    Attributes:
        bytes: how many.
        sha256: of them, hex.
    """

    bytes: int
    sha256: str

    @classmethod
    def of(cls, file: pa.NativeFile) -> Footer:
        """The end of this file; raises `ValueError` if it is no Parquet file."""
        size = file.size()
        end = file.read_at(_DIGEST_BYTES, size - _DIGEST_BYTES) if size >= _DIGEST_BYTES else b""
        length = int.from_bytes(end[:4], "little") + _DIGEST_BYTES
        if end[4:] != b"PAR1" or length > size:
            raise ValueError("it does not end as a Parquet file does")
        data = file.read_at(length, size - length)
        return cls(length, hashlib.sha256(data).hexdigest())


def write(draft: Any, tables: Iterable[pa.Table], schema: pa.Schema, **settings: Any) -> None:
    """Write a file without digests, a row group for each table."""
    _write(draft, tables, schema, None, settings)


def sign(draft: pa.NativeFile, final: Any, **settings: Any) -> None:
    """Write a draft again, with the digests of its column chunks in its footer.

    They are known once it is written, and a footer is added to only before: so, twice.
    """
    file = pq.ParquetFile(draft)
    groups = range(file.num_row_groups)
    digests = b"".join(_digests(draft, file.metadata, group) for group in groups).hex()
    tables = (file.read_row_group(group, use_threads=False) for group in groups)
    _write(final, tables, file.schema_arrow, digests, settings)


def _write(
    sink: Any,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    digests: str | None,
    settings: Mapping[str, Any],
) -> None:
    with pq.ParquetWriter(
        sink, schema, write_statistics=False, write_page_checksum=True, **settings
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
        if digests is not None:
            writer.add_key_value_metadata({KEY: digests})


def _digests(source: pa.NativeFile, metadata: pq.FileMetaData, row_group: int) -> bytes:
    group = metadata.row_group(row_group)
    chunks = map(group.column, range(metadata.num_columns))
    return b"".join(_digest(source, chunk) for chunk in chunks)


def _digest(source: pa.NativeFile, chunk: pq.ColumnChunkMetaData) -> bytes:
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    return xxhash.xxh3_64_digest(source.read_at(chunk.total_compressed_size, start))


class DigestedTable:
    """An open file, of which columns and row groups are read and checked as they are asked for.

    It may be read from several threads. Pickled, it is the same file or fails.

    Args:
        source: a path, or bytes that were checked as a whole.
        where: how errors call it.
        footer: what the file has to end with, and be checked by; None for checked bytes.

    Attributes:
        names: of the columns.

    Raises:
        CorruptShardError: it is missing, or not the one that the footer is of.
        LabelSetError: it is no Parquet file.
    """

    def __init__(self, source: Path | bytes, *, where: str, footer: Footer | None) -> None:
        self._made_of = source, where, footer
        self.where, self._lock = where, threading.Lock()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._digests: bytes | None = None
        try:
            # No Python file: one of Arrow's that still lets go of a Python object when the
            # interpreter ends aborts the process. And no map: a file cut in place would, too.
            self._source = (
                pa.BufferReader(source) if isinstance(source, bytes) else pa.OSFile(str(source))
            )
            if footer is not None and Footer.of(self._source) != footer:
                raise self._corrupt("its footer is not the one that the manifest names")
            # Read ahead, it would begin a thread of Arrow's, which does the same.
            self._file = pq.ParquetFile(
                self._source, page_checksum_verification=True, pre_buffer=False
            )
            self.names: list[str] = self._file.schema_arrow.names
        except FileNotFoundError:
            raise self._corrupt("the file is missing") from None
        except CorruptShardError:
            raise
        except ValueError as error:  # ArrowInvalid, too
            if footer is not None:
                raise self._corrupt(str(error)) from None
            raise LabelSetError(f"{where}: cannot be read: {error}") from None
        except (pa.ArrowException, OSError) as error:
            raise LabelSetError(f"{where}: cannot be read: {error}") from None
        self.metadata = self._file.metadata
        if footer is not None:
            self._digests = self._stored_digests()
        rows = [self.metadata.row_group(g).num_rows for g in range(self.metadata.num_row_groups)]
        self.ends: NDArray[np.int64] = np.cumsum(rows, dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._made_of

    def forget(self) -> None:
        """In a forked process, another thread's lock would stay locked."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Rows."""
        return int(self.metadata.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows; raises `CorruptShardError`."""
        with self._lock:
            for group in range(self.metadata.num_row_groups):
                self._check(group, name)
            try:
                return _checked(self._file.read([name], use_threads=False)).column(name)
            except (pa.ArrowException, OSError) as error:
                raise LabelSetError(f"{self.where}: cannot be read: {error}") from None

    def group(self, index: int) -> pa.Table:
        """A row group, and those that were read last, again; raises `CorruptShardError`."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            self._check(index)
            try:
                found = _checked(self._file.read_row_group(index, use_threads=False))
            except (pa.ArrowException, OSError) as error:
                raise LabelSetError(f"{self.where}: cannot be read: {error}") from None
            self._kept[index] = found
            if len(self._kept) > _KEPT_GROUPS:
                self._kept.popitem(last=False)
            return found

    def _check(self, row_group: int, name: str | None = None) -> None:
        if self._digests is None:
            return
        group, columns = self.metadata.row_group(row_group), self.metadata.num_columns
        for index in range(columns):
            chunk = group.column(index)
            if name is not None and chunk.path_in_schema.split(".")[0] != name:
                continue
            place = (row_group * columns + index) * _DIGEST_BYTES
            if _digest(self._source, chunk) != self._digests[place : place + _DIGEST_BYTES]:
                raise self._corrupt(
                    f"row group {row_group}, column {chunk.path_in_schema}: its bytes are not the "
                    "ones that were written"
                )

    def _stored_digests(self) -> bytes:
        stored = (self.metadata.metadata or {}).get(KEY.encode(), b"")
        try:
            found = bytes.fromhex(stored.decode("ascii"))
        except ValueError:
            found = b""
        expected = self.metadata.num_row_groups * self.metadata.num_columns * _DIGEST_BYTES
        if (not stored and expected) or len(found) != expected:
            raise self._corrupt(f"its footer lacks {KEY}, or has another number of them")
        return found

    def _corrupt(self, found: str) -> CorruptShardError:
        return CorruptShardError(f"{self.where}: {found}; {_TODO}")


def _reopen(source: Path | bytes, where: str, footer: Footer | None) -> DigestedTable:
    return DigestedTable(source, where=where, footer=footer)


def _checked(table: pa.Table) -> pa.Table:
    """Parquet promises UTF-8 and does not check it."""
    table.validate(full=True)
    return table

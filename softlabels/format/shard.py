"""One shard, open: a Parquet file of one work unit's records, each read of it checked."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from softlabels.arrow import numpy_of
from softlabels.codecs import Codec
from softlabels.errors import CorruptShardError, quoted
from softlabels.format.encoded import Encoded, from_table
from softlabels.format.manifest import Receipt
from softlabels.format.mapped import Mapped, Piece, Sparse, values_in_place
from softlabels.format.records import NEVER_NULL, Records, check_columns
from softlabels.format.summary import META, UnitSummary

_MAGIC_AND_LENGTH = 8
_REPAIR = (
    "the file was changed after it was written: run `softlabels verify DIR --repair`, then the "
    "same `softlabels precompute` command, to drop and recompute it"
)
_REPLACED = (
    "the server holds other bytes than the manifest names: the set was replaced or damaged there; "
    "open it again, and if that does not help tell who published it"
)


class Shard:
    """An open shard, memory-mapped; every read is checked against the receipt.

    Args:
        file: where it lies; or what of a remote one is here, the rest of which is fetched when it
            is read.
        receipt: what was published; None only while a receipt is being made.
        name: how errors call it.

    Raises:
        CorruptShardError: missing, cut short, or with another footer than the receipt's; without
            a receipt, no Parquet file either.
    """

    def __init__(self, file: Path | Sparse, *, receipt: Receipt | None, name: str) -> None:
        self.name, self.receipt = name, receipt
        self._sparse = None if isinstance(file, Path) else file
        self.mapped: Mapped | None = None
        self._fetched: set[tuple[int, tuple[str, ...] | None]] = set()
        self._columns_of: tuple[Codec, list[str]] | None = None
        try:
            self._buffer = self._map(file)
            self._bytes = pa.BufferReader(self._buffer)
            if receipt is not None and self._footer_digest() != receipt.footer_sha256:
                raise self._corrupt("its footer is not the one that was written")
        except FileNotFoundError:
            raise CorruptShardError(
                f"{name}: the file is missing; run `softlabels verify DIR --repair`, then the same "
                "`softlabels precompute` command, to compute it again"
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt(f"it cannot be opened ({error})") from error
        if receipt is None:
            _ = self._file

    @cached_property
    def _file(self) -> pq.ParquetFile:
        """Its footer, parsed when it is needed: a digest of it is taken in a tenth of the time."""
        receipt = self.receipt
        try:
            # Where there is a receipt, its digests cover every byte that is read.
            found = pq.ParquetFile(self._bytes, page_checksum_verification=receipt is None)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._corrupt(f"it cannot be opened as Parquet ({error})") from error
        if receipt is not None and _group_rows(found.metadata) != receipt.group_rows:
            raise self._corrupt("its row groups are not those of the receipt")
        return found

    @cached_property
    def _leaf_columns(self) -> list[str]:
        """The column that each leaf belongs to."""
        return _columns_of_leaves(self._file.schema)

    def _map(self, file: Path | Sparse) -> pa.Buffer:
        receipt = self.receipt
        if not isinstance(file, Path):
            assert receipt is not None
            footer = Piece(
                receipt.bytes - receipt.footer_bytes, receipt.bytes, receipt.footer_sha256
            )
            file.bring([footer], lambda data: hashlib.sha256(data).hexdigest())
            return file.buffer
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
            raise self._corrupt("it is not a file")
        if receipt is not None and found.st_size != receipt.bytes:
            raise self._corrupt(f"it has {found.st_size} bytes, {receipt.bytes} were written")
        if not found.st_size:
            raise self._corrupt("it is empty")
        self.mapped = Mapped(file)
        return self.mapped.buffer

    def check_whole(self) -> None:
        """A mapped file that is cut short in place would end the process when it is read.

        Raises:
            CorruptShardError: this one was.
        """
        size = None if self.mapped is None else self.mapped.cut_to
        if size is not None:
            raise self._corrupt(f"it was cut to {size} of {self._buffer.size} bytes while open")

    @property
    def dropped(self) -> bool:
        """Whether the cache dropped it: it is to be opened again."""
        return self._sparse is not None and self._sparse.dropped

    @property
    def metadata(self) -> pq.FileMetaData:
        """The Parquet footer."""
        return self._file.metadata

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the columns."""
        return self._file.schema_arrow

    def footer(self, name: str) -> str:
        """A value of ours in the footer."""
        try:
            return str(self.metadata.metadata[(META + name).encode()].decode())
        except (KeyError, TypeError, UnicodeDecodeError):
            raise CorruptShardError(
                f"{self.name}: its footer has no {META}{name}; it is not a shard of a label set"
            ) from None

    def read(
        self, row_group: int, columns: Sequence[str] | None = None, *, threads: bool = True
    ) -> pa.Table:
        """Columns of one row group; all by default.

        Args:
            threads: read columns side by side, which pays where Parquet decompresses them.

        Raises:
            CorruptShardError: their bytes are not the ones that were written.
        """
        self._check(row_group, columns)
        return self._arrow(row_group, columns, threads=threads)

    def _check(self, row_group: int, columns: Sequence[str] | None) -> None:
        """Hold columns of a row group to the receipt."""
        self.check_whole()
        if self.receipt is not None:
            self._check_chunks(row_group, columns)

    def _arrow(self, row_group: int, columns: Sequence[str] | None, *, threads: bool) -> pa.Table:
        try:
            return _checked(
                self._file.read_row_group(
                    row_group, columns=columns and list(columns), use_threads=threads
                )
            )
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt(f"row group {row_group}: {error}") from error

    def keys(self) -> pa.ChunkedArray:
        """Of every record, at a quarter of what it costs to read them group by group.

        Raises:
            CorruptShardError: their bytes are not the ones that were written.
        """
        for group in range(self.metadata.num_row_groups):
            self._check(group, ["key"])
        try:
            return _checked(self._file.read(["key"], use_threads=False))["key"]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self._corrupt(f"its keys: {error}") from error

    def table(self, row_group: int, codec: Codec, names: Sequence[str] | None = None) -> pa.Table:
        """A row group, still encoded, with the format's columns in their types.

        Large packed columns are binary views of the file, and good while `mapped` is whole.

        Args:
            names: only these of the format's columns.

        Raises:
            CorruptShardError: its bytes are not the ones that were written, or are no records.
        """
        whole = self.columns(codec, row_group)
        wanted = list(names or whole)
        self._check(row_group, wanted)
        placed = self._in_place(row_group, codec)
        others = [name for name in wanted if name not in placed]
        table = self._arrow(row_group, others, threads=not codec.packed_columns)
        for name, values in placed.items():
            table = table.append_column(name, values)
        return table

    def encoded(self, row_group: int, codec: Codec, names: Sequence[str] | None = None) -> Encoded:
        """A row group whose labels are still encoded; arguments and errors are those of `table`."""
        table = self.table(row_group, codec, names)
        with self.naming(row_group):
            return Encoded.of(table, codec, mapped=self.mapped)

    def _in_place(self, row_group: int, codec: Codec) -> dict[str, pa.Array]:
        """The packed columns that need not be copied."""
        if self.receipt is None:
            return {}  # its pages are held to their checksums as they are read
        group = self.metadata.row_group(row_group)
        found = {
            name: values_in_place(self._buffer, group.column(self._leaf_columns.index(name)))
            for name in codec.packed_columns
        }
        return {name: values for name, values in found.items() if values is not None}

    def columns(self, codec: Codec, row_group: int) -> list[str]:
        """The format's columns.

        Raises:
            CorruptShardError: some are missing, or of another type.
        """
        if self._columns_of is not None and self._columns_of[0] is codec:
            return self._columns_of[1]
        with self.naming(row_group):
            # Once: it takes a sixth of what it takes to read a row group.
            self._columns_of = codec, check_columns(self.schema, codec)
        return self._columns_of[1]

    def is_here(self, row_group: int, columns: Sequence[str]) -> bool:
        """Whether a row group was fetched before; of a local file, it always was."""
        return self._sparse is None or (row_group, tuple(columns)) in self._fetched

    def fetch(self, row_group: int, columns: Sequence[str]) -> None:
        """Have a row group's bytes here, and right.

        Raises:
            CorruptShardError: they are not the ones that were written.
            RemoteError: they cannot be fetched.
        """
        self._check_chunks(row_group, columns)
        self._fetched.add((row_group, tuple(columns)))

    def records(self, row_group: int, codec: Codec) -> Records:
        """A row group, decoded.

        Raises:
            CorruptShardError: its bytes are not the ones that were written, or are no records.
        """
        encoded = self.encoded(row_group, codec)
        with self.naming(row_group):
            return encoded.records()

    def decode(self, table: pa.Table, codec: Codec, *, row_group: int) -> Records:
        """Rows of a row group, decoded.

        Raises:
            CorruptShardError: they are no records.
        """
        with self.naming(row_group):
            return from_table(table, codec)

    @contextmanager
    def naming(self, row_group: int) -> Iterator[None]:
        """What is wrong with rows is said of this shard and row group."""
        try:
            yield
        except CorruptShardError as error:
            raise self._corrupt(f"row group {row_group}: {error}") from None

    def summary(self) -> UnitSummary:
        """What the footer says of the unit.

        Raises:
            CorruptShardError: it does not say it, or in another form.
        """
        try:
            return UnitSummary(
                unit=int(self.footer("unit")),
                source_rows=int(self.footer("source_rows")),
                input_digest=self.footer("input_digest"),
                rejects=tuple(json.loads(self.footer("rejects"))),
                truncated=int(self.footer("truncated")),
            )
        except CorruptShardError:
            raise
        except (ValueError, TypeError) as error:
            raise self._corrupt(f"its footer cannot be read ({quoted(error)})") from None

    def chunk_digests(self, row_group: int) -> tuple[str, ...]:
        """xxh3-64, hex, of each column chunk's bytes in a row group."""
        group = self.metadata.row_group(row_group)
        columns = range(self.metadata.num_columns)
        return tuple(self._chunk_digest(group.column(column)) for column in columns)

    def make_receipt(self, path: Path, codec: Codec) -> Receipt:
        """The receipt of the file as it lies there, decoded once through."""
        summary = self.summary()
        positions = entries = 0
        groups = range(self.metadata.num_row_groups)
        for group in groups:
            labels = self.records(group, codec).labels
            positions += len(labels)
            entries += labels.entries
        footer = self._footer()
        return Receipt(
            path=self.name,
            unit=summary.unit,
            rows=self.metadata.num_rows,
            positions=positions,
            entries=entries,
            source_rows=summary.source_rows,
            bytes=self._bytes.size(),
            sha256=file_sha256(path),
            footer_bytes=len(footer),
            footer_sha256=hashlib.sha256(footer).hexdigest(),
            group_rows=_group_rows(self.metadata),
            chunk_digests=tuple(map(self.chunk_digests, groups)),
            input_digest=summary.input_digest,
            rejects=len(summary.rejects),
            truncated=summary.truncated,
        )

    def _check_chunks(self, row_group: int, columns: Sequence[str] | None) -> None:
        assert self.receipt is not None
        expected = self.receipt.chunk_digests[row_group]
        if len(expected) != self.metadata.num_columns:
            raise self._corrupt("it has another number of columns than the receipt")
        group, names = self.metadata.row_group(row_group), self._leaf_columns
        chunks = [
            (group.column(index), digest)
            for index, digest in enumerate(expected)
            if columns is None or names[index] in columns
        ]
        wrong = [c for c in chunks if self._chunk_digest(c[0]) != c[1]]
        if wrong and self._sparse is not None:
            pieces = [self._piece(chunk, digest) for chunk, digest in wrong]
            self._sparse.bring(pieces, xxhash.xxh3_64_hexdigest)
            wrong = [c for c in wrong if self._chunk_digest(c[0]) != c[1]]
        for chunk, digest in wrong:
            raise self._corrupt(
                f"row group {row_group}, column {chunk.path_in_schema}: digest "
                f"{self._chunk_digest(chunk)} is not the receipt's {digest}"
            )

    def _piece(self, chunk: pq.ColumnChunkMetaData, digest: str) -> Piece:
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        stop = start + chunk.total_compressed_size
        if not 0 <= start < stop <= self._bytes.size():
            raise self._corrupt("its footer names places beyond its end")
        return Piece(start, stop, digest)

    def _chunk_digest(self, chunk: pq.ColumnChunkMetaData) -> str:
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data = self._bytes.read_at(chunk.total_compressed_size, start)
        return xxhash.xxh3_64_hexdigest(memoryview(data))

    def _footer(self) -> bytes:
        """Thrift metadata, its length and the closing magic."""
        size = self._bytes.size()
        tail = self._bytes.read_at(_MAGIC_AND_LENGTH, max(0, size - _MAGIC_AND_LENGTH))
        length = int.from_bytes(memoryview(tail)[:4], "little") + _MAGIC_AND_LENGTH
        if length > size:
            raise self._corrupt(f"its footer claims {length} of {size} bytes")
        return bytes(self._bytes.read_at(length, size - length))

    def _footer_digest(self) -> str:
        return hashlib.sha256(self._footer()).hexdigest()

    def _corrupt(self, found: str) -> CorruptShardError:
        todo = _REPAIR if self._sparse is None else _REPLACED
        return CorruptShardError(f"{self.name}: {found}; {todo}")


def _checked(table: pa.Table) -> pa.Table:
    """Parquet promises UTF-8 and does not check it; nulls may stand where the format has none."""
    for name, column in zip(table.column_names, table.itercolumns(), strict=True):
        if column.null_count and name in NEVER_NULL:
            raise pa.ArrowInvalid(f"{column.null_count} nulls in column {name}")
        if pa.types.is_string(column.type):
            column.validate(full=True)
    return table


# Of the shard that was opened last: those of one set have the same, and to look takes a hundredth.
_last_leaves: tuple[pq.ParquetSchema, list[str]] | None = None


def _columns_of_leaves(leaves: pq.ParquetSchema) -> list[str]:
    global _last_leaves
    last = _last_leaves
    if last is None or not last[0].equals(leaves):
        paths = (leaves.column(i).path for i in range(len(leaves)))
        last = _last_leaves = leaves, [path.split(".")[0] for path in paths]
    return last[1]


def _group_rows(metadata: pq.FileMetaData) -> tuple[int, ...]:
    groups = range(metadata.num_row_groups)
    return tuple(metadata.row_group(group).num_rows for group in groups)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keys_of_samples(shard: Shard) -> Iterator[pa.Array]:
    """Keys of the rows that begin a sample: a new key, or views and parts that start over."""
    before: tuple[Any, int] | None = None
    for group in range(shard.metadata.num_row_groups):
        table = shard.read(group, ["key", "part", "view"])
        if not len(table):
            continue
        keys, part, view = (column.combine_chunks() for column in table.itercolumns())
        # In a sample by view, then by part.
        parts = numpy_of(view).astype(np.int64) << 32 | numpy_of(part)
        begins = np.ones(len(table), bool)
        same_key = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        begins[1:] = ~same_key | (parts[1:] <= parts[:-1])
        # A sample of many windows may go on in the next row group.
        begins[0] = before is None or before[0] != keys[0].as_py() or parts[0] <= before[1]
        before = keys[-1].as_py(), int(parts[-1])
        yield keys.filter(pa.array(begins))

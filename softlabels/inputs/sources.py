"""Where samples come from: a Dataset, a stream, a file or rows, read unit by unit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch.utils.data import Dataset, IterableDataset

from softlabels.errors import DuplicateKeyError, InputError, quoted
from softlabels.inputs.arrays import may_hold_arrays
from softlabels.inputs.digests import is_list, key_hashes
from softlabels.inputs.files import name_of, open_files, open_in_place
from softlabels.inputs.in_place import JsonLines, ParquetRows
from softlabels.inputs.rows import (
    DatasetRows,
    IndexedRows,
    batched,
    not_empty,
    regroup,
    to_table,
)

KEY_BATCH_ROWS = 65_536
STREAM_BATCH_ROWS = 64
SCHEMA_ROWS = 1000


class DataIdentity(BaseModel):
    """Which data was labelled. The digests, not these names, decide whether it is the same.

    Attributes:
        columns: that digests are taken of; the first one is labelled.
        label: the column with the hard labels, one of them; None where there is none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    revision: str | None = None
    split: str | None = None
    columns: tuple[str, ...]
    label: str | None = None
    key: str | None = None
    key_type: str
    limit: int | None = None

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        if self.label is None:
            made.pop("label", None)
        return made


@dataclass(frozen=True)
class Source:
    """Samples in a fixed order, read as Arrow tables.

    Attributes:
        identity: what goes into the plan.
        kind: "text", "messages", "input_ids" or "array", from the column's type and who takes it.
        rows: how many there are; None for a stream.
        schema: of every column the data has.
        read: `read(rows, columns)` for data with random access; rows is a slice or a list.
        stream: one pass over tables of any size, for data without.
    """

    identity: DataIdentity
    kind: str
    rows: int | None
    schema: pa.Schema
    read: Callable[[slice | list[int], Sequence[str]], pa.Table] | None = None
    stream: Iterator[pa.Table] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are read: the key's, then those that are labelled."""
        key = self.identity.key
        return [*([key] if key else []), *(c for c in self.identity.columns if c != key)]

    def units(self, unit_rows: int) -> Iterator[pa.Table]:
        """Contiguous tables of `unit_rows` rows, the last one shorter.

        Raises:
            InputError: later rows hold something else than the first ones.
        """
        if self.read is not None and self.rows is not None:
            for number in range(-(-self.rows // unit_rows)):
                yield self.unit(number, unit_rows)
        else:
            yield from regroup(self.tables(self.columns), unit_rows)

    def unit(self, number: int, unit_rows: int) -> pa.Table:
        """One table of those of `units`; only its rows are read. Not of a stream.

        Raises:
            InputError: its rows hold something else than the first ones.
        """
        assert self.read is not None, "a stream has no numbered units"
        assert self.rows is not None
        start = number * unit_rows
        table = self.read(slice(start, min(start + unit_rows, self.rows)), self.columns)
        self._check_kind(table, start)
        return table

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """A stream's tables, of any size, with these columns."""
        row = 0
        for table in self.stream or iter(()):
            # A column that a batch lacks is one whose values are all null, as in a single row.
            lacking = pa.nulls(len(table))
            names = table.column_names
            found = {c: table.column(c) if c in names else lacking for c in columns}
            table = pa.table(found)
            self._check_kind(table, row)
            self.keys(table, row)
            yield table
            row += len(table)

    def _check_kind(self, table: pa.Table, first_row: int) -> None:
        """Refuse rows whose type, inferred batch by batch, is not that of the first ones."""
        name = self.identity.columns[0]
        found = table.column(name).type
        empty = found.value_type if is_list(found) and self.kind != "text" else found
        arrays = self.kind == "array"
        if not pa.types.is_null(empty) and _kind_of(found, arrays=arrays) != self.kind:
            raise InputError(
                f"rows {first_row} to {first_row + len(table) - 1}: column {quoted(name)} is "
                f"{_type_name(found)}; the rows before hold {self.kind}"
            )

    def keys(self, table: pa.Table, first_row: int) -> pa.Array:
        """The keys of a unit's rows, string or int64.

        Raises:
            InputError: a key is null, of another type than the first ones, or above int64.
        """
        if self.identity.key is None:
            return pa.array(np.arange(first_row, first_row + len(table)), pa.int64())
        column = table.column(self.identity.key).combine_chunks()
        if column.null_count:
            row = first_row + pc.index(column.is_null(), True).as_py()
            raise InputError(
                f"row {row}: the key column {quoted(self.identity.key)} is null; every sample "
                "needs its own key (or leave out key= to use row numbers)"
            )
        wanted = self.identity.key_type
        problem = _type_name(column.type)
        if not len(column) or _key_kind_of(column.type) == wanted:
            try:
                return column.cast(pa.string() if wanted == "string" else pa.int64())
            except pa.ArrowInvalid as error:
                problem = quoted(error)[1:-1]
        raise InputError(
            f"rows {first_row} to {first_row + len(table) - 1}: the keys in column "
            f"{quoted(self.identity.key)} are not all {wanted}: {problem}"
        )

    def check_unique_keys(self) -> None:
        """Find duplicate keys before anything runs; streams are checked when they end.

        Raises:
            DuplicateKeyError: naming a key and its rows.
        """
        if self.identity.key is None or self.read is None or self.rows is None:
            return
        read, rows, key = self.read, self.rows, self.identity.key

        def batches() -> Iterator[pa.Array]:
            for chunk in chunks(rows, KEY_BATCH_ROWS):
                yield self.keys(read(chunk, [key]), chunk.start)

        check_unique(batches, rows, where=f"column {quoted(key)}")


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` rows, the last one shorter."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def check_unique(
    batches: Callable[[], Iterable[pa.Array]], rows: int, *, where: str, pass_rows: int = 1 << 23
) -> None:
    """Raise `DuplicateKeyError` if a key occurs twice, in memory that does not grow with `rows`.

    Each pass holds the hashes of one slice of the hash space, 64 MiB by default; equal hashes are
    confirmed by the keys themselves.
    """
    passes = max(1, -(-rows // pass_rows))
    for number in range(passes):
        hashes = np.concatenate(
            [h[h % passes == number] for h in map(key_hashes, batches())]
            or [np.empty(0, np.uint64)]
        )
        hashes.sort()
        repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if len(repeated):
            _confirm(batches, repeated, where)


def _confirm(batches: Callable[[], Iterable[pa.Array]], repeated: Any, where: str) -> None:
    seen: dict[Any, int] = {}
    row = 0
    for keys in batches():
        for index in np.flatnonzero(np.isin(key_hashes(keys), repeated)):
            key = keys[int(index)].as_py()
            if key in seen:
                raise DuplicateKeyError(
                    f"{where}: the key {quoted(key)} is in row {seen[key]} and again in row "
                    f"{row + int(index)}; labels are joined by key, so each must occur once: "
                    "choose another key column, or leave it out to use row numbers"
                )
            seen[key] = row + int(index)
        row += len(keys)


def open_source(
    data: Any,
    *,
    column: str = "text",
    key: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    in_place: bool = False,
    arrays: bool = False,
) -> Source:
    """Open data for labelling and check what can be checked without reading it all.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`; a path or glob of Parquet, JSONL, text or
            WebDataset files; a sequence of mappings or a map-style torch dataset of them; or any
            iterable of mappings.
        column: what is labelled: text (string), `messages` (list of {role, content}), or token
            ids (list of int); or arrays: lists of numbers, encoded images, NumPy arrays or tensors.
        label: a column of hard labels, integers or names.
        key: a string or integer column, unique; None for row numbers.
        limit: only the first so many rows.
        in_place: Parquet and JSONL are read where they lie, for one pass or parts of one; else
            they are unpacked into a cache, all of them, for rows in any order.
        arrays: the column has to hold arrays, and lists of integers are some.

    Raises:
        InputError: a missing path or column, an unsupported type, or no rows at all.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    name, revision, split = "rows", None, None
    if isinstance(data, (str, Path)):
        name, path = name_of(str(data)), str(data)
        data = _open_path(path, [c for c in (column, label, key) if c], in_place=in_place)
    elif hasattr(data, "info") and hasattr(data, "features"):
        name = getattr(data.info, "dataset_name", None) or "dataset"
        revision = str(data.info.version) if data.info.version else None
        split = str(data.split) if data.split else None
    schema, rows, read, stream = _access(data, limit)
    kind = _kind(schema, column, arrays=arrays)
    if label is not None:
        _check_label(schema, label)
    identity = DataIdentity(
        name=name,
        revision=revision,
        split=split,
        columns=(column,) if label is None else (column, label),
        label=label,
        key=key,
        key_type="int64" if key is None else _key_type(schema, key),
        limit=limit,
    )
    return Source(identity, kind, rows, schema, read, stream)


def _open_path(path: str, columns: Sequence[str], *, in_place: bool) -> Any:
    """Files in place, or unpacked; in place too where datasets cannot, or makes JSON of structs."""
    found = open_in_place(path, columns) if in_place else None
    if found is not None:
        return found
    try:
        data = open_files(path)
    except InputError:
        found = open_in_place(path, columns)
        if found is None:
            raise
        return found
    schema = data.features.arrow_schema
    types = [schema.field(name).type for name in columns if name in schema.names]
    if any(_made_into_another(found) for found in types):
        found = open_in_place(path, columns)
    return data if found is None else found


def _made_into_another(found: pa.DataType) -> bool:
    """Whether datasets' reader of JSON may have made it of what JSON holds."""
    return pa.types.is_timestamp(found) or "arrow.json" in str(found)


def _access(data: Any, limit: int | None) -> tuple[pa.Schema, int | None, Any, Any]:
    """Schema, rows, random access and stream of any supported data; one of the last two is None."""
    if isinstance(data, Mapping):
        raise InputError(
            f"data is a {type(data).__name__}; choose one split of it, or pass a sequence of rows"
        )
    if isinstance(data, (ParquetRows, JsonLines)):
        return data.schema, len(data) if limit is None else min(limit, len(data)), data, None
    if hasattr(data, "with_format") and hasattr(data, "__len__"):
        rows = len(data) if limit is None else min(limit, len(data))
        not_empty(rows)
        return data.features.arrow_schema, rows, DatasetRows(data), None
    if hasattr(data, "with_format") and hasattr(data, "iter"):
        some = (data if limit is None else data.take(limit)).with_format("arrow")
        some.set_epoch(data.epoch)  # which neither of the two copies
        return _begun(some.iter(batch_size=STREAM_BATCH_ROWS))
    if _indexed(data):
        rows = len(data) if limit is None else min(limit, len(data))
        not_empty(rows)
        some = SCHEMA_ROWS if isinstance(data, Sequence) else STREAM_BATCH_ROWS
        schema = to_table([data[i] for i in range(min(rows, some))]).schema
        return schema, rows, IndexedRows(data, rows), None
    if not isinstance(data, Iterable) or isinstance(data, (bytes, bytearray)):
        raise InputError(
            f"data is a {type(data).__name__}; expected a datasets.Dataset, a path to Parquet, "
            "JSONL, text or WebDataset, or an iterable of rows (mappings from column to value)"
        )
    return _begun(map(to_table, batched(itertools.islice(data, limit), STREAM_BATCH_ROWS)))


def _indexed(data: Any) -> bool:
    """Whether rows have numbers: a sequence, or a map-style dataset of PyTorch."""
    if isinstance(data, Dataset):
        return hasattr(data, "__len__") and not isinstance(data, IterableDataset)
    return isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray))


def _begun(tables: Iterator[pa.Table]) -> tuple[pa.Schema, None, None, Iterator[pa.Table]]:
    """A stream whose first table has been looked at."""
    first = next(tables, None)
    if first is None:
        not_empty(0)
    assert first is not None
    return first.schema, None, None, itertools.chain([first], tables)


def _kind(schema: pa.Schema, column: str, *, arrays: bool) -> str:
    if column not in schema.names:
        raise InputError(
            f"there is no column {quoted(column)}; the data has "
            f"{', '.join(map(quoted, schema.names))}: name one with column= (--column)"
        )
    found = _type_of(schema, column)
    kind = _kind_of(found, arrays=arrays)
    if kind is None and arrays:
        raise InputError(
            f"column {quoted(column)} is {_type_name(found)}; the teacher takes arrays: lists of "
            "numbers, images, NumPy arrays or tensors"
        )
    if kind is None:
        raise InputError(
            f"column {quoted(column)} is {_type_name(found)}; expected text (string), token ids "
            "(list of integers) or messages (list of {role, content}); arrays are for teachers "
            "that take them"
        )
    return kind


def _check_label(schema: pa.Schema, label: str) -> None:
    if label not in schema.names:
        raise InputError(
            f"there is no column {quoted(label)}; the data has "
            f"{', '.join(map(quoted, schema.names))}: name the hard labels with label= (--label)"
        )
    found = _type_of(schema, label)
    if _key_kind_of(found) is None and not pa.types.is_null(found):
        raise InputError(
            f"column {quoted(label)} is {_type_name(found)}; a hard label is a class's number or "
            "its name"
        )


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    if schema.names.count(name) > 1:
        raise InputError(f"the data has several columns {quoted(name)}; rename all but one")
    return schema.field(name).type


def _kind_of(found: pa.DataType, *, arrays: bool) -> str | None:
    if arrays:
        return "array" if may_hold_arrays(found) else None
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "text"
    if is_list(found):
        if pa.types.is_integer(found.value_type):
            return "input_ids"
        if pa.types.is_struct(found.value_type) and "role" in [f.name for f in found.value_type]:
            return "messages"
    return None


def _type_name(found: pa.DataType) -> str:
    return quoted(found)[1:-1]  # a struct's type holds the names of its fields


def _key_type(schema: pa.Schema, key: str) -> str:
    if key not in schema.names:
        raise InputError(
            f"there is no key column {quoted(key)}; the data has "
            f"{', '.join(map(quoted, schema.names))}: name one with key= (--key), or leave it out "
            "to use row numbers"
        )
    found = _type_of(schema, key)
    kind = _key_kind_of(found)
    if kind is None:
        raise InputError(
            f"the key column {quoted(key)} is {_type_name(found)}; a key is a string or an integer"
        )
    return kind


def _key_kind_of(found: pa.DataType) -> str | None:
    if pa.types.is_integer(found):
        return "int64"
    return "string" if pa.types.is_string(found) or pa.types.is_large_string(found) else None

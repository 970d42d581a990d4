"""Rows of Parquet files with lists in lists, read a few at a time and without Python objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted
from softlabels.inputs.digests import is_list
from softlabels.sharing.formats.windows import Window, columns_of, windows

_ROWS = 16

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """A column of lists of lists, of some rows.

    Attributes:
        rows: inner lists of each row, (R,).
        lengths: values of each inner list, (positions,); 0 where it is null.
        values: all of them, one after another.
    """

    rows: Int64s
    lengths: Int64s
    values: NDArray[Any]

    def fits(self, other: Lists) -> bool:
        """Whether both have as many values in every list."""
        rows = np.array_equal(self.rows, other.rows)
        return rows and np.array_equal(self.lengths, other.lengths)

    def padded(self, fill: float) -> NDArray[Any]:
        """(positions, k) with `fill` behind shorter lists."""
        k = int(self.lengths.max(initial=0))
        made = np.full((len(self.lengths), k), fill, self.values.dtype)
        made[np.arange(k) < self.lengths[:, None]] = self.values
        return made


def files(source: Path) -> list[Path]:
    """Parquet files of a folder in their numbers' order, or one file.

    Raises:
        InputError: there are none.
    """
    found = [source] if source.is_file() else sorted(source.rglob("*.parquet"), key=_by_number)
    if not found:
        raise InputError(f"{source}: there is no Parquet file")
    return found


def _by_number(file: Path) -> list[Any]:
    parts = re.split(r"(\d+)", str(file))
    return [int(part) if part.isdigit() else part for part in parts]


def batches(source: Path, columns: Sequence[str]) -> Iterator[tuple[Path, int, pa.Table]]:
    """File, first row in it, and a few rows of these columns.

    Raises:
        InputError: a file cannot be read, or has no such column.
    """
    for file in files(source):
        try:
            opened = pq.ParquetFile(file)
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{file}: there is no column {quoted(missing[0])}; it has "
                    f"{', '.join(map(quoted, opened.schema_arrow.names))}"
                )
            first = 0
            for batch in opened.iter_batches(_ROWS, columns=list(columns)):
                yield file, first, pa.Table.from_batches([batch])
                first += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {quoted(error, limit=200)}") from None


def keys(table: pa.Table, column: str | None, *, file: Path, first: int) -> list[str | int | None]:
    """Keys of some rows; None of all where they have only their numbers.

    Raises:
        InputError: a key is null, which would be taken for that.
    """
    found: list[str | int | None] = [None] * len(table)
    if column is not None:
        found = table[column].to_pylist()
        if None in found:
            raise InputError(
                f"{file}, row {first + found.index(None)}: the key in column {quoted(column)} is "
                "null; labels are joined by key: fill it in, choose another column, or leave the "
                "key out to use row numbers"
            )
    return found


def windows_columns(source: Path, *, key: str | None, part: str | None) -> dict[str, str]:
    """Columns that say which window a row is, as the first file has them: see `columns_of`."""
    file = files(source)[0]
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {quoted(error, limit=200)}") from None
    there = {field.name: pa.types.is_integer(field.type) for field in schema}
    return columns_of(there, str(file), key=key, part=part)


def windows_of(
    table: pa.Table, columns: Mapping[str, str], *, file: Path, first: int
) -> Iterator[Window]:
    """Which windows some rows are.

    Args:
        columns: as `windows_columns` names them.
        file, first: where the rows are from.
    """
    values = {field: table[name].to_pylist() for field, name in columns.items()}
    return windows(values, len(table), where=str(file), first=first)


def longest(source: Path, column: str) -> int:
    """Values of the longest list in a column."""
    found = 0
    for file, _, table in batches(source, [column]):
        if not is_list(table.schema.field(column).type):
            raise InputError(f"{file}: column {quoted(column)} holds no lists")
        found = max(found, pc.max(pc.list_value_length(table[column])).as_py() or 0)
    return found


def token_lists(file: Path, first: int, column: pa.ChunkedArray) -> list[Int64s]:
    """Token ids of each row; floats are taken where they are whole numbers."""
    if not is_list(column.type):
        raise InputError(f"{file}: the column of token ids holds no lists")
    made = []
    for row, value in enumerate(column):
        values = np.asarray(value.values.to_numpy(zero_copy_only=False) if value.is_valid else [])
        made.append(whole(values, f"{file}, row {first + row}: token ids"))
    return made


def nested(file: Path, column: pa.ChunkedArray, name: str) -> Lists:
    """A column of lists of lists of numbers; a null list has nothing in it.

    Raises:
        InputError: it is no such column, or has nulls among the numbers.
    """
    kind = column.type
    if not is_list(kind) or not is_list(kind.value_type):
        raise InputError(
            f"{file}: column {quoted(name)} is {quoted(kind)}; expected lists of lists"
        )
    whole_column = column.combine_chunks()
    inner = pc.list_flatten(whole_column)
    values = pc.list_flatten(inner)
    if values.null_count or not _numeric(values.type):
        raise InputError(f"{file}: column {quoted(name)} has something else in it than numbers")
    return Lists(_lengths(whole_column), _lengths(inner), values.to_numpy(zero_copy_only=False))


def _lengths(lists: pa.Array) -> Int64s:
    lengths: Int64s = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return lengths


def _numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def whole(values: NDArray[Any], where: str) -> Int64s:
    """Ids as int64; raises `InputError` where one is no whole number from 0 on."""
    made = values.astype(np.int64, copy=False) if values.dtype.kind in "iu" else None
    if made is None:
        finite = np.where(np.isfinite(values), values, -1)
        made = finite.astype(np.int64)
        if (made != finite).any():
            raise InputError(f"{where}: {values[made != finite][0]} is no whole number")
    if (made < 0).any():
        raise InputError(f"{where}: {values[made < 0][0]} is no id")
    return made

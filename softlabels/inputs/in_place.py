"""Rows of Parquet and JSONL files, read where they lie: those that are asked for, no others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted
from softlabels.inputs.rows import to_table

Int64s = NDArray[np.int64]

# Rows of JSONL between two places that are known: 31 MB for 10⁹ rows.
_STRIDE = 256
_BLOCK_BYTES = 1 << 24
_SCHEMA_ROWS = 1000
_NEWLINE, _RETURN = 10, 13
_EMPTY = frozenset({b"\n", b"\r\n", b"\r"})


class FileRows(Protocol):
    """Rows of several files, one after another; it can be sent to another process.

    Attributes:
        schema: of every column of the first file.
    """

    schema: pa.Schema

    def __len__(self) -> int: ...

    def __call__(self, rows: slice | list[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows, by number."""


class ParquetRows:
    """Rows of Parquet files, read by row group; the last one is held for the rows after.

    Args:
        files: absolute paths; their footers are read now.

    Raises:
        InputError: one is no Parquet file.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = tuple(files)
        groups: list[tuple[int, int]] = []
        rows: list[int] = []
        for number, file in enumerate(self.files):
            with _opened(file) as opened:
                footer = opened.metadata
                if not sum(rows):  # an empty file's types are often none
                    self.schema = _decoded_schema(opened.schema_arrow)
            groups += [(number, group) for group in range(footer.num_row_groups)]
            rows += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._groups = np.asarray(groups, np.int64).reshape(-1, 2)
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._held: tuple[Any, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def __call__(self, rows: slice | list[int], columns: Sequence[str]) -> pa.Table:
        """See `FileRows`.

        Raises:
            InputError: a file cannot be read, or lacks a column or has it with another type.
        """
        numbers = _numbers(rows, len(self))
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        parts = []
        for start, stop in _runs(groups):
            group = int(groups[start])
            inside = numbers[start:stop] - self._starts[group]
            table = self._group(group, tuple(columns))
            together = int(inside[-1]) - int(inside[0]) == len(inside) - 1
            if together and isinstance(rows, slice):
                parts.append(table.slice(int(inside[0]), len(inside)))
            else:
                parts.append(table.take(pa.array(inside)))
        if not parts:
            return self.schema.empty_table().select(list(columns))
        try:
            return pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(f"the files differ in type: {quoted(error)[1:-1]}") from None

    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        held = self._held
        if held is not None and held[0] == (group, columns):
            return held[1]
        number, inside = map(int, self._groups[group])
        file = self.files[number]
        with _opened(file) as opened:
            for name in columns:
                if name not in opened.schema_arrow.names:
                    raise InputError(
                        f"{quoted(Path(file).name)} has no column {quoted(name)}, which the files "
                        "before it have; name files of one kind"
                    )
            try:
                table = _decoded(opened.read_row_group(inside, columns=list(columns)))
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, error) from error
        table = table.select(list(columns))
        self._held = ((group, columns), table)
        return table


class JsonLines:
    """Rows of JSONL files, a JSON object a line; empty lines are none.

    Where the rows are is found out now, by looking for the ends of lines alone.

    Args:
        files: absolute paths.
        columns: those that must have a type; others may hold what Arrow has none for.

    Raises:
        InputError: the first rows cannot be read.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str] = ()) -> None:
        self.files = tuple(files)
        found = [_places(file) for file in self.files]
        self._places = [places for places, _ in found]
        self._starts = np.cumsum([0, *(rows for _, rows in found)], dtype=np.int64)
        self.schema = _schema(list(self._rows(0, min(len(self), _SCHEMA_ROWS))), columns)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __call__(self, rows: slice | list[int], columns: Sequence[str]) -> pa.Table:
        """See `FileRows`.

        Raises:
            InputError: a line is no JSON object.
        """
        numbers = _numbers(rows, len(self))
        found: list[Any] = []
        for start, stop in _runs(numbers - np.arange(len(numbers))):
            found += self._rows(int(numbers[start]), int(numbers[stop - 1]) + 1)
        return to_table(found, columns)

    def _rows(self, start: int, stop: int) -> Iterator[Any]:
        while start < stop:
            file = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = int(self._starts[file])
            end = min(stop, int(self._starts[file + 1]))
            yield from self._rows_of(file, start - first, end - first)
            start = end

    def _rows_of(self, file: int, start: int, stop: int) -> Iterator[Any]:
        path = self.files[file]
        row = start - start % _STRIDE
        try:
            with Path(path).open("rb") as lines:
                lines.seek(int(self._places[file][row // _STRIDE]))
                for line in lines:
                    if line in _EMPTY:
                        continue
                    if row >= start:
                        yield json.loads(line)
                    row += 1
                    if row >= stop:
                        return
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error, where=f", row {row}") from error
        raise InputError(f"{quoted(path)} has lost rows while it was read; run it again")


def _schema(rows: Sequence[Any], columns: Sequence[str]) -> pa.Schema:
    """The types of all columns; null for one that is not wanted and has none."""
    try:
        return to_table(rows).schema
    except InputError:
        to_table(rows, columns)
    fields = []
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            fields.append(to_table(rows, [name]).schema.field(0))
        except InputError:
            fields.append(pa.field(name, pa.null()))
    return pa.schema(fields)


def _places(file: str) -> tuple[Int64s, int]:
    """Where every 256th row begins, in bytes, and how many rows there are."""
    places: list[Int64s] = []
    rows, begin, base, before = 0, 0, 0, b"\n"
    for block in _blocks(file):
        held = np.frombuffer(before + block, np.uint8)
        ends = np.flatnonzero(held[1:] == _NEWLINE)
        starts = np.concatenate([[begin], base + ends[:-1] + 1]) if len(ends) else ends
        lengths = base + ends - starts
        empty = (lengths == 0) | ((lengths == 1) & (held[ends] == _RETURN))
        starts = starts[~empty]
        places.append(starts[-rows % _STRIDE :: _STRIDE])
        rows += len(starts)
        begin = base + int(ends[-1]) + 1 if len(ends) else begin
        base, before = base + len(block), block[-1:]
    # The last line of a file may have no end.
    if base > begin and not (base - begin == 1 and before == b"\r"):
        places.append(np.asarray([begin] if rows % _STRIDE == 0 else [], np.int64))
        rows += 1
    return np.concatenate([np.empty(0, np.int64), *places]), rows


def _blocks(file: str) -> Iterator[bytes]:
    """A file's bytes; raises `InputError` if it cannot be read."""
    try:
        with Path(file).open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _unreadable(file, error) from error


def _numbers(rows: slice | list[int], count: int) -> Int64s:
    return np.arange(*rows.indices(count)) if isinstance(rows, slice) else np.asarray(rows, int)


def _runs(values: Int64s) -> Iterator[tuple[int, int]]:
    """Where equal values stand side by side."""
    cuts = (np.flatnonzero(np.diff(values)) + 1).tolist()
    bounds = [0, *cuts, len(values)] if len(values) else [0]
    return pairwise(bounds)


def _opened(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: Exception, where: str = "") -> InputError:
    reason = quoted(error, limit=300)[1:-1]
    return InputError(f"--data {quoted(file, limit=4096)}{where} cannot be read: {reason}")


def _decoded_schema(schema: pa.Schema) -> pa.Schema:
    return _decoded(schema.empty_table()).schema


def _decoded(table: pa.Table) -> pa.Table:
    """Without dictionaries, which are a way to store and no type of what is stored."""
    for index, found in enumerate(table.schema):
        if pa.types.is_dictionary(found.type):
            column = table.column(index).cast(found.type.value_type)
            table = table.set_column(index, found.name, column)
    return table

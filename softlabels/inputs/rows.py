"""Rows of Python mappings to Arrow tables, and tables of any size to tables of one size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from softlabels.errors import InputError, quoted
from softlabels.inputs.arrays import packed


def not_empty(rows: int) -> None:
    """Raise `InputError` if there is nothing to label."""
    if not rows:
        raise InputError("the data has no rows; there is nothing to label")


def batched(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """`itertools.batched`, which Python 3.11 lacks."""
    iterator = iter(rows)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def to_table(rows: Sequence[Any], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows' columns, all that any row has by default; null where a row lacks one.

    Raises:
        InputError: a row is no mapping, or a column holds values that Arrow has no type for.
    """
    for row in rows:
        if not isinstance(row, Mapping):
            raise InputError(
                f"a row is a {type(row).__name__}; expected a mapping from column to value, such "
                "as {'image': row[0], 'label': row[1]}: wrap the dataset in one that gives that"
            )
    names = dict.fromkeys(name for row in rows for name in row) if columns is None else columns
    found = {}
    for name in names:
        try:
            found[name] = pa.array([_plain(row.get(name)) for row in rows])
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            raise InputError(
                f"column {quoted(name)} cannot be read as an Arrow column: {quoted(error)[1:-1]}"
            ) from None
    return pa.table(found)


class DatasetRows:
    """Rows of a `datasets.Dataset` by number, in any format it has."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._narrowed: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data, "_narrowed": {}}

    def __call__(self, rows: slice | list[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows."""
        names = tuple(columns)
        if names not in self._narrowed:
            self._narrowed[names] = self._data.select_columns(list(names)).with_format("arrow")
        table: pa.Table = self._narrowed[names][rows]
        return table


@dataclass(frozen=True)
class IndexedRows:
    """Rows of a sequence of mappings, or of a map-style dataset, by number.

    Attributes:
        data: has them.
        count: how many of them there are, at most.
    """

    data: Any
    count: int

    def __call__(self, rows: slice | list[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows."""
        places = range(*rows.indices(self.count)) if isinstance(rows, slice) else rows
        return to_table([self.data[place] for place in places], columns)


def _plain(value: Any) -> Any:
    """Tensors, arrays and images as Arrow takes them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif not isinstance(value, np.ndarray) and hasattr(value, "__array_interface__"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.ndim > 1:
        return packed(value)
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


def regroup(tables: Iterator[pa.Table], unit_rows: int) -> Iterator[pa.Table]:
    """Tables of any size to tables of `unit_rows` rows."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= unit_rows:
            joined = _concatenated(held)
            yield joined.slice(0, unit_rows)
            held, count = [joined.slice(unit_rows)], count - unit_rows
    if count:
        yield _concatenated(held)


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"rows of the stream differ in type: {quoted(error)[1:-1]}") from None

"""Flat list columns: a record's positions one after another, in values that anyone can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.errors import CorruptShardError, InputError

# Offsets of an Arrow list are int32.
_MAX_LIST_VALUES = (1 << 31) - 1
_UINT16_CLASSES = 1 << 16


def id_type(classes: int) -> pa.DataType:
    """The narrowest unsigned type that holds every class id."""
    return pa.uint16() if classes <= _UINT16_CLASSES else pa.uint32()


def check_ids(ids: NDArray[np.int64], classes: int) -> None:
    """Refuse ids that are not below V; raises `InputError`."""
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if low < 0 or high >= classes:
        raise InputError(
            f"class id {low if low < 0 else high} is outside the {classes} classes of "
            f"the codec, 0 … {classes - 1}"
        )


def to_lists(
    values: NDArray[Any],
    offsets: NDArray[np.int64],
    kind: pa.DataType,
    *,
    unknown: NDArray[np.bool_] | None = None,
) -> pa.Array:
    """Rows of `values`, shape (N,) or (N, m), as one flat list a record; `unknown` become null.

    Raises:
        InputError: a row group of them is longer than a list can be.
    """
    width = 1 if values.ndim == 1 else values.shape[1]
    if offsets[-1] * width > _MAX_LIST_VALUES:
        raise InputError(
            f"{offsets[-1]:,} positions of {width:,} values are {offsets[-1] * width:,} in one row "
            f"group, more than an Arrow list's {_MAX_LIST_VALUES:,}; choose a smaller max_length "
            "or k"
        )
    narrow = values.reshape(-1).astype(kind.to_pandas_dtype())
    flat = pa.array(narrow, kind, mask=unknown)
    return pa.ListArray.from_arrays(pa.array((offsets * width).astype(np.int32)), flat)


def from_lists(
    table: pa.Table, name: str, *, unknown: bool = False
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column's values and offsets, without a copy where the values have no nulls.

    Args:
        unknown: whether values may be null; they become NaN.

    Raises:
        CorruptShardError: there are nulls.
    """
    column = table.column(name).combine_chunks()
    lists = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    offsets = numpy_of(lists.offsets).astype(np.int64)
    # flatten() honours the slice that offsets describe.
    flat = lists.flatten()
    if lists.null_count or (flat.null_count and not unknown):
        raise CorruptShardError(f"{name} holds nulls where the format has none")
    values = numpy_of(flat, null=np.nan)
    return values if values.flags.writeable else values.copy(), offsets - offsets[0]


def rows_of(
    table: pa.Table, name: str, width: int | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column as rows of its positions, (N, width), and the records' offsets, (R + 1,).

    Args:
        width: None for what the lists have, at least 1.

    Raises:
        CorruptShardError: the lists do not fit the positions.
    """
    values, ends = from_lists(table, name)
    positions = numpy_of(table.column("positions")).astype(np.int64)
    offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(positions)])
    count = int(offsets[-1])
    wide = width or (len(values) // count if count else 1)
    if positions.min(initial=0) < 0 or not np.array_equal(ends, offsets * wide):
        raise CorruptShardError(f"the lists of {name} do not fit the positions")
    return values.reshape(count, wide), offsets

"""Arrow's columns as NumPy's arrays.

`to_numpy` and `fill_null` give the same; in every process they first import pandas, which takes as
long as it takes to open a label set of 10⁵ shards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def numpy_of(column: pa.Array | pa.ChunkedArray, *, null: Any = None) -> NDArray[Any]:
    """A column of numbers, (rows,), in its own dtype; not to be written to.

    Args:
        null: what stands where there is none, of whole numbers in a dtype that holds both; by
            default nulls are refused.

    Raises:
        pa.ArrowException: it has nulls, or is of another type.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if (column.null_count and null is None) or not _is_number(column.type):
        raise pa.ArrowTypeError(
            f"expected numbers, found a column of {column.type} with {column.null_count} nulls"
        )
    if not column.null_count:
        whole: NDArray[Any] = np.from_dlpack(column)
        return whole
    _, values = column.buffers()
    bare = pa.Array.from_buffers(column.type, len(column), [None, values], offset=column.offset)
    found = np.from_dlpack(bare)
    # An unsigned one does not hold −1.
    fill = np.asarray(null, found.dtype if found.dtype.kind == "f" else None)
    return np.where(nulls_of(column), fill, found)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def nulls_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where a column is null, (rows,)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    valid, *_ = column.buffers()
    if not column.null_count or valid is None:
        return np.full(len(column), column.null_count > 0)
    stop = column.offset + len(column)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), count=stop, bitorder="little")
    found: NDArray[np.bool_] = bits[column.offset :] == 0
    return found

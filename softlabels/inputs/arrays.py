"""Samples that are arrays, in any column that has them: images, waveforms, frames, features."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.arrow import nulls_of
from softlabels.errors import InputError, quoted

Array = NDArray[Any]
Encoded = bytes | memoryview

# How an array lies in a column where Arrow has no type for it.
PACKED = pa.struct(
    [
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)
# Numbers of one width on every machine; no objects, no text.
_KINDS = "biuf"
_IMAGE_FIELDS = {"bytes", "path"}


def holds_arrays(kind: pa.DataType) -> bool:
    """Whether a column's values are arrays, whoever reads them.

    Lists of floats, lists of lists of numbers, tensors of a fixed shape, encoded images as
    `datasets.Image` has them, and `PACKED`. A list of integers may be token ids.
    """
    if _is_packed(kind) or is_image(kind):
        return True
    leaf, depth = _leaf(kind)
    return (pa.types.is_floating(leaf) and depth > 0) or (_is_number(leaf) and depth > 1)


def may_hold_arrays(kind: pa.DataType) -> bool:
    """Whether a column's values are arrays for somebody who takes nothing else."""
    leaf, depth = _leaf(kind)
    return holds_arrays(kind) or (depth > 0 and _is_number(leaf))


def is_image(kind: pa.DataType) -> bool:
    """Whether values are encoded images: `{"bytes", "path"}`."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == _IMAGE_FIELDS


def packed(array: Array) -> dict[str, Any]:
    """An array as a value of `PACKED`.

    Raises:
        InputError: it does not hold numbers.
    """
    if array.dtype.kind not in _KINDS:
        raise InputError(f"an array of {array.dtype} holds no numbers; convert it")
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "dtype": plain.dtype.str,
        "shape": list(array.shape),
        "data": plain.reshape(-1).view(np.uint8).data,
    }


def array_of(value: Any) -> Array:
    """A column's value as an array; of an encoded image height × width (× channels), uint8.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, np.ndarray):
        found = value
    elif isinstance(value, Mapping) and set(value) == _IMAGE_FIELDS:
        found = _decoded(value)
    elif isinstance(value, Mapping):
        found = _unpacked(value)
    else:
        try:
            found = np.asarray(value)
        except ValueError as error:
            raise InputError(f"its lists are not of one length: {error}") from None
    if found.dtype.kind not in _KINDS or not found.ndim:
        raise InputError("it holds nulls, or no numbers")
    if not found.size:
        raise InputError(f"empty: its shape is {found.shape}")
    return found


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """What `array_of` takes, of every row; None where a row has nothing.

    Lists keep the width of their numbers: through Python objects it would be lost.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        column = _storage(column)
    if _is_packed(column.type):
        return [value for chunk in column.chunks for value in _packed_values(chunk)]
    if is_image(column.type):
        return [value for chunk in column.chunks for value in _image_values(chunk)]
    if pa.types.is_struct(column.type):
        found: list[Any] = column.to_pylist()
        return found
    return [_nested(row) if row.is_valid else None for row in column]


def array_pieces(array: Array) -> tuple[bytes, memoryview]:
    """The canonical bytes of an array: dtype and shape, then its numbers in C order, not copied."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    name = plain.dtype.str.lstrip("<|=").encode()
    shape = struct.pack(f"<{1 + array.ndim}Q", array.ndim, *array.shape)
    return struct.pack("<Q", len(name)) + name + shape, plain.reshape(-1).view(np.uint8).data


def canonical_pieces(value: Any) -> tuple[bytes, Encoded]:
    """A column's value in the form that digests are taken of, in two pieces.

    Of an encoded image the bytes as they are encoded, wherever its file lies.
    """
    if isinstance(value, Mapping) and set(value) == _IMAGE_FIELDS:
        data = _encoded(value)
        return b"\5" + struct.pack("<Q", len(data)), data
    head, numbers = array_pieces(array_of(value))
    return b"\10" + head, numbers


def _packed_values(chunk: pa.StructArray) -> list[Array | None]:
    """Arrays of a column of `PACKED`, where they lie."""
    # Fields as they are stored: a row that is null has no array, whatever stands there.
    fields = [chunk.field(name) for name in ("dtype", "shape", "data")]
    dtypes, shapes = fields[0].to_pylist(), fields[1].to_pylist()
    rows = zip(dtypes, shapes, _bytes_in_place(fields[2]), strict=True)
    return [
        None if null else _unpacked({"dtype": dtype, "shape": shape, "data": data})
        for null, (dtype, shape, data) in zip(nulls_of(chunk), rows, strict=True)
    ]


def _image_values(chunk: pa.StructArray) -> list[dict[str, Any] | None]:
    """Encoded images, where they lie."""
    rows = zip(_bytes_in_place(chunk.field("bytes")), chunk.field("path").to_pylist(), strict=True)
    return [
        None if null else {"bytes": data, "path": path}
        for null, (data, path) in zip(nulls_of(chunk), rows, strict=True)
    ]


def _bytes_in_place(values: pa.Array) -> list[Encoded | None]:
    """What a column of bytes holds; of other types, values as Python has them."""
    if values.type not in (pa.binary(), pa.large_binary()):
        found: list[Encoded | None] = values.to_pylist()
        return found
    _, ends, data = values.buffers()
    width = np.int32 if values.type == pa.binary() else np.int64
    bounds = np.frombuffer(ends or b"", width)[values.offset :][: len(values) + 1].tolist()
    held = memoryview(data or b"")
    return [
        None if null else held[start:stop]
        for null, (start, stop) in zip(nulls_of(values), pairwise(bounds), strict=True)
    ]


def _is_packed(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and [f.name for f in kind] == [f.name for f in PACKED]


def _is_number(kind: pa.DataType) -> bool:
    tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
    return any(test(kind) for test in tests)


def _leaf(kind: pa.DataType) -> tuple[pa.DataType, int]:
    """What nested lists hold, and how deep they are."""
    depth = 0
    if isinstance(kind, pa.BaseExtensionType):
        shape = getattr(kind, "shape", None)
        kind = kind.storage_type
        if shape is not None and len(shape) > 1 and _lists(kind) == 1:
            depth = len(shape) - 1
    while _lists(kind):
        kind, depth = kind.value_type, depth + 1
    return kind, depth


def _lists(kind: pa.DataType) -> int:
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    if not any(test(kind) for test in tests):
        return 0
    return 1 + _lists(kind.value_type)


def _storage(column: pa.ChunkedArray) -> Any:
    """Tensors of a fixed shape as nested lists."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        arrays = [chunk.to_numpy_ndarray() for chunk in column.chunks]
        packed_rows = [packed(row) for array in arrays for row in array]
        return pa.chunked_array([pa.array(packed_rows, PACKED)])
    storage = [chunk.storage for chunk in column.chunks]
    return pa.chunked_array(storage, column.type.storage_type)


def _nested(row: Any) -> Any:
    """A row's nested lists as an array in the type of their numbers, if they are rectangular."""
    values, shape = row.values, [len(row.values)]
    while _lists(values.type):
        lengths = values.value_lengths()
        first = lengths[0].as_py() if len(lengths) else 0
        if values.null_count or not bool((np.asarray(lengths) == first).all()):
            return row.as_py()
        values = values.flatten()
        shape.append(first)
    if values.null_count or not _is_number(values.type):
        return row.as_py()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _unpacked(value: Mapping[str, Any]) -> Array:
    try:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in _KINDS:
            raise TypeError(f"dtype {dtype}")
        return np.frombuffer(value["data"], dtype).reshape(value["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"it is no array: {quoted(error)[1:-1]}") from None


def _encoded(image: Mapping[str, Any]) -> Encoded:
    data, path = image["bytes"], image["path"]
    if isinstance(data, (bytes, memoryview)):
        return data
    if data is not None:
        raise InputError(f"the image's bytes are a {type(data).__name__}; expected bytes")
    try:
        return Path(path).read_bytes()
    except (OSError, TypeError) as error:
        raise InputError(f"the image's file cannot be read: {quoted(error)[1:-1]}") from None


def _decoded(image: Mapping[str, Any]) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError(
            "the column holds encoded images, which Pillow decodes, and it is not installed: "
            "pip install 'softlabels[images]'"
        ) from None
    try:
        with Image.open(io.BytesIO(_encoded(image))) as opened:
            # A palette's numbers are no colours.
            plain = opened.convert("RGB") if opened.mode in ("P", "CMYK", "YCbCr") else opened
            return np.asarray(plain)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"the image cannot be decoded: {quoted(error)[1:-1]}") from None

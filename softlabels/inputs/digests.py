"""Digests that tie labels to the inputs they were made from; docs/FORMAT.md gives the bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.errors import InputError, quoted
from softlabels.inputs.arrays import array_pieces, canonical_pieces, holds_arrays, values_of

DIGEST_BYTES = 8
DIGEST_TYPE = pa.binary(DIGEST_BYTES)

Uint64s = NDArray[np.uint64]
Buffer = bytes | memoryview


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, whatever the width of their offsets."""
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(test(kind) for test in tests)


def input_digests(table: pa.Table, columns: Sequence[str]) -> list[bytes]:
    """The digest of each row's `columns`, in the order given: xxh3-64 of their canonical bytes.

    Raises:
        InputError: a value has no canonical form (a date, a decimal, …).
    """
    values = [_canonical_column(table.column(name), name) for name in columns]
    return [_digest(piece for value in row for piece in value) for row in zip(*values, strict=True)]


def _digest(pieces: Iterable[Buffer]) -> bytes:
    """xxh3-64 over pieces one after another."""
    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def prepared_digest(token_ids: NDArray[Any]) -> bytes:
    """xxh3-64 of token ids as little-endian uint32, without padding."""
    return xxhash.xxh3_64_digest(token_ids.astype("<u4", copy=False).tobytes())


def array_digest(array: NDArray[Any]) -> bytes:
    """xxh3-64 of an array's dtype, shape and numbers."""
    return _digest(array_pieces(array))


def key_hashes(keys: pa.Array | pa.ChunkedArray) -> Uint64s:
    """xxh3-64 of each key, shape (N,), for indexes; a hit must be confirmed by the key itself."""
    if pa.types.is_integer(keys.type):
        return _hashes_of(numpy_of(keys).astype("<i8").view(np.uint64))
    hashed = (xxhash.xxh3_64_intdigest(key.encode()) for key in keys.to_pylist())
    return np.fromiter(hashed, np.uint64, len(keys))


def _hashes_of(x: Uint64s) -> Uint64s:
    """xxh3-64 of 8 little-endian bytes each, all at once: ten times as fast as one by one.

    XXH3_len_4to8_64b of seed 0: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
    """
    secret = np.uint64(0xC73AB174C5ECD5A2)
    prime = np.uint64(0x9FB21C651E98DF25)

    def turned(bits: int) -> Uint64s:
        return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))

    with np.errstate(over="ignore"):
        x = turned(32) ^ secret
        x = x ^ turned(49) ^ turned(24)
        x = x * prime
        x = (x ^ ((x >> np.uint64(35)) + np.uint64(8))) * prime
        return x ^ (x >> np.uint64(28))


def unit_digest(keys: Sequence[str | int], digests: Sequence[bytes]) -> str:
    """One digest for a work unit's rows: xxh3-128, hex, over key and input digest of each."""
    state = xxhash.xxh3_128()
    for key, digest in zip(keys, digests, strict=True):
        state.update(canonical(key))
        state.update(digest)
    return state.hexdigest()


def whole(value: float) -> int | None:
    """The integer that a float is, within 64 bits; None for others, and for −0.

    Arrow makes one type of a column, and so floats of integers where any row has a float.
    """
    if not value.is_integer() or not -(2.0**63) <= value < 2.0**63:
        return None
    return None if value == 0 and math.copysign(1, value) < 0 else int(value)


def canonical(value: Any) -> bytes:
    """A value's canonical bytes: a tag, then its content; docs/FORMAT.md has the table.

    Fields of a struct are taken by ascending name, and absent is the same as null, because
    readers of one file differ in whether they fill in missing fields.
    """
    match value:
        case None:
            return b"\0"
        case bool():
            return b"\1" + bytes([value])
        case int() if -(1 << 63) <= value < 1 << 63:
            return b"\2" + struct.pack("<q", value)
        case int():
            raise InputError(f"the integer {value} does not fit in 64 bits with a sign")
        case float() if (number := whole(value)) is not None:
            return canonical(number)
        case float():
            # Readers and processors differ in the sign and payload of a NaN.
            return b"\3" + struct.pack("<d", math.nan if math.isnan(value) else value)
        case str():
            data = value.encode()
            return b"\4" + struct.pack("<Q", len(data)) + data
        case bytes():
            return b"\5" + struct.pack("<Q", len(value)) + value
        case Mapping():
            fields = sorted((k, v) for k, v in value.items() if v is not None)
            body = b"".join(canonical(name) + canonical(field) for name, field in fields)
            return b"\7" + struct.pack("<Q", len(fields)) + body
        case Sequence():
            return b"\6" + struct.pack("<Q", len(value)) + b"".join(map(canonical, value))
    raise InputError(
        f"a value of type {type(value).__name__} has no canonical form to digest; convert the "
        "column to text, numbers, bytes, lists or structs of them"
    )


def _canonical_column(column: pa.ChunkedArray, name: str) -> list[tuple[Buffer, ...]]:
    """Canonical bytes of each value of a column; lists of numbers without a Python object each."""
    try:
        if holds_arrays(column.type):
            values = values_of(column)
            return [(b"\0",) if value is None else canonical_pieces(value) for value in values]
        if is_list(column.type) and pa.types.is_integer(column.type.value_type):
            return [(_integers(row),) for row in column]
        return [(canonical(value),) for value in column.to_pylist()]
    except InputError as error:
        raise InputError(f"column {quoted(name)}: {error}") from None


def _integers(row: Any) -> bytes:
    """A list of integers, as `canonical` would give it: each is the tag 2 and an int64."""
    if not row.is_valid or row.values.null_count:
        return canonical(row.as_py())
    values = numpy_of(row.values)
    if values.dtype == np.uint64 and len(values):
        canonical(int(values.max()))  # refuses what the cast below would wrap
    tagged = np.empty(len(values), np.dtype([("tag", "u1"), ("value", "<i8")]))
    tagged["tag"], tagged["value"] = 2, values
    return b"\6" + struct.pack("<Q", len(values)) + tagged.tobytes()

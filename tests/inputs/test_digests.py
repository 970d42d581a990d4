"""Digests: bytes as literals; the fast path for token ids writes what the slow one does."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels.errors import InputError
from softlabels.inputs.digests import (
    canonical,
    input_digests,
    key_hashes,
    prepared_digest,
    unit_digest,
)

INTEGERS = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(),
    pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
]  # fmt: skip
LISTS = [pa.list_, pa.large_list]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "00"),
        (False, "0100"),
        (True, "0101"),
        (0, "02 0000000000000000"),
        (-2, "02 feffffffffffffff"),
        (2**63 - 1, "02 ffffffffffffff7f"),
        (-(2**63), "02 0000000000000080"),
        (0.0, "02 0000000000000000"),
        (-3.0, "02 fdffffffffffffff"),
        (-(2.0**63), "02 0000000000000080"),
        (2.0**63, "03 000000000000e043"),
        (-0.0, "03 0000000000000080"),
        (1.5, "03 000000000000f83f"),
        (math.inf, "03 000000000000f07f"),
        (math.nan, "03 000000000000f87f"),
        (-math.nan, "03 000000000000f87f"),
        ("", "04 0000000000000000"),
        ("hé", "04 0300000000000000 68c3a9"),
        (b"\xff", "05 0100000000000000 ff"),
        ([], "06 0000000000000000"),
        ([1, None], "06 0200000000000000 02 0100000000000000 00"),
        ({}, "07 0000000000000000"),
        (
            {"b": 1, "a": "x", "c": None},
            "07 0200000000000000"
            "04 0100000000000000 61 04 0100000000000000 78"
            "04 0100000000000000 62 02 0100000000000000",
        ),
    ],
)
def test_canonical_bytes_are_written_down(value: Any, expected: str) -> None:
    assert canonical(value).hex() == expected.replace(" ", "")


def test_digests_are_written_down() -> None:
    table = pa.table({"text": ["a", None], "ids": [[1, 2], []]})
    assert [d.hex() for d in input_digests(table, ["text"])] == [
        "7e2f5ee886059104",
        "c44bdff4074eecdb",
    ]
    assert [d.hex() for d in input_digests(table, ["ids", "text"])] == [
        "a4e3004b925175ef",
        "e2ba62201e973d4a",
    ]
    assert prepared_digest(np.asarray([1, 65_536])).hex() == "f435fec321b17581"
    assert prepared_digest(np.asarray([], np.int64)).hex() == "2d06800538d394c2"
    assert key_hashes(pa.array(["a", ""])).tolist() == [16629034431890738719, 3244421341483603138]
    assert key_hashes(pa.array([1, -1])).tolist() == [3439722301264460078, 5841669975847748627]
    digests = input_digests(table, ["text"])
    assert unit_digest(["x", "y"], digests) == "7555e02d5f06678f6afcd08633f4ddac"
    assert unit_digest([0, 1], digests) == "4dedd888dc3509ae7307f3bde792e80f"


def test_a_digest_is_the_hash_of_the_canonical_bytes_in_the_order_of_the_columns() -> None:
    table = pa.table({"a": ["x"], "b": [[1]]})
    expected = xxhash.xxh3_64_digest(canonical([1]) + canonical("x"))
    assert input_digests(table, ["b", "a"]) == [expected]


def test_prepared_digests_do_not_depend_on_the_width_of_the_ids() -> None:
    ids = np.asarray([0, 1, 255])
    expected = xxhash.xxh3_64_digest(struct.pack("<3I", 0, 1, 255))
    for kind in ("<u1", "<u2", "<u4", "<i4", "<i8", ">i8"):
        assert prepared_digest(ids.astype(kind)) == expected
    assert prepared_digest(np.repeat(ids, 2)[::2]) == expected


def test_integer_keys_are_hashed_together_as_xxhash_hashes_each() -> None:
    edges = [0, 1, -1, 2**63 - 1, -(2**63), 255, 256]
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63, 2000, np.int64)
    numbers = np.concatenate([edges, drawn]).astype(np.int64)
    one_by_one = [xxhash.xxh3_64_intdigest(n.tobytes()) for n in numbers.astype("<i8")]
    assert key_hashes(pa.array(numbers)).tolist() == one_by_one


def test_key_hashes_do_not_depend_on_the_type_or_on_chunks() -> None:
    texts, numbers = ["a", "b", "c"], [3, 1, 2]
    for kind in (pa.string(), pa.large_string()):
        assert (key_hashes(pa.array(texts, kind)) == key_hashes(pa.array(texts))).all()
    for kind in INTEGERS:
        assert (key_hashes(pa.array(numbers, kind)) == key_hashes(pa.array(numbers))).all()
    chunked = pa.chunked_array([["a"], [], ["b", "c"]])
    assert (key_hashes(chunked) == key_hashes(pa.array(texts))).all()
    chunked = pa.chunked_array([[3], [1, 2]])
    assert (key_hashes(chunked) == key_hashes(pa.array(numbers))).all()
    assert key_hashes(pa.array([], pa.string())).dtype == np.uint64


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def normal(value: Any) -> Any:
    """A form in which two values are equal exactly if the format takes them for the same."""
    if isinstance(value, dict):
        return ("struct", frozenset((k, normal(v)) for k, v in value.items() if v is not None))
    if isinstance(value, list):
        return ("list", *map(normal, value))
    if isinstance(value, float):
        whole = value.is_integer() and -(2**63) <= value < 2**63
        if whole and math.copysign(1, value) == (1 if value >= 0 else -1):
            return ("int", int(value))
        return ("float", "nan" if math.isnan(value) else value.hex())
    return (type(value).__name__, value)


@given(st.lists(values, max_size=3), st.lists(values, max_size=3))
@example([True], [1])
@example([1], [1.0])
@example([0.0], [-0.0])
@example(["a"], [b"a"])
@example([None], [[]])
@example([["a", "b"]], [["ab"]])
@example([{"a": 1, "b": None}], [{"a": 1}])
@example([[], [1]], [[[]], 1])
@settings(deadline=None, max_examples=200)
def test_rows_have_the_same_bytes_exactly_if_they_are_the_same(left: Any, right: Any) -> None:
    same = b"".join(map(canonical, left)) == b"".join(map(canonical, right))
    assert same == (normal(left) == normal(right))


@st.composite
def integer_columns(draw: st.DrawFn) -> pa.ChunkedArray:
    """A column of lists of integers: any type, null lists, null values, chunks, a slice."""
    kind = draw(st.sampled_from(INTEGERS))
    bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    number = st.integers(low, min(high, 2**63 - 1)) | st.sampled_from([low, min(high, 2**63 - 1)])
    fixed = draw(st.booleans())
    size = draw(st.integers(0, 3))
    row = st.lists(number | st.none(), min_size=size if fixed else 0, max_size=size)
    rows = draw(st.lists(row | st.none(), max_size=6))
    column = pa.array(rows, pa.list_(kind, size) if fixed else draw(st.sampled_from(LISTS))(kind))
    start = draw(st.integers(0, len(rows)))
    cut = draw(st.integers(start, len(rows)))
    return pa.chunked_array([column[start:cut], column[cut:]])


@given(integer_columns())
@settings(deadline=None, max_examples=200)
def test_lists_of_integers_have_the_digests_that_the_slow_path_gives(
    column: pa.ChunkedArray,
) -> None:
    expected = [xxhash.xxh3_64_digest(canonical(row)) for row in column.to_pylist()]
    assert input_digests(pa.table({"ids": column}), ["ids"]) == expected


@pytest.mark.parametrize("make", LISTS)
@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_an_integer_above_int64_is_refused_and_not_wrapped(make: Any, value: int) -> None:
    table = pa.table({"ids": pa.array([[1, value]], make(pa.uint64()))})
    with pytest.raises(InputError, match=rf'column "ids".*{value}'):
        input_digests(table, ["ids"])
    with pytest.raises(InputError, match=str(value)):
        canonical(value)


def test_fields_that_a_reader_fills_in_with_null_do_not_change_a_digest() -> None:
    sparse = [[{"role": "user", "content": "hi"}], [{"content": "x", "role": "tool", "name": "f"}]]
    filled = pa.table({"messages": sparse})
    assert "name" in str(filled.schema)
    alone = pa.table({"messages": sparse[:1]})
    turned = pa.table({"messages": [[dict(reversed(m.items())) for m in row] for row in sparse]})
    digests = input_digests(filled, ["messages"])
    assert input_digests(alone, ["messages"]) == digests[:1]
    assert input_digests(turned, ["messages"]) == digests


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_the_width_of_offsets_does_not_change_a_digest(kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", None, "é"], kind)})
    expected = [xxhash.xxh3_64_digest(canonical(v)) for v in ("a", None, "é")]
    assert input_digests(table, ["text"]) == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None, "d", "e"]),
        pa.array([[1, 2], [3], None, [], [4, 5, 6]]),
        pa.array([[1, 2]] * 4 + [None], pa.list_(pa.int32(), 2)),
        pa.array([[{"role": "user"}]] * 5),
    ],
)
def test_a_slice_of_a_table_has_the_digests_of_its_rows(column: pa.Array) -> None:
    table = pa.table({"x": column})
    whole = input_digests(table, ["x"])
    for start in range(5):
        assert input_digests(table.slice(start, 2), ["x"]) == whole[start : start + 2]
    joined = pa.concat_tables([table.slice(3), table.slice(0, 3)])
    assert input_digests(joined, ["x"]) == whole[3:] + whole[:3]
    assert input_digests(table.slice(5), ["x"]) == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [(pa.date32(), 1), (pa.decimal128(4, 2), None), (pa.timestamp("s"), 1), (pa.duration("s"), 1)],
)
def test_a_value_without_a_canonical_form_is_refused_by_column(
    kind: pa.DataType, value: Any
) -> None:
    column = pa.array([Decimal("1.5") if value is None else value], kind)
    with pytest.raises(
        InputError, match=r'column "when\\u001b": a value of type .* canonical form'
    ):
        input_digests(pa.table({"when\x1b": column}), ["when\x1b"])


def test_a_unit_digest_changes_with_any_key_any_digest_and_the_order() -> None:
    keys, digests = ["a", "b"], [b"1" * 8, b"2" * 8]
    known = {
        unit_digest(keys, digests),
        unit_digest(["a", "c"], digests),
        unit_digest(keys, [b"1" * 8, b"3" * 8]),
        unit_digest(keys[::-1], digests[::-1]),
        unit_digest(keys, digests[::-1]),
        unit_digest([1, 2], digests),
        unit_digest(keys[:1], digests[:1]),
    }
    assert len(known) == 7
    with pytest.raises(ValueError, match="zip"):
        unit_digest(keys, digests[:1])

"""Columns that hold arrays: whatever form they come in, one array and one digest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from PIL import Image

from softlabels.errors import InputError
from softlabels.inputs.arrays import array_of, holds_arrays, may_hold_arrays, packed, values_of
from softlabels.inputs.digests import array_digest, canonical, input_digests
from softlabels.inputs.rows import to_table

SHAPED = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def column(values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="PNG")
    return out.getvalue()


FORMS = {
    "packed": lambda: to_table([{"x": SHAPED}, {"x": SHAPED}]).column("x"),
    "nested lists": lambda: column(
        [SHAPED.tolist()] * 2, pa.list_(pa.list_(pa.list_(pa.float32())))
    ),
    "fixed lists": lambda: column(
        [SHAPED.tolist()] * 2, pa.list_(pa.list_(pa.list_(pa.float32(), 4), 3), 2)
    ),
    "Arrow tensors": lambda: pa.chunked_array(
        [pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([SHAPED, SHAPED]))]
    ),
    "datasets": lambda: (
        datasets.Dataset.from_dict(
            {"x": [SHAPED] * 2},
            features=datasets.Features({"x": datasets.Array3D((2, 3, 4), "float32")}),
        )
        .with_format("arrow")[:]
        .column("x")
    ),
    "tensors": lambda: to_table([{"x": torch.from_numpy(SHAPED)}] * 2).column("x"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_array_is_the_same_array_with_the_same_digest(form: str) -> None:
    found = FORMS[form]()
    assert holds_arrays(found.type)
    for value in values_of(found):
        array = array_of(value)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, SHAPED)
    digests = input_digests(pa.table({"x": found}), ["x"])
    expected = b"\10" + (2).to_bytes(8, "little") + b"f4"
    expected += b"".join(n.to_bytes(8, "little") for n in (3, 2, 3, 4)) + SHAPED.tobytes()
    assert digests == [xxhash.xxh3_64_digest(expected)] * 2


def test_lists_of_floats_are_arrays_and_lists_of_integers_only_for_who_takes_nothing_else() -> None:
    floats, integers = pa.list_(pa.float64()), pa.list_(pa.uint8())
    assert holds_arrays(floats)
    assert not holds_arrays(integers)
    assert may_hold_arrays(integers)
    assert holds_arrays(pa.list_(integers))
    assert not may_hold_arrays(pa.list_(pa.string()))
    assert not may_hold_arrays(pa.float32())
    (value,) = values_of(column([[3, 255]], integers))
    assert value.dtype == np.uint8


def test_an_image_is_decoded_and_its_digest_is_of_the_bytes_wherever_its_file_lies(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    data = png(pixels)
    (tmp_path / "a.png").write_bytes(data)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": data, "path": "elsewhere/b.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    found = column(rows, kind)
    assert holds_arrays(found.type)
    for value in values_of(found):
        np.testing.assert_array_equal(array_of(value), pixels)
    one, other = input_digests(pa.table({"x": found}), ["x"])
    assert one == other == xxhash.xxh3_64_digest(canonical(data))


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_images_lie_in_the_column_whatever_the_width_of_its_offsets_and_its_nulls(
    binary: pa.DataType,
) -> None:
    pixels = [np.full((2, 3), number, np.uint8) for number in range(4)]
    held = [{"bytes": png(one), "path": f"{i}.png"} for i, one in enumerate(pixels)]
    rows = [held[0], None, held[1], {"bytes": None, "path": "nowhere.png"}, held[2], held[3]]
    whole = pa.array(rows, pa.struct([("bytes", binary), ("path", pa.string())]))
    for start, stop in ((0, 6), (1, 4), (3, 6), (2, 2)):
        found = values_of(pa.chunked_array([whole.slice(start, stop - start), whole.slice(6)]))
        assert len(found) == stop - start
        for value, row in zip(found, rows[start:stop], strict=True):
            if row is None:
                assert value is None
            elif row["bytes"] is None:
                assert value == row
            else:
                assert (bytes(value["bytes"]), value["path"]) == (row["bytes"], row["path"])
                np.testing.assert_array_equal(array_of(value), array_of(row))


def test_a_palette_becomes_colours() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = [204, 0, 51]
    out = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(out, format="PNG")
    found = array_of({"bytes": out.getvalue(), "path": None})
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1.0], [2.0, 3.0]], "not of one length"),
        ([None, 1.0], "nulls, or no numbers"),
        (["a"], "nulls, or no numbers"),
        ([], "empty"),
        ({"bytes": b"no image", "path": None}, "cannot be decoded"),
        ({"bytes": None, "path": "nowhere.png"}, "cannot be read"),
        ({"bytes": "text", "path": None}, "bytes are a str"),
        ({"dtype": "<f4", "shape": [3], "data": b"1234"}, "no array"),
        ({"dtype": "O", "shape": [1], "data": b"12345678"}, "no array"),
    ],
)
def test_what_is_no_array_says_why(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        array_of(value)


def test_a_ragged_row_of_a_column_is_refused_and_a_null_row_is_none() -> None:
    found = values_of(column([[[1.0], [2.0, 3.0]], None], pa.list_(pa.list_(pa.float64()))))
    assert found[1] is None
    with pytest.raises(InputError, match="not of one length"):
        array_of(found[0])


def test_dtype_and_shape_are_part_of_the_digest() -> None:
    flat = np.zeros(6, np.float32)
    arrays = [flat, flat.reshape(2, 3), flat.reshape(3, 2), flat.view(np.int32), -flat]
    assert len({array_digest(array) for array in arrays}) == len(arrays)
    big = SHAPED.astype(">f4")
    assert array_digest(big) == array_digest(SHAPED) == array_digest(SHAPED[:, :, ::1])


def test_an_array_of_objects_is_not_packed() -> None:
    with pytest.raises(InputError, match="holds no numbers"):
        packed(np.asarray([[object()]]))

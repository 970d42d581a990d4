"""Codecs of vectors: what comes back, and how far it may be from what was given."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from softlabels import codecs
from softlabels.codecs import Int8, Needs, Product, Vectors
from softlabels.errors import CorruptShardError, InputError, UnsupportedFormatError
from softlabels.labels import Embeddings

NUMBERS = st.floats(-6e4, 6e4, width=32)
SOME = arrays.arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=NUMBERS)


def stored(codec: Any, vectors: np.ndarray, lengths: list[int] | None = None) -> np.ndarray:
    lengths = [len(vectors)] if lengths is None else lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns = codec.encode(Embeddings(torch.from_numpy(vectors)), offsets)
    assert list(columns) == [field.name for field in codec.fields]
    table = pa.table({"positions": pa.array(lengths, pa.int32()), **columns})
    found, ends = codec.decode(table)
    assert ends.tolist() == offsets.tolist()
    assert found.vectors.dtype == torch.float32
    made: np.ndarray = found.vectors.numpy()
    return made


@settings(deadline=None)
@given(SOME)
def test_float32_is_exact_and_float16_rounds_once(vectors: np.ndarray) -> None:
    width = vectors.shape[1]
    np.testing.assert_array_equal(stored(Vectors(width, "float32"), vectors), vectors)
    found = stored(Vectors(width, "float16"), vectors)
    np.testing.assert_array_equal(found, vectors.astype(np.float16).astype(np.float32))
    assert bool((np.abs(found - vectors) <= np.maximum(np.abs(vectors) * 2.0**-11, 3e-8)).all())


@settings(deadline=None)
@given(SOME)
def test_int8_is_within_half_a_scale(vectors: np.ndarray) -> None:
    found = stored(Int8(vectors.shape[1]), vectors, [len(vectors), 0])
    scale = np.abs(vectors).max(-1, keepdims=True, initial=0) / 127
    assert bool((np.abs(found - vectors) <= scale * (0.5 + 1e-5) + 2e-38).all())


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_int8_holds_whatever_float32_holds(vectors: np.ndarray) -> None:
    vectors[0, 0] = np.finfo(np.float32).max
    found = stored(Int8(4), vectors).astype(np.float64)
    scale = np.maximum(np.abs(vectors.astype(np.float64)).max(-1, keepdims=True) / 127, 1.2e-38)
    assert bool((np.abs(found - vectors) <= scale * (0.5 + 1e-5)).all())


def learnt(width: int = 16, count: int = 600) -> tuple[np.ndarray, Product]:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(40, width))
    vectors = middles[rng.integers(40, size=count)] + 0.05 * rng.normal(size=(count, width))
    vectors = vectors.astype(np.float32)
    return vectors, Product.learn(vectors)


def test_product_codes_take_the_nearest_centroid_of_every_part() -> None:
    vectors, codec = learnt()
    assert (codec.parts, codec.centroids.shape) == (2, (2, 256, 8))
    found = stored(codec, vectors, [100, 500])
    pieces = vectors.reshape(-1, 2, 8)
    far = np.square(pieces[:, :, None] - codec.centroids[None]).sum(-1)
    for part in range(2):
        nearest = codec.centroids[part][far[:, part].argmin(-1)]
        np.testing.assert_array_equal(found.reshape(-1, 2, 8)[:, part], nearest)
    error = np.square(found - vectors).mean()
    assert codec.error == pytest.approx(error, rel=1e-5)
    assert error < 0.05**2 < vectors.var() / 100


def test_a_book_is_learnt_the_same_every_time_and_of_fewer_parts_where_it_must() -> None:
    vectors, codec = learnt()
    assert Product.learn(vectors) == codec
    assert Product.learn(np.ascontiguousarray(vectors[:, :7])).parts == 1
    assert Product.learn(np.ascontiguousarray(vectors[:, :12]), 4).parts == 4
    with pytest.raises(InputError, match="16 numbers do not make 5 equal parts"):
        Product.learn(vectors, 5)


def test_records_without_positions_are_written_by_every_codec() -> None:
    _, codec = learnt()
    for each in (codec, Int8(16), Vectors(16), Vectors(16, "float32")):
        assert stored(each, np.zeros((0, 16), np.float32), [0, 0]).shape == (0, 16)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e17])
def test_no_book_is_learnt_of_vectors_without_a_nearest_centroid(bad: float) -> None:
    vectors, codec = learnt()
    vectors[5, 2] = bad
    with pytest.raises(InputError, match=r"made for numbers up to 1e\+16; choose"):
        Product.learn(vectors)
    with pytest.raises(InputError, match=r"made for numbers up to|infinite, or NaN"):
        stored(codec, vectors)


def test_a_product_code_takes_a_byte_in_a_file() -> None:
    vectors, codec = learnt()
    columns = codec.encode(Embeddings(torch.from_numpy(vectors)), np.asarray([0, len(vectors)]))
    file = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        file,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=codec.split_columns or False,
    )
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert column.total_compressed_size < 1.1 * codec.parts * len(vectors)


def test_a_book_is_learnt_of_half_precision_too() -> None:
    vectors, _ = learnt()
    half = Embeddings(torch.from_numpy(vectors).bfloat16())
    codec = codecs.resolve("product", Needs(16, 16, (), kind="embedding"), pilot=lambda: half)
    assert codec == Product.learn(half.vectors.float().numpy())


def test_a_codec_of_vectors_comes_back_from_its_json() -> None:
    vectors, _ = learnt()
    for name in ("float32", "float16", "int8", "product"):
        needs = Needs(16, 16, (), kind="embedding")
        codec = codecs.resolve(name, needs, pilot=lambda: Embeddings(torch.from_numpy(vectors)))
        assert codecs.from_json(json.loads(json.dumps(codec.to_json()))) == codec
        assert codec.kind == "embedding"
    assert codecs.default(sampled=False, kind="embedding") == "float16"


def test_vectors_that_a_codec_cannot_hold_are_refused() -> None:
    far = np.full((1, 4), 7e4, np.float32)
    with pytest.raises(InputError, match="70000, more than float16 holds"):
        stored(Vectors(4), far)
    with pytest.raises(InputError, match="infinite, or NaN"):
        stored(Int8(4), far * np.inf)
    with pytest.raises(InputError, match="3 numbers; the codec was made for 4"):
        stored(Vectors(4), far[:, :3])
    few = Embeddings(torch.zeros(255, 16))
    with pytest.raises(InputError, match="learnt of 255 vectors of 16 numbers"):
        codecs.resolve("product", Needs(16, 16, (), kind="embedding"), pilot=lambda: few)


def test_a_damaged_book_or_list_is_found() -> None:
    _, codec = learnt()
    told = codec.to_json()
    for damage in ({"book": told["book"][:-8]}, {"width": 8}, {"parts": 3}, {"book": "AAAA"}):
        with pytest.raises(Exception, match="product cannot be read"):
            codecs.from_json(told | damage)
    for name in ("int8", "product"):
        with pytest.raises(UnsupportedFormatError, match=f"{name} cannot be read"):
            codecs.from_json(told | {"name": name, "width": 0, "book": ""})
    table = pa.table(
        {
            "positions": pa.array([2], pa.int32()),
            "codes": pa.array([[1, 2, 3]], pa.list_(pa.uint8())),
        }
    )
    with pytest.raises(CorruptShardError, match="do not fit the positions"):
        codec.decode(table)

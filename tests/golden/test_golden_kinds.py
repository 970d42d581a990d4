"""Sets of arrays, views, independent classes and vectors are read for ever, and by others too."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
import zstandard

import softlabels as sl
from softlabels.verifying.verify import verify

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import kinds  # noqa: E402

DIGESTS = {
    "binary": "93066a94bfd83109e42f6e105b3804363d709413f9a774379599d10abdf530b1",
    "binary-all": "89c9d8c5fae8a39cd7c2f87d8e6fc9151e8b349628b63ee8968d9eb67779c870",
    "binary-plain": "72c1e203a03d2c67bc21a124f40f0c05f0333946567ea90761107ab36edd3583",
    "float32": "c93257f3f26b508c7ef614a931426a97e5f7662de9962efa6c7dbf90b6fb6d2a",
    "float16": "86d788fc8a9607578135f12e94d525c1bfc79201d016305470b89509d61a34ea",
    "int8": "844cf44a6b2e1fc9e1c58b073ee7e623311def911ff6c7fff1e64cdf52dc59fd",
    "product": "af2582c858cb0c9c6bf6f5c95e21dacd1075dfe41d7fcfe23b51996376f0af38",
    "views": "b96fc48b6bd6cebbc0749c581edb55df39fadae8d58b70cee58c6a7801c72362",
}
NAMES = [*kinds.CODECS, "views"]
by_name = pytest.mark.parametrize("name", NAMES)


def folder(name: str) -> Path:
    return HERE / f"1.0-{name}"


def table(name: str) -> pa.Table:
    return pq.read_table(folder(name) / "data")


def plan(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(name) / "plan.json").read_bytes())
    return found


@by_name
def test_the_files_are_those_that_were_kept(name: str) -> None:
    state = hashlib.sha256()
    for path in sorted(path for path in folder(name).rglob("*") if path.is_file()):
        state.update(str(path.relative_to(HERE)).encode() + path.read_bytes())
    assert state.hexdigest() == DIGESTS[name]


def array_bytes(array: np.ndarray) -> bytes:
    """As docs/FORMAT.md has it in its table of canonical bytes, after the tag."""
    name = array.dtype.str[1:].encode()
    shape = struct.pack("<Q", array.ndim) + b"".join(struct.pack("<Q", n) for n in array.shape)
    return struct.pack("<Q", len(name)) + name + shape + array.tobytes()


@by_name
def test_digests_are_of_the_arrays_that_were_labelled(name: str) -> None:
    for row in table(name).to_pylist():
        record = int(row["key"][1:])
        told = json.loads(row["view_params"]) if row.get("view_params") else None
        array = kinds.frames(record)
        source = b"\x08" + array_bytes(array)
        if name == "views":
            label = f"c{record}".encode()
            source += b"\x04" + struct.pack("<Q", len(label)) + label
        assert row["input_digest"] == xxhash.xxh3_64_digest(source)
        if told is not None:
            other = kinds.frames(int(told["partner"][1:]))
            array = kinds.turned(array, told, other)
        assert row["prepared_digest"] == xxhash.xxh3_64_digest(array_bytes(array))
        assert (row["view"] == 0) == (told is None)


def values_of(name: str) -> list[np.ndarray]:
    """What a set holds of each record, read from its columns by hand: dense logits or vectors."""
    codec, found = plan(name)["codec"], []
    for row in table(name).to_pylist():
        count = row["positions"]
        match codec["name"]:
            case "float32" | "float16":
                found.append(np.asarray(row["vectors"], np.float32).reshape(count, -1))
            case "int8":
                codes = np.asarray(row["vectors"], np.float32).reshape(count, -1)
                found.append(codes * np.asarray(row["scales"], np.float32)[:, None])
            case "product":
                book = zstandard.ZstdDecompressor().decompress(base64.b64decode(codec["book"]))
                parts = codec["parts"]
                centroids = np.frombuffer(book, "<f4").reshape(parts, 256, -1)
                codes = np.asarray(row["codes"]).reshape(count, parts)
                pieces = [centroids[part][codes[:, part]] for part in range(parts)]
                found.append(np.concatenate(pieces, 1))
            case "binary_plain":
                dense = np.full((count, kinds.CLASSES), np.nan)
                ids = np.asarray(row["ids"]).reshape(count, -1)
                np.put_along_axis(dense, ids, np.reshape(row["log_odds"], ids.shape), 1)
                found.append(dense)
            case "binary":
                found.append(packed(row, codec))
    return found


def packed(row: dict[str, Any], codec: dict[str, Any]) -> np.ndarray:
    """A frame of the codec binary: the plane of gaps, two of codes, two for each floor."""
    count, k, bits = row["positions"], codec["k"], codec["bits"]
    assert bits == 12
    blob = row["packed"]
    assert blob[-1:] == b"\x01"
    dictionary = zstandard.ZstdCompressionDict(base64.b64decode(codec["dictionary"]))
    given = {"dict_data": dictionary} if codec["dictionary"] else {}
    data = zstandard.ZstdDecompressor(**given).decompress(blob[:-1])
    planes = np.frombuffer(data[: 3 * count * k], np.uint8).reshape(3, count, k).astype(int)
    ranks = np.cumsum(planes[0] + 1, 1) - 1
    table = np.frombuffer(
        zstandard.ZstdDecompressor().decompress(base64.b64decode(codec["table"])), "<u4"
    ).astype(int)
    rest = np.setdiff1d(np.arange(kinds.CLASSES), table)
    ids = np.concatenate([table, rest])[ranks]
    dense = np.full((count, kinds.CLASSES), np.nan)
    np.put_along_axis(dense, ids, odds(planes[1] + 256 * planes[2], bits), 1)
    if k < kinds.CLASSES:
        floors = np.frombuffer(data[3 * count * k :], np.uint8).reshape(-1, 2, count).astype(int)
        assert len(floors) == len(codec["temperatures"])
        row["floors"] = odds(floors[:, 0] + 256 * floors[:, 1], 16).T.ravel()
    return dense


def odds(codes: np.ndarray, bits: int) -> np.ndarray:
    middle = 2 ** (bits - 1) - 1
    found: np.ndarray = 2 * np.sinh((codes - middle) * np.arcsinh(64) / middle)
    return found


BOUNDS = {
    "float32": 1e-6, "float16": 6e-3, "int8": 0.06, "product": 0.2, "binary-plain": 1e-6,
    "binary": 0.02, "binary-all": 0.02,
}  # fmt: skip


@pytest.mark.parametrize("name", kinds.CODECS)
def test_values_read_by_hand_are_the_teachers_and_the_librarys(name: str) -> None:
    labels = sl.LabelSet.open(folder(name))
    for number, by_hand in enumerate(values_of(name)):
        exact = kinds.answers(kinds.frames(number))
        known = ~np.isnan(by_hand)
        assert np.abs(by_hand - exact)[known].max() <= BOUNDS[name]
        found: Any = labels[number]
        if isinstance(found, sl.Embeddings):
            np.testing.assert_allclose(found.vectors.numpy(), by_hand, rtol=1e-6)
            continue
        dense = np.full(by_hand.shape, np.nan)
        np.put_along_axis(dense, found.ids.numpy(), found.log_odds.double().numpy(), 1)
        np.testing.assert_allclose(dense, by_hand, rtol=1e-6, atol=1e-6)
        if found.k == kinds.CLASSES:
            assert found.floors is None
            continue
        left = np.where(known, -np.inf, exact)
        for place, temperature in enumerate(kinds.TEMPERATURES):
            sums = (1 / (1 + np.exp(-left / temperature))).sum(1)
            mean = sums / (kinds.CLASSES - found.k)
            floor = found.floors[:, place].double().sigmoid().numpy()
            np.testing.assert_allclose(floor, mean, rtol=2e-3)


def test_views_read_by_hand_are_what_the_teacher_said_of_them() -> None:
    labels = sl.LabelSet.open(folder("views"))
    assert labels.plan.class_names == tuple(f"c{i}" for i in range(kinds.CLASSES))
    for row in table("views").to_pylist():
        array = kinds.frames(int(row["key"][1:]))
        if row["view"]:
            told = json.loads(row["view_params"])
            array = kinds.turned(array, told, kinds.frames(int(told["partner"][1:])))
        logits = torch.from_numpy(kinds.answers(array)[0])
        expected = torch.log_softmax(logits, -1).float()
        ids = torch.tensor(row["ids"])
        torch.testing.assert_close(torch.tensor(row["log_probs"]), expected[ids])
        assert ids.tolist() == logits.topk(3).indices.tolist()
        hard = expected[int(row["key"][1:])]
        assert row["hard_log_probs"][0] == pytest.approx(float(hard), rel=1e-5)
        assert labels.get(row["key"], view=row["view"]).ids[0].tolist() == row["ids"]


@by_name
def test_a_kept_set_is_whole_and_joins_its_data(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(folder(name), copy)
    assert not verify(copy).findings
    labels = sl.LabelSet.open(copy)
    rows = kinds.rows(300 if name == "product" else kinds.RECORDS)
    views = kinds.VIEWS if name == "views" else None
    seen = sum(len(batch["key"]) for batch in sl.loader(labels, rows, batch_size=4, views=views))
    assert seen == len(labels) == len(rows) * (3 if name == "views" else 1)

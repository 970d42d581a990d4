"""manifest.json and shards.parquet: what they may name, and what they hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from softlabels import LabelSet
from softlabels.errors import LabelSetError
from softlabels.format import manifest
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.receipts import Receipts

RECEIPT: dict[str, Any] = {
    "path": "data/train-00003.parquet",
    "unit": 3,
    "rows": 3,
    "positions": 12,
    "entries": 36,
    "source_rows": 4,
    "bytes": 1000,
    "sha256": "a" * 64,
    "footer_bytes": 500,
    "footer_sha256": "b" * 64,
    "group_rows": [2, 1],
    "chunk_digests": [["0123456789abcdef", "0" * 16], ["f" * 16, "1" * 16]],
    "input_digest": "c" * 32,
    "rejects": 1,
    "truncated": 0,
}
ESCAPES = [
    "../data/train-00000.parquet",
    "data/../../secret",
    "data/..",
    "..",
    ".",
    "./data",
    "/etc/passwd",
    "data//x",
    "data/",
    "",
    "~/x",
    "C:\\x",
    "data\\x",
    "C:x",
    "file:///etc/passwd",
    "data/x\n",
    "data/x\x00",
    "data/\x1b[2Jx",
    ".ssh/id",
    "data/.hidden",
]


def receipt(**changes: Any) -> Receipt:
    return manifest.parse_receipt(json.dumps(RECEIPT | changes).encode(), where="receipt")


@pytest.mark.parametrize("path", ESCAPES)
def test_a_receipt_may_name_nothing_outside_its_set(path: str) -> None:
    with pytest.raises(LabelSetError, match=r"^receipt: path: "):
        receipt(path=path)


@pytest.mark.parametrize("path", ESCAPES)
def test_a_manifest_may_name_nothing_outside_its_set_nor_write_to_a_terminal(path: str) -> None:
    data = json.loads(Path(__file__).with_name("manifest.json").read_bytes())
    data["files"] = {path: "a" * 64}
    with pytest.raises(LabelSetError, match=r"^manifest: files\.") as caught:
        manifest.parse(json.dumps(data).encode(), where="manifest")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["../stolen.parquet", "/etc/passwd"])
def test_a_set_whose_shard_table_points_outside_is_refused(tiny: Path, path: str) -> None:
    table = tiny / "shards.parquet"
    receipts = list(Receipts.parse(table.read_bytes(), where="table"))
    moved = [Receipt.model_construct(**{**dict(one), "path": path}) for one in receipts]
    table.write_bytes(manifest.shard_table(moved))
    where = tiny / "manifest.json"
    data = json.loads(where.read_bytes())
    data["files"]["shards.parquet"] = hashlib.sha256(table.read_bytes()).hexdigest()
    del data["shards_footer"]  # so that the table is checked as a whole
    where.write_text(json.dumps(data))
    with pytest.raises(LabelSetError, match="path"):
        LabelSet.open(tiny)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", -1),
        ("bytes", "many"),
        ("sha256", "A" * 64),
        ("sha256", "a" * 63),
        ("footer_sha256", None),
        ("chunk_digests", [["0" * 16]]),
        ("chunk_digests", [["0" * 16], ["0" * 16], ["0" * 16]]),
        ("group_rows", [2, 2]),
        ("unit", None),
    ],
)
def test_a_receipt_that_contradicts_itself_is_refused(name: str, value: Any) -> None:
    with pytest.raises(LabelSetError, match=r"^receipt: "):
        receipt(**{name: value})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_what_is_no_manifest_is_refused_in_words(data: bytes) -> None:
    for parse in (manifest.parse, manifest.parse_receipt, Receipts.parse):
        with pytest.raises(LabelSetError, match=r"^where: "):
            parse(data, where="where")


def test_unknown_fields_are_ignored() -> None:
    assert receipt(colour="blue") == receipt()


def test_a_manifest_is_written_to_the_same_bytes_that_it_was_read_from() -> None:
    data = Path(__file__).with_name("manifest.json").read_bytes()
    found = manifest.parse(data, where="manifest")
    assert isinstance(found, Manifest)
    assert found.to_bytes() == data


def test_receipts_come_back_from_the_shard_table() -> None:
    receipts = [receipt(), receipt(unit=4, group_rows=[], chunk_digests=[], rows=0)]
    found = Receipts.parse(manifest.shard_table(receipts), where="table")
    assert list(found) == receipts


def test_totals_are_sums_over_shards() -> None:
    total = manifest.total([receipt(), receipt(positions=5)])
    assert total.shards == 2
    assert total.records == 6
    assert total.positions == 17
    assert total.rejects == 2
    assert manifest.total([]).bytes == 0

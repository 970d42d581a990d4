"""Opening a shard: what is checked, what is put off, and what is held."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import CorruptShardError
from softlabels.format import shard, shard_writing
from softlabels.format.shard import Shard
from softlabels.labelset import held as in_memory
from softlabels.stores.directory import Directory

Precompute = Callable[..., sl.LabelSet]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the footer was parsed")


def test_a_shard_that_is_only_checked_is_not_parsed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (receipt, *_) = sl.LabelSet.open(tiny).receipts
    file = tiny / receipt.path
    monkeypatch.setattr(shard.pq, "ParquetFile", never)
    Shard(file, receipt=receipt, name="shard")
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptShardError, match="its footer is not the one"):
        Shard(file, receipt=receipt, name="shard")


def test_a_receipt_with_other_row_groups_is_refused_before_anything_is_read(tiny: Path) -> None:
    (receipt, *_) = sl.LabelSet.open(tiny).receipts
    rows, digests = receipt.group_rows, receipt.chunk_digests
    forged = receipt.model_copy(
        update={"group_rows": (1, *rows), "chunk_digests": (digests[0], *digests)}
    )
    opened = Shard(tiny / receipt.path, receipt=forged, name="shard")
    for _ in range(2):
        with pytest.raises(CorruptShardError, match="row groups are not those of the receipt"):
            opened.read(0)


def test_keys_of_all_row_groups_are_read_at_once_and_checked_first(
    precompute: Precompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 2)
    labels = precompute(tmp_path / "set")
    for receipt, start in zip(labels.receipts, labels.receipts.starts.tolist(), strict=False):
        file = labels.root / receipt.path
        opened = Shard(file, receipt=receipt, name="shard")
        assert len(receipt.group_rows) > 1
        expected = labels.identities["key"][start : start + receipt.rows]
        assert opened.keys().to_pylist() == expected.to_pylist()
        last = opened.metadata.row_group(len(receipt.group_rows) - 1).column(0)
        assert last.path_in_schema == "key"
        data = bytearray(file.read_bytes())
        data[last.data_page_offset + last.total_compressed_size - 1] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptShardError, match="column key: digest"):
            Shard(file, receipt=receipt, name="shard").keys()


def test_shards_of_large_footers_are_closed_before_they_are_many(
    precompute: Precompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 3]} for i in range(12)]
    made = precompute(tmp_path / "set", rows, unit_rows=1)
    largest = int(made.receipts.numbers("footer_bytes").max())
    monkeypatch.setattr(in_memory, "_CACHE_BYTES", 0)
    for limit, held in ((3 * largest, 3), (1, 1)):
        monkeypatch.setattr(in_memory, "_OPEN_FOOTER_BYTES", limit)
        labels = sl.LabelSet.open(tmp_path / "set")
        for number in [*range(12), *range(11, -1, -1)]:
            assert torch.equal(labels[number].ids, made[number].ids)
            assert len(labels._held._shards) <= held
        assert labels._held._opening == {}


def test_files_are_named_as_deep_as_they_lie_and_nothing_else_is(tmp_path: Path) -> None:
    folder = Directory(tmp_path)
    assert list(folder.files("data")) == []
    for name in ("data/b", "data/a", "data/deep/er/c", "data.txt", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    os.symlink("nowhere", tmp_path / "data" / "broken")
    os.mkfifo(tmp_path / "data" / "pipe")
    assert sorted(folder.files("data")) == ["data/a", "data/b", "data/deep/er/c"]
    assert list(folder.files("file")) == []
    found = {name: folder.size(name) for name in ("data/a", "data", "data/pipe", "no", "file/no")}
    assert found == {"data/a": 2, "data": None, "data/pipe": None, "no": None, "file/no": None}

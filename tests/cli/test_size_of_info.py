"""`softlabels info` of a large set looks into a few of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.cli import look
from softlabels.format.manifest import Receipt
from softlabels.format.shard import Shard


def test_records_of_one_position_are_sampled_in_few_shards(
    tmp_path: Path, precompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16] * 2} for i in range(80)]
    labels = sl.LabelSet.open(precompute(tmp_path / "set", rows, unit_rows=2).root)
    assert len(labels.receipts) == 40
    monkeypatch.setattr(look, "_SAMPLE_POSITIONS", 40)
    monkeypatch.setattr(look, "_STRETCHES", 3)
    opened, shard = [], labels._store.shard

    def counting(receipt: Receipt) -> Shard:
        opened.append(receipt.unit)
        return shard(receipt)

    monkeypatch.setattr(labels._store, "shard", counting)
    assert look._limit(labels) is not None
    # Three stretches of seven records, two of which are in a shard.
    assert 9 <= len(opened) <= 15

"""A set that is damaged while a student trains: a named error, never a wrong batch or a hang."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabels as sl
from softlabels.errors import CorruptShardError

Precompute = Callable[..., sl.LabelSet]


def values(batch: dict[str, Any]) -> Any:
    return batch["key"], batch["soft_labels"].ids.tolist(), batch["soft_labels"].log_probs.tolist()


def flip(shard: Path) -> None:
    """One bit of every byte before the footer, in place."""
    data = bytearray(shard.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for place in range(4, len(data) - footer):
        data[place] ^= 1
    with shard.open("r+b") as file:
        file.write(data)


def replace(shard: Path) -> None:
    """By another shard of the set, of another size or not."""
    other = next(path for path in sorted(shard.parent.iterdir()) if path != shard)
    shutil.copy(other, shard.with_name("new"))
    os.replace(shard.with_name("new"), shard)


def truncate(shard: Path) -> None:
    """In place, as a copy that has just begun leaves it."""
    os.truncate(shard, 100)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "removed": Path.unlink,
    "replaced": replace,
    "truncated": truncate,
}


def test_a_large_shard_that_is_cut_in_place_is_an_error_and_not_a_bus_error(
    tmp_path: Path, precompute: Precompute
) -> None:
    ids = np.random.default_rng(0).integers(0, 16, (60, 300)).tolist()
    rows = [{"id": f"s{i}", "ids": row} for i, row in enumerate(ids)]
    whole = precompute(tmp_path / "set", rows, unit_rows=30, max_length=300)
    labels = sl.LabelSet.open(whole.root)
    shard = whole.root / labels.receipts[1].path
    assert shard.stat().st_size > 8 * os.sysconf("SC_PAGE_SIZE")
    batches = iter(sl.loader(labels, batch_size=30, threads=0))
    labels._held.shard(1)
    next(batches)
    truncate(shard)
    with pytest.raises(CorruptShardError, match=r"train-00001\.parquet: it was cut to 100 of"):
        next(batches)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("codec", ["plain", "compact"])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("opened", [True, False])
def test_a_shard_that_is_damaged_while_a_student_trains_is_named(
    tmp_path: Path, precompute: Precompute, damage: str, codec: str, threads: int, opened: bool
) -> None:
    rows = [{"id": f"s{i}", "ids": [(i * j) % 16 for j in range(1, 6)]} for i in range(12)]
    whole = precompute(tmp_path / "whole", rows, codec=codec)
    expected = [values(batch) for batch in sl.loader(whole, batch_size=1)]
    root = Path(shutil.copytree(whole.root, tmp_path / "set"))
    labels = sl.LabelSet.open(root)
    if opened:  # the file is mapped, none of its rows read
        labels._held.shard(3)
    batches = iter(sl.loader(labels, batch_size=1, threads=threads, prefetch=1))
    found = [values(next(batches))]
    DAMAGES[damage](root / "data" / "train-00003.parquet")
    try:
        found.extend(map(values, batches))
    except CorruptShardError as error:
        assert "train-00003.parquet" in str(error)
        assert 9 <= len(found) < 12
    else:
        # What was mapped before it was unlinked is still what was written.
        assert opened
        assert damage in ("removed", "replaced")
    assert found == expected[: len(found)]

"""Paths in manifests that lead out of the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forge import FIRST, edit_json, publish, refusal, refusals

import softlabels as sl
from softlabels.errors import LabelSetError
from softlabels.format.receipts import Receipts

PATHS = [
    "../outside.parquet", "data/../../outside.parquet", "/etc/passwd", "/dev/zero", "/dev/stdin",
    "//host/share", "C:\\data", "data\\train", "data//train", "data/", ".hidden", "data/.hidden",
    "", ".", "..", "data/train\n", "data/train\0", "~root/x", "file:///etc/passwd",
    "a" * 100_000 + "!",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_of_a_shard(tiny: Path, path: str) -> None:
    receipts = list(Receipts.parse((tiny / "shards.parquet").read_bytes(), where=""))
    forged = receipts[0].model_copy(update={"path": path})
    publish(tiny, [forged, *receipts[1:]])
    with pytest.raises(LabelSetError, match="path"):
        sl.LabelSet.open(tiny)
    assert refusals(tiny)


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_of_another_file(tiny: Path, path: str) -> None:
    def change(found: Any) -> None:
        found["files"][path] = "0" * 64

    edit_json(tiny / "manifest.json", change)
    with pytest.raises(LabelSetError, match="files"):
        sl.LabelSet.open(tiny)


def test_of_the_split_that_names_the_probes(packed: Path) -> None:
    """`data.split` is for people; only its letters and digits become a file's name."""
    from forge import replant, reseal

    edit_json(packed / "plan.json", lambda plan: plan["data"].update(split="../../etc/passwd"))
    replant(packed)
    reseal(packed)
    words = refusal(lambda: list(sl.LabelSet.open(packed).probes())) or ""
    assert ".." not in words
    assert (packed / FIRST).is_file()

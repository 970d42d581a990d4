"""Writing a shard: the bytes do not depend on how many threads encode it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softlabels.format import shard_writing


@pytest.mark.parametrize("codec", ["compact", "plain"])
def test_a_shard_encoded_by_many_threads_is_the_same_to_the_byte(
    codec: str, tmp_path: Path, precompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [{"id": f"s{i}", "ids": rng.integers(0, 16, 22).tolist()} for i in range(40)]
    monkeypatch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 22)
    asked: list[int] = []
    in_order = shard_writing.in_order

    def noted(*args: Any, workers: int) -> Any:
        asked.append(workers)
        return in_order(*args, workers=workers)

    monkeypatch.setattr(shard_writing, "in_order", noted)
    written = []
    for threads in (1, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        out = tmp_path / f"{threads}"
        precompute(out, rows, unit_rows=40, codec=codec)
        (path,) = (out / "data").glob("*.parquet")
        written.append(path.read_bytes())
    assert asked == [1, 4]
    assert written[0] == written[1]

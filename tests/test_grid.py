"""A grid over losses and k on one set, in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[1] / "pipelines"


def test_a_grid_ends_in_one_table_and_one_figure(tmp_path: Path, finished_set: Path) -> None:
    command = [
        sys.executable, PIPELINES / "grid.py", finished_set, "--out", tmp_path / "out",
        "--loss", "ce", "kl", "logit_mse", "--k", 2, 16, "--temperature", 1, 2,
        "--seeds", 1, "--epochs", 1, "--batch-size", 16,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out" / "results.json").read_text())
    names = [arm["arm"] for arm in made["arms"]]
    assert names == [
        "ce",
        *(f"kl, k = {k}, T = {t}, hard 0" for k in (2, 16) for t in (1, 2)),
        *(f"logit_mse, k = {k}, T = 1, hard 0" for k in (2, 16)),
    ]
    assert done.stderr.count("left out: logit_mse") == 2
    assert done.stdout.count("\n|") == 2 + len(names)
    assert len({arm["kl"] for arm in made["arms"]}) == len(names)
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")

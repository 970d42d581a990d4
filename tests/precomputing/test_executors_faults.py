"""Ranks that do not see the same data, and workers whose teacher ends them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import softlabels as sl
from softlabels.errors import PlanMismatchError

EXITS = """
import sys
import softlabels as sl

def exits(ids):
    sys.exit("enough")

if __name__ == "__main__":
    teacher = sl.teachers.from_callable(exits, name="exits", version="1", classes=16)
    rows = [{"ids": [1, 2]}] * 4
    settings = {"column": "ids", "codec": "plain", "unit_rows": 1, "progress": False}
    sl.precompute(rows, teacher, sys.argv[1], workers=2, **settings)
"""


@pytest.mark.parametrize(("first", "then"), [(10, 12), (12, 10)])
def test_ranks_that_saw_other_data_do_not_finish_a_set(
    precompute: Callable[..., sl.LabelSet], tmp_path: Path, first: int, then: int
) -> None:
    rows = [{"id": str(i), "ids": [1, 2, 3]} for i in range(12)]
    out = tmp_path / "labels"
    precompute(out, rows[:first], unit_rows=4, rank=0, world_size=2)
    with pytest.raises(PlanMismatchError, match=f"hold {first} rows, the data {then}:"):
        precompute(out, rows[:then], unit_rows=4, rank=1, world_size=2)
    assert not (out / "manifest.json").exists()


def test_a_worker_whose_teacher_exits_says_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EXITS)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "labels")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 1
    assert "SystemExit: enough" in done.stderr

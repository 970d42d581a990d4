"""The grid of students, in small: every label set, every arm, the table and the figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[1] / "pipelines"


def test_the_grid_ends_in_a_table_and_goes_on_where_it_was(
    tmp_path: Path, texts: list[str]
) -> None:
    rows = [{"id": n, "text": " ".join(texts[n : n + 3])[:600]} for n in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, PIPELINES / "students.py", "--text", "text.jsonl", "--out", "out",
        "--small-teacher", "--teacher-steps", 2, "--windows", 10, "--dense-windows", 2,
        "--size", "nano", "--epochs", 1, "--seeds", 1, "--device", "cpu",
    ]  # fmt: skip

    def students() -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = students()
    made = json.loads((tmp_path / "out" / "results.json").read_text())
    arms = {arm["arm"]: arm for arm in made["arms"]}
    assert len(arms) == 13
    assert printed.count("\n|") == 2 + len(arms)
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert arms["top 8"]["bytes"] < arms["top 32"]["bytes"] < arms["top 64"]["bytes"]
    assert arms["all classes, few texts"]["entries"] == 4096
    assert arms["drawn, bytes of top 8"]["entries"] < arms["drawn, bytes of top 64"]["entries"]
    # Students of one seed begin alike, and every arm has learnt something else.
    assert len({arm["kl"] for arm in arms.values()}) == len(arms)
    assert printed.endswith(students())

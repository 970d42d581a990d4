"""`softlabels plan`: a forecast in words, as JSON, and in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_the_command_prints_a_table_and_writes_json(
    softlabels: Any, tmp_path: Path, teacher_dir: Path, data_file: Path
) -> None:
    command = (
        *("plan", "--teacher", teacher_dir, "--data", data_file, "--key", "id", "--k", 16),
        *("--max-length", 64, "--sample", 5, "--quiet", "--write", tmp_path / "plan.json"),
    )
    done = softlabels(*command)
    assert (done.code, done.err) == (0, "")
    assert "5 of 8 samples labelled" in done.out
    assert "compact" in done.out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["chosen"]["k"] == 16
    as_json = softlabels(*command, "--json").json
    assert as_json["sample_tokens"] == written["sample_tokens"]
    assert as_json["choices"] == written["choices"]
    assert not (tmp_path / "out").exists()

"""Ctrl-C, once and again: it ends soon, says how to go on, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from same_set import contents

import softlabels as sl
from softlabels.verifying.verify import verify

pytestmark = pytest.mark.slow

UNITS = 60


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """Data enough that a job is still at work when it is interrupted."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    short = [row for row in rows if len(row["text"]) < 400]
    samples = [
        {"id": f"s{index}", "text": short[index % len(short)]["text"]} for index in range(4 * UNITS)
    ]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def label(out: Path, teacher: Path, data: Path) -> sl.LabelSet:
    return sl.precompute(
        str(data), teacher, out, selection=sl.TopK(16), key="id", max_length=64, unit_rows=4,
        batch_tokens=64, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("again_after_s", [None, 0.05, 0.5])
def test_an_interrupted_command_ends_soon_says_how_to_go_on_and_goes_on(
    tmp_path: Path, teacher_dir: Path, many: Path, again_after_s: float | None
) -> None:
    out = tmp_path / "set"
    command = [
        str(Path(sys.executable).with_name("softlabels")), "precompute", "--teacher",
        str(teacher_dir), "--data", str(many), "--out", str(out), "--key", "id", "--k", "16",
        "--max-length", "64", "--unit-rows", "4", "--batch-tokens", "64",
    ]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        while len(list(out.glob("data/*.parquet"))) < 2 and running.poll() is None:
            time.sleep(0.002)
        running.send_signal(signal.SIGINT)
        if again_after_s is not None:
            time.sleep(again_after_s)
            running.send_signal(signal.SIGINT)  # to one that has ended it does nothing
        try:
            stdout, stderr = running.communicate(timeout=30)
        finally:
            running.kill()
    assert running.returncode == 130, stderr
    assert "run the same command again" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert stdout == ""
    assert json.loads(stderr.splitlines()[0])["event"] in ("progress", "stopped")
    assert not (out / "manifest.json").exists()
    assert verify(out).findings == ()
    units = len(list(out.glob("data/*.parquet")))
    assert 2 <= units < UNITS
    assert len(sl.LabelSet.open(out, unfinished=True).receipts) in (units - 1, units)
    label(out, teacher_dir, many)
    assert contents(out) == contents(label(tmp_path / "whole", teacher_dir, many).root)

"""`softlabels plan`: a forecast in words, as JSON, and in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


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


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_looked_at(
    softlabels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.cli import output

    def refused(path: Path) -> str:
        nothing = ("--teacher", tmp_path / "no-teacher", "--data", tmp_path / "no-data.jsonl")
        done = softlabels("plan", *nothing, "--quiet", "--write", path)
        assert done.code == 2
        assert "--write" in done.err
        assert "name a file in a folder that is there" in done.err
        return str(done.err)

    assert "there is no folder" in refused(tmp_path / "none" / "plan.json")
    assert "it is a folder" in refused(tmp_path)

    def full(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", full)
    assert "(Read-only file system)" in refused(tmp_path / "plan.json")
    (tmp_path / "old.json").write_text("{}")
    monkeypatch.setattr(output.os, "access", lambda *_: False)  # root may write anything
    assert "is there and is not writable" in refused(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "{}"


def test_what_probes_take_is_told_apart_from_the_rest(
    softlabels: Any, teacher_dir: Path, data_file: Path
) -> None:
    done = softlabels(
        *("plan", "--teacher", teacher_dir, "--data", data_file, "--key", "id", "--k", 16),
        *("--max-length", 64, "--sample", 5, "--quiet", "--probes", 8, "--temperatures", 2),
    )
    assert (done.code, done.err) == (0, "")
    assert "kB of them probes" in done.out
    assert "KL added at T = 2, nats" in done.out

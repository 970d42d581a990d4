"""kill -9 at any moment, then the same command: the same set, nothing twice, nothing left over."""

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

# Runs precompute in a process of its own and kills it with SIGKILL at the n-th call of a function.
KILLED = """
import json, os, signal, sys
import softlabels as sl
from softlabels.format import shard_writing
from softlabels.stores.directory import Directory, Path

place, count, teacher, data, out = sys.argv[1:]
calls = 0

def killing(function, before):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if before and calls == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if not before and calls == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

if place == "before link":
    os.link = killing(os.link, True)
elif place == "after link":
    os.link = killing(os.link, False)
elif place == "while writing":
    shard_writing.to_table = killing(shard_writing.to_table, False)
elif place == "before small file":
    Directory.replace = killing(Directory.replace, True)
elif place == "after small file":
    Directory.replace = killing(Directory.replace, False)
elif place == "after dropping receipts":
    unlink = Path.unlink
    drop = killing(unlink, False)
    Path.unlink = lambda path, missing_ok=False: (
        drop if path.parent.name == "receipts" and path.exists() else unlink
    )(path, missing_ok)

rows = [json.loads(line) for line in open(data)]
sl.precompute(rows, teacher, out, selection=sl.TopK(16), key="id", max_length=64,
              unit_rows=16, batch_tokens=512, codec="plain")
"""


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(out: Path, teacher: Path, rows: list[dict[str, Any]]) -> sl.LabelSet:
    return sl.precompute(
        rows, teacher, out, selection=sl.TopK(16), key="id", max_length=64,
        unit_rows=16, batch_tokens=512, codec="plain",
    )  # fmt: skip


KILLS = [
    ("before link", 1),  # plan.json
    ("after link", 1),
    ("before link", 2),  # the first shard
    ("after link", 2),
    ("before link", 3),  # its receipt
    ("after link", 3),
    ("before link", 6),
    ("while writing", 2),
    ("before link", 9),  # the last receipt
    ("before small file", 1),  # shards.parquet
    ("after small file", 2),  # keys.index
    ("after small file", 3),  # README.md
    ("before small file", 4),  # manifest.json
    ("after small file", 4),
    ("after dropping receipts", 2),
]


@pytest.mark.parametrize(("place", "count"), KILLS)
def test_a_killed_run_goes_on_to_the_same_set(
    tmp_path: Path,
    teacher_dir: Path,
    finished_set: Path,
    rows: list[dict[str, Any]],
    data_file: Path,
    place: str,
    count: int,
) -> None:
    out = tmp_path / "set"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, place, str(count), teacher_dir, data_file, out],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {path: path.stat().st_mtime_ns for path in out.glob("data/*.parquet")}
    label(out, teacher_dir, rows)
    assert contents(out) == contents(finished_set)
    for path, modified in before.items():
        assert path.stat().st_mtime_ns == modified, f"{path} was labelled twice"
    assert not any(path.name.startswith(".") for path in out.iterdir())


def test_a_run_killed_twice_still_ends_in_the_same_set(
    tmp_path: Path,
    teacher_dir: Path,
    finished_set: Path,
    rows: list[dict[str, Any]],
    data_file: Path,
) -> None:
    out = tmp_path / "set"
    for place, count in [("after link", 1), ("before small file", 2)]:
        command = [sys.executable, "-c", KILLED, place, str(count), teacher_dir, data_file, out]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    label(out, teacher_dir, rows)
    assert contents(out) == contents(finished_set)


def test_the_command_line_survives_kill_9_at_a_random_moment(
    tmp_path: Path, teacher_dir: Path, data_file: Path
) -> None:
    def command(out: Path) -> list[str]:
        return [
            str(Path(sys.executable).with_name("softlabels")), "precompute", "--teacher",
            str(teacher_dir), "--data", str(data_file), "--out", str(out), "--key", "id",
            "--k", "16", "--max-length", "64", "--unit-rows", "2", "--quiet",
        ]  # fmt: skip

    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    whole, out = tmp_path / "whole", tmp_path / "set"
    subprocess.run(command(whole), env=environment, check=True, capture_output=True)
    running = subprocess.Popen(
        command(out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with running:
        while len(list(out.glob("data/*.parquet"))) < 3 and running.poll() is None:
            time.sleep(0.001)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    done = len(list(out.glob("data/*.parquet")))
    with pytest.raises(sl.errors.LabelSetError, match="unfinished"):
        sl.LabelSet.open(out)
    assert len(sl.LabelSet.open(out, unfinished=True).receipts) in (done - 1, done)
    subprocess.run(command(out), env=environment, check=True, capture_output=True)
    assert contents(out) == contents(whole)


def test_a_shard_published_by_another_worker_stays(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    label(out, teacher_dir, rows)
    first = out / "data" / "train-00000.parquet"
    original = first.read_bytes()
    first.unlink()
    from softlabels.stores import directory

    publish = directory.publish

    def beaten(temporary: Path, final: Path) -> bool:
        if final.name == first.name and not final.exists():
            final.write_bytes(original)
        return publish(temporary, final)

    monkeypatch.setattr(directory, "publish", beaten)
    label(out, teacher_dir, rows)
    assert first.read_bytes() == original
    assert not (out / ".tmp").exists()


def test_a_shard_lost_from_a_finished_set_is_labelled_again(
    tmp_path: Path, teacher_dir: Path, finished_set: Path, rows: list[dict[str, Any]]
) -> None:
    out = tmp_path / "set"
    label(out, teacher_dir, rows)
    (out / "data" / "train-00002.parquet").unlink()
    with pytest.raises(sl.errors.CorruptShardError, match="train-00002"):
        sl.LabelSet.open(out)
    label(out, teacher_dir, rows)
    assert contents(out) == contents(finished_set)


def test_a_lost_receipt_is_rebuilt_from_its_shard(
    tmp_path: Path,
    teacher_dir: Path,
    finished_set: Path,
    rows: list[dict[str, Any]],
    data_file: Path,
) -> None:
    out = tmp_path / "set"
    command = [sys.executable, "-c", KILLED, "before link", "6", teacher_dir, data_file, out]
    subprocess.run(command, capture_output=True)
    receipts = sorted((out / "receipts").iterdir())
    assert len(receipts) == 2
    receipts[0].unlink()
    label(out, teacher_dir, rows)
    assert contents(out) == contents(finished_set)


def test_a_finished_set_is_left_as_it_is(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]]
) -> None:
    out = tmp_path / "set"
    label(out, teacher_dir, rows)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    label(out, teacher_dir, rows)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

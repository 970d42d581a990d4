"""kill -9 at any moment, then the same command: the same set, nothing twice, nothing left over."""

from __future__ import annotations

import json
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import PROCESSES, killed
from same_set import contents

import softlabels as sl
from softlabels.cli.app import run


def label(out: Path, teacher: Path, rows: list[dict[str, Any]]) -> sl.LabelSet:
    return sl.precompute(
        rows, teacher, out, selection=sl.TopK(16), key="id", max_length=64,
        unit_rows=16, batch_tokens=512, codec="plain",
    )  # fmt: skip


def call(*arguments: str) -> None:
    sys.exit(run(list(arguments)))


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


REPLACE = "softlabels.stores.directory.Directory.replace"
TABLE = "softlabels.format.shard_writing.to_table"
KILLS = [
    ("before", "os.link", 1),  # plan.json
    ("after", "os.link", 1),
    ("before", "os.link", 2),  # the first shard
    ("after", "os.link", 2),
    ("before", "os.link", 3),  # its receipt
    ("after", "os.link", 3),
    ("before", "os.link", 6),
    ("after", TABLE, 2),
    ("before", "os.link", 9),  # the last receipt
    ("before", REPLACE, 1),  # shards.parquet
    ("after", REPLACE, 2),  # keys.index
    ("after", REPLACE, 3),  # README.md
    ("before", REPLACE, 4),  # manifest.json
    ("after", REPLACE, 4),
    ("after", "pathlib.Path.unlink", 12),  # two of four receipts are dropped
]


@pytest.mark.parametrize(("moment", "function", "count"), KILLS)
def test_a_killed_run_goes_on_to_the_same_set(
    tmp_path: Path,
    teacher_dir: Path,
    finished_set: Path,
    rows: list[dict[str, Any]],
    moment: str,
    function: str,
    count: int,
) -> None:
    out = tmp_path / "set"
    killed(moment, function, count, partial(label, out, teacher_dir, rows))
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
) -> None:
    out = tmp_path / "set"
    for moment, function, count in [("after", "os.link", 1), ("before", REPLACE, 2)]:
        killed(moment, function, count, partial(label, out, teacher_dir, rows))
    label(out, teacher_dir, rows)
    assert contents(out) == contents(finished_set)


def test_the_command_line_survives_kill_9_at_a_random_moment(
    tmp_path: Path, teacher_dir: Path, data_file: Path
) -> None:
    def command(out: Path) -> Any:
        arguments = [
            "precompute", "--teacher", teacher_dir, "--data", data_file, "--out", out,
            "--key", "id", "--k", "16", "--max-length", "64", "--unit-rows", "2", "--quiet",
        ]  # fmt: skip
        running = PROCESSES.Process(target=call, args=list(map(str, arguments)))
        running.start()
        return running

    def finished(out: Path) -> bool:
        running = command(out)
        running.join()
        return running.exitcode == 0

    whole, out = tmp_path / "whole", tmp_path / "set"
    assert finished(whole)
    running = command(out)
    while len(list(out.glob("data/*.parquet"))) < 3 and running.is_alive():
        time.sleep(0.001)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    done = len(list(out.glob("data/*.parquet")))
    with pytest.raises(sl.errors.LabelSetError, match="unfinished"):
        sl.LabelSet.open(out)
    assert len(sl.LabelSet.open(out, unfinished=True).receipts) in (done - 1, done)
    assert finished(out)
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
) -> None:
    out = tmp_path / "set"
    killed("before", "os.link", 6, partial(label, out, teacher_dir, rows))
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

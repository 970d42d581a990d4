"""Static shares: whose a unit is, who says so, and what a rank does that is not the last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from on_executors import UNITS, job, write_rows
from same_set import contents
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError
from softlabels.inputs.sources import open_source
from softlabels.precomputing.tasks import Share, Tasks
from softlabels.ranks import local_rank
from softlabels.verifying.verify import verify

PIPELINES = Path(__file__).parents[2] / "pipelines"
COMMAND = [sys.executable, str(Path(__file__).with_name("on_executors.py"))]


def array(
    task: int, low: int, high: int, step: int = 1, count: int | None = None
) -> dict[str, int]:
    count = (high - low) // step + 1 if count is None else count
    return {
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_ARRAY_TASK_MIN": low,
        "SLURM_ARRAY_TASK_MAX": high,
        "SLURM_ARRAY_TASK_STEP": step,
        "SLURM_ARRAY_TASK_COUNT": count,
    }


TORCHRUN = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1}
STEP = {"SLURM_STEP_ID": 0, "SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 3, "SLURM_LOCALID": 1}
ENVIRONMENTS = {
    "nothing": ({}, (0, 1)),
    "torchrun": (TORCHRUN, (1, 2)),
    "half of torchrun": ({"RANK": 1}, (0, 1)),
    "an array": (array(2, 0, 3), (2, 4)),
    "an array from 1": (array(1, 1, 4), (0, 4)),
    "an array of tens": (array(20, 0, 30, 10), (2, 4)),
    "one task of an array": (array(7, 7, 7), (0, 1)),
    "torchrun in an array": (TORCHRUN | array(2, 0, 3), (1, 2)),
    "srun": (STEP, (1, 3)),
    "srun of an old Slurm": (
        {"SLURM_STEP_ID": 0, "SLURM_PROCID": 1, "SLURM_NTASKS": 3},
        (1, 3),
    ),
    "a batch script, which is no task": ({"SLURM_PROCID": 0, "SLURM_NTASKS": 4}, (0, 1)),
    "srun in an array": (STEP | array(2, 0, 3), (7, 12)),
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in TORCHRUN:
            monkeypatch.delenv(name)


def be(monkeypatch: pytest.MonkeyPatch, environment: dict[str, int]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_says_which_rank_this_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, expected = ENVIRONMENTS[name]
    be(monkeypatch, environment)
    found = Share.find(None, None)
    assert (found.rank, found.world_size) == expected
    told = Share.find(3, 5)
    assert (told.rank, told.world_size) == (3, 5)


@pytest.mark.parametrize("environment", [array(5, 1, 9, count=3), array(3, 0, 4, 2)])
def test_an_array_whose_tasks_cannot_be_told_apart_is_refused(
    environment: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, environment)
    with pytest.raises(InputError, match=r"Slurm array has 3 tasks.*--rank"):
        Share.find(None, None)


@pytest.mark.parametrize(("rank", "world_size"), [(1, None), (None, 2), (2, 2), (-1, 2)])
def test_half_a_rank_is_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(InputError, match="give both"):
        Share.find(rank, world_size)


def test_torchrun_or_srun_says_which_device_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_rank() is None
    be(monkeypatch, {"SLURM_LOCALID": 3})
    assert local_rank() is None, "a batch script is no task"
    be(monkeypatch, STEP)
    assert local_rank() == 1
    be(monkeypatch, {"LOCAL_RANK": 2})
    assert local_rank() == 2


def test_shares_are_disjoint_and_together_everything(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl"))
    shares = []
    for rank in range(5):
        tasks = Tasks(open_source(data, column="ids", in_place=True), 4, Share(rank, 5))
        found = list(tasks)
        assert tasks.rows == sum(len(task.rows) for task in found)
        assert tasks.units == UNITS
        shares += found
    assert sorted(task.number for task in shares) == list(range(UNITS))
    assert sorted(row for task in shares for row in task.rows) == list(range(46))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("ranks") / "rows.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    return job(data, tmp_path_factory.mktemp("ranks") / "whole").root


def times(out: Path) -> dict[Path, int]:
    """When each shard was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("data/*.parquet")}


def test_a_rank_that_is_not_the_last_says_what_is_missing_and_any_may_be_run_again(
    tmp_path: Path, data: str, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "set"
    labels = job(data, out, rank=2, world_size=3)
    assert not labels.finished
    assert [receipt.unit for receipt in labels.receipts] == [2, 5, 8, 11]
    assert "8 of 12 work units are still missing" in caplog.text
    (out / "data" / "train-00005.parquet").unlink()
    before = times(out)
    assert not job(data, out, rank=2, world_size=3).finished
    assert times(out).items() > before.items(), "what was finished was labelled again"
    assert not job(data, out, rank=0, world_size=3).finished
    assert job(data, out, rank=1, world_size=3).finished
    assert contents(out) == contents(whole)
    assert job(data, out, rank=0, world_size=3).finished
    assert contents(out) == contents(whole)


def test_the_command_without_a_rank_is_a_last_one_that_labels_what_others_left(
    tmp_path: Path, data: str, whole: Path
) -> None:
    out = tmp_path / "set"
    job(data, out, rank=1, world_size=2)
    teacher = TableTeacher()
    assert job(data, out, teacher=teacher).finished
    assert contents(out) == contents(whole)


def test_a_stream_is_shared_by_walking_past_what_is_others(tmp_path: Path, data: str) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    one = job(iter(rows), tmp_path / "one", probes=0)
    assert not job(iter(rows), tmp_path / "two", probes=0, rank=1, world_size=2).finished
    assert job(iter(rows), tmp_path / "two", probes=0, rank=0, world_size=2).finished
    assert contents(tmp_path / "two") == contents(one.root)


def test_the_first_rank_looks_for_keys_that_occur_twice_and_the_others_read_their_rows_alone(
    tmp_path: Path,
) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "set"
    path.write_text("".join(f'{{"id": "s{i % 9}", "ids": [1, 2]}}\n' for i in range(10)))
    assert not job(str(path), out, rank=1, world_size=2, probes=0).finished
    teacher = TableTeacher()
    with pytest.raises(sl.errors.DuplicateKeyError):
        job(str(path), out, rank=0, world_size=2, probes=0, teacher=teacher)
    assert not teacher.batches
    assert not (out / "manifest.json").exists()


def test_a_killed_rank_is_run_again_alone_and_nothing_is_labelled_twice(
    tmp_path: Path, data: str, whole: Path
) -> None:
    out, options = tmp_path / "set", {"rank": 1, "world_size": 2, "marker": str(tmp_path / "m")}
    command = [*COMMAND, data, str(out), json.dumps(options)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = times(out)
    assert not job(data, out, rank=1, world_size=2).finished
    assert job(data, out, rank=0, world_size=2).finished
    assert contents(out) == contents(whole)
    assert times(out).items() > before.items(), "what was finished was labelled again"
    assert verify(out).findings == ()


SCRIPTS = {
    "slurm_array.sh": (array(2, 0, 3) | {"SLURM_CPUS_PER_TASK": 3}, ["2 4 3"]),
    "torchrun.sh": ({"PROCESSES": 2}, ["0 2 1", "1 2 1"]),
}
# Says which rank it is, on how many threads, and with which arguments.
SAYING = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(Path(sl.__file__).parents[1])!r})
from softlabels.precomputing.tasks import Share
share = Share.find(None, None)
print("says", share.rank, share.world_size, os.environ["OMP_NUM_THREADS"], *sys.argv[1:], sep="|")
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_submit_script_runs_the_command_on_its_share(script: str, tmp_path: Path) -> None:
    path, (environment, expected) = PIPELINES / script, SCRIPTS[script]
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    command = tmp_path / "softlabels"
    command.write_text(SAYING)
    command.chmod(0o755)
    done = subprocess.run(
        [path, "--data", "docs/*.parquet", "--key", "an id"],
        env={
            **os.environ,
            **{name: str(value) for name, value in environment.items()},
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("says"))
    rest = "precompute|--data|docs/*.parquet|--key|an id"
    assert said == [f"says|{place.replace(' ', '|')}|{rest}" for place in expected]


def test_a_slurm_script_asks_for_an_array() -> None:
    lines = (PIPELINES / "slurm_array.sh").read_text().splitlines()
    assert "#SBATCH --array=0-7" in lines
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(lines) if line and line[0] != "#"]
    assert max(options) < min(commands), "Slurm reads no option after the first command"


def test_the_command_line_takes_a_share_and_says_that_others_are_missing(
    tmp_path: Path, teacher_dir: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from softlabels.cli.app import run

    command = [
        "precompute", "--teacher", str(teacher_dir), "--data", data, "--out", str(tmp_path / "set"),
        "--column", "ids", "--k", "4", "--max-length", "64", "--unit-rows", "16", "--quiet",
        "--world-size", "2", "--rank",
    ]  # fmt: skip
    assert run([*command, "1"]) == 0
    assert "next: the other ranks" in capsys.readouterr().out
    assert run([*command, "0"]) == 0
    assert "next: softlabels show" in capsys.readouterr().out
    assert run([*command, "2"]) == 2
    assert "give both, with 0 ≤ rank < world_size" in capsys.readouterr().err

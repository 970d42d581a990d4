"""One set comes out of every executor; workers, drivers and ranks may be killed meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from on_executors import (
    FATAL_ROW,
    ROWS,
    UNIT_ROWS,
    UNITS,
    always_killing,
    job,
    killing,
    raising,
    slow,
    write_rows,
)
from same_set import contents
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError, LabellingError, TeacherError
from softlabels.precomputing import hand_out
from softlabels.precomputing.executors import Local, Ray, named
from softlabels.precomputing.worker import InOtherProcess
from softlabels.verifying.verify import verify

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, str(Path(__file__).with_name("on_executors.py"))]
LIMIT_S = 300.0


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Its worker processes; Python's own, which ends with it, is none."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert workers_of(psutil.Process()) == [], "a worker outlived its job"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    return job(data, tmp_path_factory.mktemp("sets") / "whole").root


def check_same(found: Path, expected: Path) -> None:
    """Compare two sets record by record, value by value, and as files."""
    ours, theirs = sl.LabelSet.open(found), sl.LabelSet.open(expected)
    assert len(ours) == len(theirs) > ROWS
    assert ours.identities.equals(theirs.identities)
    for one, other in zip(ours[:], theirs[:], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        for name in ("log_probs", "logsumexp", "log_tails", "hard_log_probs"):
            values, expected_values = getattr(one, name), getattr(other, name)
            assert values.nan_to_num().tolist() == expected_values.nan_to_num().tolist()
    assert contents(found) == contents(expected)
    assert verify(found).findings == ()


def started(data: str, out: Path, **options: Any) -> subprocess.Popen[str]:
    """The job as a command; `env` says which rank it is."""
    environment = {**os.environ, **options.pop("env", {})}
    command = [*COMMAND, data, str(out), json.dumps(options)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_set_is_the_same_to_the_record_by_processes_torchrun_or_an_array_out_of_order(
    tmp_path: Path, data: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "torchrun"
    environments = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in (0, 1)
    ]
    ranks = [started(data, out, env=environment) for environment in environments]
    job(data, tmp_path / "workers", workers=2)
    for rank in ranks:
        _, stderr = rank.communicate(timeout=LIMIT_S)
        assert rank.returncode == 0, stderr
    for name, value in {"MIN": "0", "MAX": "3", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    finished = []
    for task in (2, 0, 3, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        finished.append(job(data, tmp_path / "array").finished)
    assert finished == [False, False, False, True]
    for name in ("workers", "torchrun", "array"):
        check_same(tmp_path / name, whole)


def test_a_killed_worker_gives_its_units_to_another_also_those_of_a_stream(
    tmp_path: Path, data: str
) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    job(iter(rows), tmp_path / "one", probes=0)
    teacher = TableTeacher(wrong=partial(killing, tmp_path / "killed"))
    job(iter(rows), tmp_path / "two", probes=0, workers=2, teacher=teacher)
    assert (tmp_path / "killed").exists()
    check_same(tmp_path / "two", tmp_path / "one")


def test_a_unit_that_no_worker_survives_is_named(
    tmp_path: Path, data: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_out, "TRIES", 2)
    unit, out = FATAL_ROW // UNIT_ROWS, tmp_path / "set"
    with pytest.raises(LabellingError, match=r"work unit .*each ended.*SIGKILL") as error:
        job(data, out, workers=2, teacher=TableTeacher(wrong=always_killing))
    # Two are with a worker at a time, and which of them ended it is not known.
    assert any(f"work unit {near} (rows" in str(error.value) for near in range(unit - 3, unit + 4))
    assert not (out / "data" / f"train-{unit:05d}.parquet").exists()
    job(data, out)
    check_same(out, whole)


def test_what_a_worker_raises_stops_all_with_its_cause(tmp_path: Path, data: str) -> None:
    with pytest.raises(LabellingError, match=rf'key "s{FATAL_ROW}".*no such token') as error:
        job(data, tmp_path / "set", workers=2, teacher=TableTeacher(wrong=raising))
    assert isinstance(error.value.__cause__, InOtherProcess)
    assert "in publish" in str(error.value.__cause__)


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_driver_that_is_stopped_leaves_no_worker_and_can_be_begun_again(
    tmp_path: Path, data: str, whole: Path, name: str
) -> None:
    out = tmp_path / "set"
    with started(data, out, workers=2, slow=0.2) as driver:
        until = time.monotonic() + LIMIT_S
        while len(list(out.glob("data/*.parquet"))) < 2 and time.monotonic() < until:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.02)
        labelling = workers_of(psutil.Process(driver.pid))
        assert len(labelling) == 2
        # As a terminal does: to all of them, of which the driver alone may answer.
        for process in [*labelling, psutil.Process(driver.pid)] if name == "SIGINT" else [driver]:
            process.send_signal(signal.Signals[name])
        _, stderr = driver.communicate(timeout=LIMIT_S)
    assert driver.returncode == -signal.Signals[name], stderr
    assert stderr.count("Traceback") == (1 if name == "SIGINT" else 0), stderr
    _, alive = psutil.wait_procs(labelling, timeout=30)
    assert alive == []
    before = {path: path.stat().st_mtime_ns for path in out.glob("data/*.parquet")}
    assert len(before) < UNITS
    job(data, out)
    check_same(out, whole)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


def test_two_drivers_with_one_output_make_one_set(tmp_path: Path, data: str, whole: Path) -> None:
    out = tmp_path / "set"
    with started(data, out, slow=0.01) as other:
        job(data, out, workers=2, teacher=TableTeacher(wrong=partial(slow, 0.01)))
        _, stderr = other.communicate(timeout=LIMIT_S)
    assert other.returncode == 0, stderr
    check_same(out, whole)


def test_a_teacher_that_cannot_be_sent_is_refused_before_anything_runs(
    tmp_path: Path, data: str
) -> None:
    teacher = sl.teachers.from_callable(lambda ids: ids, name="f", version="1", classes=16)
    with pytest.raises(TeacherError, match=r"cannot be sent to another process.*workers=1"):
        job(data, tmp_path / "set", workers=2, teacher=teacher)
    assert list((tmp_path / "set").iterdir()) == []


def test_a_teacher_that_is_not_loaded_chooses_its_device_where_it_arrives(
    teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.teachers import transformers as engine

    sent = pickle.dumps(sl.teachers.pretrained(teacher_dir))
    assert len(sent) < 1 << 20, "weights were sent"
    monkeypatch.setattr(engine, "usable", lambda device: torch.device(device or "meta"))
    assert pickle.loads(sent).device.type == "meta"
    chosen = pickle.dumps(sl.teachers.pretrained(teacher_dir, device="cpu"))
    assert pickle.loads(chosen).device.type == "cpu"


def test_data_that_cannot_be_sent_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Rows(list[dict[str, Any]]):
        """Of a local class, which no other process can find."""

    rows = Rows([{"id": "a", "ids": [1, 2]}])
    with pytest.raises(InputError, match=r"the data cannot be sent.*workers=1"):
        job(rows, tmp_path / "set", workers=2)


@pytest.mark.parametrize(
    ("executor", "workers", "match"),
    [
        ("local", 0, "workers is 0"),
        ("local", True, "workers is True"),
        ("dask", 1, "executor is 'dask'"),
        (Ray(actors=2), 2, "2 actors; leave out workers"),
    ],
)
def test_an_executor_that_is_none_is_refused(executor: Any, workers: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        named(executor, workers)


def test_an_executor_says_how_many_and_with_what() -> None:
    assert named("local", 3) == Local(3)
    assert named("ray", 3) == Ray(actors=3)
    with pytest.raises(InputError, match="actors is 0"):
        Ray(actors=0)
    with pytest.raises(InputError, match='"CPU" below 0'):
        Ray(resources={"CPU": -1})

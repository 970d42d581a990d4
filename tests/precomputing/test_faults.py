"""Disks, clocks, teachers and other jobs that misbehave: never a wrong set, nor a torn one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from same_set import contents
from tables import CLASSES, TableTeacher

import softlabels as sl
from softlabels.errors import InputError, TeacherError
from softlabels.verifying.verify import verify

Run = Callable[..., sl.LabelSet]


def fails(code: int, *, calls: range | None = None) -> Callable[..., Any]:
    """A system call that fails with an error number, at those of its calls; at all by default."""
    asked = 0

    def call(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        if calls is None or asked - 1 in calls:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    return call


def inject(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., Any]) -> None:
    real = getattr(os, name)
    monkeypatch.setattr(os, name, lambda *args, **kwargs: fault(real, *args, **kwargs))


def check_goes_on(run: Run, root: Path, afresh: Path) -> None:
    """What is there is sound, nothing half-written remains, and the same call finishes it."""
    assert not (root / ".tmp").exists()
    if (root / "plan.json").exists():
        assert verify(root).findings == ()
    run(out=root)
    assert contents(root) == contents(run(out=afresh).root)


@pytest.mark.parametrize(
    "code",
    [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV],
    ids=errno.errorcode.get,
)
def test_a_file_system_without_hard_links_gets_the_same_set(
    run: Run, tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    inject(monkeypatch, "link", fails(code))
    assert contents(run().root) == contents(run(out=tmp_path / "again").root)
    monkeypatch.undo()
    assert contents(tmp_path / "set") == contents(run(out=tmp_path / "afresh").root)


@pytest.mark.parametrize("call", ["link", "rename"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "it is not writable .* same command again"),
        (errno.EROFS, "the file system is read-only .* same command again"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_right_or_a_disk_lost_between_units_is_told_and_the_same_call_goes_on(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    at: int,
    code: int,
    words: str,
) -> None:
    with monkeypatch.context() as patch:
        inject(patch, call, fails(code, calls=range(at, 1000)))
        with pytest.raises((InputError, OSError), match=words):
            run()
    check_goes_on(run, tmp_path / "set", tmp_path / "afresh")


@pytest.mark.parametrize("at", range(5))
def test_a_rename_that_fails_once_leaves_nothing_torn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    # shard table, key index, card, manifest; there is no fifth
    with monkeypatch.context() as patch:
        inject(patch, "rename", fails(errno.EIO, calls=range(at, at + 1)))
        if at < 4:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                run()
            assert not (tmp_path / "set" / "manifest.json").exists()
        else:
            assert run().finished
    check_goes_on(run, tmp_path / "set", tmp_path / "afresh")


BESIDE = os.pathsep.join(map(str, Path(__file__).parents[:2]))
SMALL_DISK = """
import json, sys, subprocess
from pathlib import Path
import numpy as np
from same_set import contents
from tables import TableTeacher
import softlabels as sl
from softlabels.verifying.verify import verify

disk, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
rows = [{"ids": np.random.default_rng(i).integers(0, 2048, 100).tolist()} for i in range(40)]

def label(out):
    # Dense probes are what takes the room.
    return sl.precompute(rows, TableTeacher(classes=2048), out, selection=sl.TopK(4), probes=4000,
                         column="ids", unit_rows=8, codec="plain", progress=False)

try:
    label(disk / "set")
except sl.errors.InputError as error:
    words = str(error)
left = contents(disk / "set")
findings = verify(disk / "set").findings
subprocess.run(["mount", "-o", "remount,size=90m", disk], check=True)
label(disk / "set")
same = contents(disk / "set") == contents(label(elsewhere).root)
print(json.dumps({"words": words, "left": sorted(left), "findings": len(findings), "same": same}))
"""


@pytest.mark.slow
def test_a_small_disk_that_really_fills_keeps_whole_units_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "--map-root-user", "--mount"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*own, *mount]).returncode:
        pytest.skip("no file system of one's own may be mounted here")
    script = tmp_path / "label.py"
    script.write_text(SMALL_DISK)
    command = [sys.executable, str(script), str(disk), str(tmp_path / "elsewhere")]
    shell = f"{' '.join(mount)} && exec {' '.join(command)}"
    found = subprocess.run(
        [*own, "sh", "-c", shell],
        env={**os.environ, "PYTHONPATH": BESIDE},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert "the disk is full" in told["words"]
    assert "data/train-00000.parquet" in told["left"]
    assert not any(name.startswith(".tmp") for name in told["left"])
    assert (told["findings"], told["same"]) == (0, True)


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("shape", ["a class too few", "no time axis"])
def test_a_teacher_that_answers_in_another_shape_half_way_stops_the_run_and_goes_on_once_well(
    run: Run, tmp_path: Path, batch: int, shape: str
) -> None:
    class Misshapen(TableTeacher):
        def logits(self, *args: Any, **kwargs: Any) -> Iterator[torch.Tensor]:
            for answer in super().logits(*args, **kwargs):
                bad = answer[:, 1:] if shape == "a class too few" else answer[0]
                yield bad if len(self.batches) == batch else answer

    def label(**options: Any) -> sl.LabelSet:
        return run(batch_tokens=12, **options)

    with pytest.raises(TeacherError, match=rf"logits of shape .* {CLASSES} classes"):
        label(teacher=Misshapen())
    check_goes_on(label, tmp_path / "set", tmp_path / "afresh")


@pytest.mark.parametrize("after", range(7))
def test_a_stream_that_breaks_off_is_no_end_and_the_whole_one_goes_on(
    run: Run, tmp_path: Path, id_rows: list[dict[str, Any]], after: int
) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from id_rows[:after]
        raise ConnectionResetError("the server hung up")

    with pytest.raises(Exception, match="the server hung up"):
        run(broken())
    assert not (tmp_path / "set" / "manifest.json").exists()
    run(iter(id_rows), out=tmp_path / "set")
    whole = run(iter(id_rows), out=tmp_path / "afresh")
    assert contents(tmp_path / "set") == contents(whole.root)


def test_no_thread_outlives_a_job_however_it_ends(run: Run, id_rows: list[dict[str, Any]]) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from id_rows[:4]
        raise ConnectionResetError("the server hung up")

    def raises(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(Exception, match="hung up"):
        run(broken())
    with pytest.raises(KeyboardInterrupt):
        run(teacher=TableTeacher(wrong=raises))
    run()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
def test_a_clock_that_jumps_changes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    whole = contents(run(out=tmp_path / "whole").root)
    now = {name: getattr(time, name) for name in ("time", "perf_counter", "monotonic")}
    jumped = 0.0

    def wrong(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        nonlocal jumped
        jumped += jump
        return logits

    with monkeypatch.context() as patch:
        for name, real in now.items():
            patch.setattr(time, name, lambda real=real: real() + jumped)
        run(teacher=TableTeacher(wrong=wrong), batch_tokens=None)
    assert jumped
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("shift_s", [-(10**9), 10**9])
def test_the_times_of_files_mean_nothing(run: Run, tmp_path: Path, shift_s: int) -> None:
    def stop(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(stopping.batches) > 3:
            raise KeyboardInterrupt
        return logits

    stopping = TableTeacher(wrong=stop)
    with pytest.raises(KeyboardInterrupt):
        run(teacher=stopping, batch_tokens=12)
    root = tmp_path / "set"
    assert (root / "data" / "train-00000.parquet").exists()
    for path in [*root.rglob("*"), root]:
        os.utime(path, (path.stat().st_atime + shift_s, path.stat().st_mtime + shift_s))
    again = TableTeacher()
    run(teacher=again, batch_tokens=None)
    assert len(again.batches) == 2, "what was finished was labelled again"
    assert contents(root) == contents(run(out=tmp_path / "afresh", batch_tokens=12).root)


TOGETHER = """
import sys
from pathlib import Path
import softlabels as sl
from soak import job

print("ready", flush=True)
for out in sys.stdin:
    try:
        job(Path(out.strip()))
        print("well", flush=True)
    except sl.errors.SoftLabelsError as error:
        print("told:", *str(error).split(), flush=True)
"""


@pytest.mark.slow
def test_jobs_that_write_to_one_folder_at_once_make_one_whole_set(tmp_path: Path) -> None:
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TOGETHER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
                    },
                    text=True,
                )
            )
            for _ in range(2)
        ]

        def ask(folder: Path, *asked: subprocess.Popen[str]) -> list[str]:
            for job in asked:
                assert job.stdin is not None
                job.stdin.write(f"{folder}\n")
                job.stdin.flush()
            return [job.stdout.readline().strip() for job in asked if job.stdout is not None]

        assert [job.stdout.readline() for job in jobs if job.stdout] == ["ready\n"] * 2
        whole = tmp_path / "whole"
        assert ask(whole, jobs[0]) == ["well"]
        assert ask(tmp_path / "warm", jobs[1]) == ["well"]
        for round in range(6):
            out = tmp_path / f"together-{round}"
            ends = ask(out, *jobs)
            assert "well" in ends, ends
            assert all(end == "well" or end.startswith("told:") for end in ends), ends
            assert contents(out) == contents(whole), ends
            assert verify(out).findings == ()
        for job in jobs:
            assert job.stdin is not None
            job.stdin.close()

"""The quickstart's second half on a tiny teacher: training that never opens it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softlabels.training import Trained

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

from opened import watch  # noqa: E402


@pytest.mark.slow
def test_a_student_trains_from_the_set_alone(
    tmp_path: Path, finished_set: Path, teacher_dir: Path
) -> None:
    out = tmp_path / "student"
    command = [
        sys.executable, PIPELINES / "train_student.py", finished_set, "--out", out,
        "--epochs", "2", "--hidden-size", "32", "--keep-closed", teacher_dir,
    ]  # fmt: skip
    with watch(teacher_dir / "model.safetensors") as opened:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert opened == [False] * len(opened)
    result = Trained.read(out)
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl < result.before.kl  # type: ignore[operator]
    assert result.after.top1_agreement > result.before.top1_agreement  # type: ignore[operator]
    assert result.records["held_out"] > 0
    assert result.steps == 2 * result.records["training"]
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert "agrees with the teacher" in done.stdout


def test_what_is_below_the_teachers_folder_may_not_be_opened_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train_student import keep_closed

    hooks: list[Any] = []  # a real audit hook stays for the rest of the process
    monkeypatch.setattr(sys, "addaudithook", hooks.append)
    folder = (tmp_path / "teacher").resolve()
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    keep_closed(folder)
    [hook] = hooks
    inside = [folder / "a", str(folder / "deep" / "a"), os.fsencode(folder / "a"), "teacher/a",
              "link/a", "deep/../teacher/a"]  # fmt: skip
    for path in inside:
        with pytest.raises(PermissionError, match="must stay closed"):
            hook("open", (path, "r", 0))
    for path in (tmp_path / "teacher-notes", str(tmp_path), "other/teacher", 3, b"labels"):
        hook("open", (path, "r", 0))
    hook("import", (str(folder / "a"),))


def test_an_opened_file_is_noticed_and_a_closed_one_is_not(tmp_path: Path) -> None:
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"1")
    with watch(file) as opened:
        other.write_bytes(b"2")
        assert os.stat(file).st_size == 1
    assert opened in ([False], [])
    with watch(file) as opened:
        file.read_bytes()
    assert opened in ([True], [])
    assert opened == [True] or not sys.platform.startswith("linux")


def test_what_another_program_opens_is_noticed_too(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    with watch(file) as opened:
        subprocess.run(["cat", str(file)], check=True, capture_output=True)
    assert opened == [True] or not sys.platform.startswith("linux")


def test_a_file_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot watch"), watch(tmp_path / "none"):
        pass

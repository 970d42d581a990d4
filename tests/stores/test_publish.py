"""Files that exist whole or not at all, whoever else is at work."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from softlabels.stores.publish import publish, publish_folder, replace, workspace

HOLD = """
import sys
from pathlib import Path
from softlabels.stores.publish import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "half-written").write_bytes(b"1")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a workspace, and where it is."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_published_file_has_its_name_and_no_other(tmp_path: Path) -> None:
    final = tmp_path / "final"
    assert publish(written(tmp_path / "temporary", b"new"), final)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert final.read_bytes() == b"new"


def test_publishing_never_replaces_and_the_loser_discards_its_work(tmp_path: Path) -> None:
    final = written(tmp_path / "final", b"first")
    assert not publish(written(tmp_path / "temporary", b"second"), final)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert final.read_bytes() == b"first"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_publishing_still_never_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    final = tmp_path / "final"
    assert publish(written(tmp_path / "one", b"first"), final)
    assert not publish(written(tmp_path / "two", b"second"), final)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert final.read_bytes() == b"first"


def test_a_failing_disk_is_an_error_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="input/output"):
        publish(written(tmp_path / "temporary", b"1"), tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_of_many_at_once_exactly_one_publishes(tmp_path: Path) -> None:
    final = tmp_path / "final"
    files = [written(tmp_path / f"by-{i}", str(i).encode()) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda file: publish(file, final), files))
    assert won.count(True) == 1
    assert final.read_bytes() == str(won.index(True)).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_of_two_folders_the_first_stays_and_the_other_is_discarded(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for name, first in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "file", name.encode())
        assert publish_folder(tmp_path / name, final) is first
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (final / "file").read_bytes() == b"one"


def test_a_folders_files_are_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary" / "inner").mkdir(parents=True)
    file = written(tmp_path / "temporary" / "inner" / "file", b"1")
    inode, synced, sync = file.stat().st_ino, [], os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "final").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert publish_folder(tmp_path / "temporary", tmp_path / "final")
    assert (inode, False) in synced


def test_a_small_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    final = tmp_path / "folder" / "final"
    for data in (b"first", b"second"):
        replace(final, data, scratch=scratch)
        assert final.read_bytes() == data
    assert list(scratch.iterdir()) == []
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_a_workspace_is_gone_when_its_run_ends_or_fails(tmp_path: Path) -> None:
    with workspace(tmp_path) as folder:
        written(folder / "half", b"1")
        assert folder.parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), workspace(tmp_path):
        1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    with workspace(tmp_path) as folder:
        shutil.rmtree(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    with another_process(tmp_path) as (process, theirs):
        with workspace(tmp_path) as ours:
            assert (theirs / "half-written").exists()
            assert ours != theirs
        assert (theirs / "half-written").exists()
        process.kill()
        process.wait()
        assert theirs.exists()
        with workspace(tmp_path) as ours:
            assert not theirs.exists()
            assert ours.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_stray_file_among_workspaces_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    written(tmp_path / ".tmp" / "stray", b"1")
    with workspace(tmp_path) as folder:
        assert folder.is_dir()


def test_runs_that_begin_and_end_at_once_do_not_take_each_others_workspace(tmp_path: Path) -> None:
    def run(_: int) -> None:
        for _ in range(40):
            with workspace(tmp_path) as folder:
                written(folder / "half", b"1")
                assert (folder / "half").exists()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert list(tmp_path.iterdir()) == []

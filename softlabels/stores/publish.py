"""Files that exist whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
_ATTEMPTS = 100
_NO_LINKS = (
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
)


def publish(temporary: Path, final: Path) -> bool:
    """Give a finished file its name, never replacing one that is there.

    Args:
        temporary: on the same file system; it is gone afterwards.

    Returns:
        False if `final` exists already: somebody else was first, and this work is discarded.
    """
    _sync(temporary)
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here (FAT, some network drives). Two workers on one unit could both pass
        # this test, but then they rename equal bytes: a unit is a pure function of the plan.
        if final.exists():
            return False
        temporary.rename(final)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(final.parent)
    return True


def publish_folder(temporary: Path, final: Path) -> bool:
    """As `publish`, for a folder of files."""
    for path in temporary.rglob("*"):
        _sync(path)
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary)
        return False
    _sync(final.parent)
    return True


def replace(final: Path, data: bytes, *, scratch: Path) -> None:
    """Write a small file atomically, replacing one that is there.

    Args:
        scratch: a folder on the same file system for the unfinished file.
    """
    temporary = scratch / uuid.uuid4().hex
    temporary.write_bytes(data)
    replace_file(temporary, final)


def replace_file(temporary: Path, final: Path) -> None:
    """As `publish`, but replacing one that is there."""
    _sync(temporary)
    final.parent.mkdir(exist_ok=True)
    temporary.rename(final)
    _sync(final.parent)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the set's own file system.

    It is locked while its process lives, so that what killed runs left behind can be told from
    what living ones are writing, and is removed first.
    """
    # Arrow takes a relative path such as "run:1/x" for a URL.
    parent = root.absolute() / TEMPORARY
    with suppress(FileNotFoundError):  # there is none, or another run's end removes it now
        for left_over in list(parent.iterdir()):
            _remove_unlocked(left_over)
    folder, descriptor = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
        with suppress(OSError):  # another run is still at work in it, or removed it first
            parent.rmdir()


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder below `parent`, and the descriptor that holds its lock."""
    for _ in range(_ATTEMPTS):
        folder = parent / uuid.uuid4().hex
        # Before the lock holds, another run may take the folder for a left-over, or remove its
        # still empty parent: then this one is lost, and the next is tried.
        try:
            parent.mkdir(exist_ok=True)
            folder.mkdir()
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, FileExistsError):
            continue
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if folder.exists():
                return folder, descriptor
        os.close(descriptor)
    raise OSError(errno.EBUSY, f"no workspace could be made in {parent}")


def _remove_unlocked(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return  # another run removed it first
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # its process is alive, or this file system cannot tell
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

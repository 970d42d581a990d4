"""Where a label set is written: a folder here, or a prefix of an object store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from softlabels.errors import InputError
from softlabels.format import layout
from softlabels.format import plan as plans
from softlabels.format.manifest import Receipt
from softlabels.format.plan import Plan
from softlabels.format.shard import Shard
from softlabels.stores.bucket import Bucket
from softlabels.stores.directory import Directory
from softlabels.stores.store import place

# A folder, or the URL of a prefix of an object store.
Out = str | os.PathLike[str]


class Target(Protocol):
    """A label set's files while it is made.

    A file's `name` is relative to the set: "data/train-00003.parquet". Each is there whole or not
    at all. What is to be written comes as a file in the workspace, which is gone afterwards. All
    may be called from several threads.

    Attributes:
        name: how messages call the set: its path or URL.
        address: by which other processes find it.
        disk: where the workspace is, for messages.
        workers: how many requests may be under way together.

    Raises:
        RemoteError: the store fails, or refuses; after a few tries where it may pass.
        OSError: the disk does.
    """

    name: str
    address: str
    disk: str
    workers: int

    def workspace(self) -> AbstractContextManager[Path]:
        """A folder for unfinished files; those that killed runs left are removed."""

    def others(self) -> list[str]:
        """What lies there beside unfinished files; raises `InputError` if it is a file."""

    def check_writable(self, scratch: Path) -> None:
        """Raise `InputError` where two jobs could overwrite each other's files, or none write."""

    def look_ahead(self) -> None:
        """Learn what is there in few requests, so that `size` and `read` need none later."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, if it is there."""

    def read(self, name: str) -> bytes | None:
        """A small file, if it is there."""

    def files(self, folder: str) -> Iterable[str]:
        """Names of the files below a folder, in no order."""

    def local(self, name: str, scratch: Path) -> AbstractContextManager[Path]:
        """A file that is there, on a disk."""

    def tables(self, scratch: Path) -> Path:
        """A folder with the manifest and the shard table of a finished set."""

    def publish(self, file: Path, name: str, *, receipt: Receipt | None = None) -> bool:
        """Give a file its name, never replacing one that is there.

        Args:
            receipt: of a shard.

        Returns:
            False if another one is there: somebody else was first, and this one is discarded.
        """

    def publish_folder(self, name: str, save: Callable[[Path], object], scratch: Path) -> None:
        """Have a folder there whole; its files are saved if it is not."""

    def replace(self, file: Path, name: str) -> None:
        """Give a file its name, replacing one that is there."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def drop(self, folder: str) -> None:
        """Remove a folder of files that nobody needs, as far as it can be done."""

    def shard(self, receipt: Receipt) -> Shard:
        """A published shard; raises `CorruptShardError`."""

    def bring_keys(self, receipt: Receipt) -> None:
        """Have a shard's keys here; raises `CorruptShardError`."""


def destination(out: Out) -> Target:
    """What a path or URL names; nothing is asked yet.

    Raises:
        InputError: it is no URL that can be written to, or one that passed through a `Path`.
    """
    found = place(out)
    return Directory(found) if isinstance(found, Path) else Bucket.of(found)


def address(out: Out) -> str:
    """By which other processes find what a path or URL names."""
    return destination(out).address


def earlier(out: Out) -> Plan | None:
    """The plan of the label set that lies there, finished or not.

    Raises:
        UnsupportedFormatError: of a version that is not known here.
    """
    target = destination(out)
    data = target.read(layout.PLAN)
    return None if data is None else plans.parse(data, where=f"{target.name}/{layout.PLAN}")


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "it is not writable",
    errno.EPERM: "it is not writable",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENOENT: "the folder cannot be made",
}


@contextmanager
def disk_errors(target: Target) -> Iterator[None]:
    """Errors of the file system in words; what was published before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise InputError(
            f"{target.disk}: {_DISK[error.errno]} ({error.strerror}). What is finished stays: make "
            "room or choose another folder, and run the same command again to go on"
        ) from error

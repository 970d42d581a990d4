"""A folder on a disk as the place where a label set is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from softlabels.errors import InputError
from softlabels.format import layout
from softlabels.format.manifest import Receipt
from softlabels.format.shard import Shard
from softlabels.stores.publish import (
    TEMPORARY,
    publish,
    publish_folder,
    replace_file,
    workspace,
)

# Names that are held together.
_AT_ONCE = 4096


class Directory:
    """See `Target`: hard links and renames, each followed by an fsync."""

    workers = 1

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = self.disk = str(root)
        self.address = str(root.absolute())

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """See `Target`; on the set's own file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        with workspace(self.root) as scratch:
            yield scratch

    def others(self) -> list[str]:
        """See `Target`."""
        if self.root.is_dir():
            return sorted(path.name for path in self.root.iterdir() if path.name != TEMPORARY)
        if self.root.exists():
            raise InputError(f"{self.root} is a file; a label set is a folder: choose another path")
        return []

    def check_writable(self, scratch: Path) -> None:
        """See `Target`; a folder's workspace is proof enough."""

    def look_ahead(self) -> None:
        """See `Target`; asking a disk costs nothing. The shards' folder shows that it began."""
        (self.root / layout.DATA).mkdir(exist_ok=True)

    def size(self, name: str) -> int | None:
        """See `Target`."""
        try:
            found = os.stat(f"{self.root}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes | None:
        """See `Target`."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self, folder: str) -> Iterator[str]:
        """See `Target`."""
        return (f"{folder}/{name}" for name in _files(self.root / folder))

    @contextmanager
    def local(self, name: str, scratch: Path) -> Iterator[Path]:
        """See `Target`."""
        yield self.root / name

    def tables(self, scratch: Path) -> Path:
        """See `Target`."""
        return self.root

    def publish(self, file: Path, name: str, *, receipt: Receipt | None = None) -> bool:
        """See `Target`."""
        final = self.root / name
        if final.parent != self.root:
            final.parent.mkdir(exist_ok=True)
        return publish(file, final)

    def publish_folder(self, name: str, save: Callable[[Path], object], scratch: Path) -> None:
        """See `Target`."""
        if not (self.root / name).exists():
            (scratch / name).mkdir()
            save(scratch / name)
            publish_folder(scratch / name, self.root / name)

    def replace(self, file: Path, name: str) -> None:
        """See `Target`."""
        replace_file(file, self.root / name)

    def remove(self, name: str) -> None:
        """See `Target`."""
        (self.root / name).unlink(missing_ok=True)

    def drop(self, folder: str) -> None:
        """See `Target`."""
        with suppress(OSError):  # another job that ends now removes them too, or writes its own
            while some := _first_paths(self.root / folder):
                for path in some:
                    Path(path).unlink(missing_ok=True)
            (self.root / folder).rmdir()

    def shard(self, receipt: Receipt) -> Shard:
        """See `Target`."""
        return Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)

    def bring_keys(self, receipt: Receipt) -> None:
        """See `Target`; they are here."""


def _first_paths(folder: Path) -> list[str]:
    """Of what is in a folder, a few thousand at a time."""
    with os.scandir(folder) as entries:
        return [entry.path for entry in islice(entries, _AT_ONCE)]


def _files(folder: Path | str) -> Iterator[str]:
    """Relative names of the files below a folder; as paths they would take half a kilobyte each."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from (f"{entry.name}/{name}" for name in _files(entry.path))
            elif entry.is_file():
                yield entry.name

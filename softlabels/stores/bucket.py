"""A prefix of an object store as the place where a label set is written.

Shards are made on a local disk, checked, and put whole on the condition that no object has their
name (`If-None-Match: *` of S3 and Azure, `ifGenerationMatch=0` of Google). A put whose answer was
lost is made again, finds the object there, and compares it: an equal one is ours.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from softlabels.errors import CorruptShardError, InputError, MissingError, RemoteError, quoted
from softlabels.format import layout
from softlabels.format.manifest import Receipt
from softlabels.format.shard import Shard
from softlabels.stores.cache import Cache
from softlabels.stores.fsspec_files import Fsspec
from softlabels.stores.objects import Objects
from softlabels.stores.origin import Origin
from softlabels.stores.publish import TEMPORARY, workspace

# Their fsspec file systems give `mode="create"` on to the service; that of most others looks
# whether the file is there and then writes, between which another job may do the same.
EXCLUSIVE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_KEYS = ("key", "part", "view")
_OF_UNITS = (layout.DATA, layout.PROBES)


class Bucket:
    """See `Target`: conditional puts through fsspec; credentials from the environment alone.

    Args:
        objects: of the set.
        cache: in its folder are the workspaces; the keys of shards stay there when they are put,
            so that they need not be fetched when the set is finished.
    """

    workers = 8

    def __init__(self, objects: Objects, cache: Cache) -> None:
        self._objects, self._cache = objects, cache
        self.name = self.address = objects.url
        self._unpublished = cache.folder / "unpublished"
        self.disk = f"{self._unpublished} (SOFTLABELS_CACHE says where)"
        self._sizes: dict[str, int] = {}
        self._receipts: dict[str, bytes] = {}

    @classmethod
    def of(cls, origin: Origin) -> Bucket:
        """The prefix that an origin reads.

        Raises:
            InputError: its service cannot put a file only if none is there.
        """
        scheme = origin.url.split(":", 1)[0]
        if not isinstance(origin, Fsspec) or scheme not in EXCLUSIVE:
            raise InputError(
                f"{quoted(origin.url)}: a label set cannot be written there: by {scheme}:// no "
                "file can be put on the condition that none is there yet, without which two jobs "
                "could overwrite each other's; write to a folder and copy it there when it is "
                "finished, or write to s3://, gs:// or abfs://"
            )
        return cls(Objects(origin), Cache.from_environment())

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """See `Target`."""
        self._unpublished.mkdir(parents=True, exist_ok=True)
        with workspace(self._unpublished) as scratch:
            yield scratch

    def others(self) -> list[str]:
        """See `Target`."""
        return [name for name in self._objects.top() if name != TEMPORARY]

    def check_writable(self, scratch: Path) -> None:
        """See `Target`: an object is put twice, of which the second has to be refused."""
        name = f"{TEMPORARY}/{uuid.uuid4().hex}"
        probe = scratch / "conditional"
        probe.write_bytes(b"")
        try:
            overwritten = self._objects.create(name, probe) and self._objects.create(name, probe)
        except MissingError:
            raise InputError(
                f"{self.name}: there is no such bucket; see its name, or make it first"
            ) from None
        finally:
            with suppress(RemoteError):
                self._objects.remove([name])
        if overwritten:
            raise InputError(
                f"{self.name}: the server replaces an object although the put says that none may "
                "be there, so two jobs could overwrite each other's; write to a folder and copy it "
                "there when it is finished, or use a server that knows conditional puts"
            )

    def look_ahead(self) -> None:
        """See `Target`."""
        found: dict[str, int] = {}
        for folder in _OF_UNITS:
            found |= self._objects.find(folder)
        self._sizes = found
        self._receipts = self._objects.read_many(self.files(layout.RECEIPTS))

    def size(self, name: str) -> int | None:
        """See `Target`."""
        known = self._sizes.get(name)
        return self._objects.size(name) if known is None else known

    def read(self, name: str) -> bytes | None:
        """See `Target`."""
        known = self._receipts.pop(name, None)
        return self._objects.read(name) if known is None else known

    def files(self, folder: str) -> list[str]:
        """See `Target`."""
        return list(self._objects.find(folder))

    @contextmanager
    def local(self, name: str, scratch: Path) -> Iterator[Path]:
        """See `Target`; a copy."""
        copy = scratch / f"copy-{uuid.uuid4().hex}"
        try:
            with copy.open("wb") as file:
                file.writelines(self._objects.pieces(name))
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def tables(self, scratch: Path) -> Path:
        """See `Target`."""
        folder = scratch / "tables"
        folder.mkdir(exist_ok=True)
        for name in (layout.MANIFEST, layout.SHARDS):
            if (data := self.read(name)) is not None:
                (folder / name).write_bytes(data)
        return folder

    def publish(self, file: Path, name: str, *, receipt: Receipt | None = None) -> bool:
        """See `Target`."""
        try:
            if not self._objects.create(name, file) and not self._equals(name, file):
                return False
            if name.split("/")[0] in _OF_UNITS:
                self._sizes[name] = file.stat().st_size
            if receipt is not None:
                self._keep_keys(file, receipt)
            return True
        finally:
            file.unlink(missing_ok=True)

    def publish_folder(self, name: str, save: Callable[[Path], object], scratch: Path) -> None:
        """See `Target`.

        Its files are put one by one. Nothing is labelled before all are, so where there is a shard
        they are there; else the missing ones are put.
        """
        if self.files(layout.DATA) and self.files(name):
            return
        folder = scratch / name
        folder.mkdir()
        save(folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.publish(path, f"{name}/{path.relative_to(folder).as_posix()}")
        shutil.rmtree(folder)

    def replace(self, file: Path, name: str) -> None:
        """See `Target`."""
        self._objects.replace(name, file)
        file.unlink()

    def remove(self, name: str) -> None:
        """See `Target`."""
        self._sizes.pop(name, None)
        self._objects.remove([name])

    def drop(self, folder: str) -> None:
        """See `Target`; what stays, the next run drops."""
        with suppress(RemoteError):
            self._objects.remove(self.files(folder))

    def shard(self, receipt: Receipt) -> Shard:
        """See `Target`; what is read of it is fetched, unless the cache has it."""
        size = self.size(receipt.path)
        if size != receipt.bytes:
            found = "it is missing" if size is None else f"it has {size} bytes"
            raise CorruptShardError(
                f"{self.name}/{receipt.path}: {found}, {receipt.bytes} were written: it was "
                "changed in the store; remove it there, if it is, and run the same `softlabels "
                "precompute` command again, which labels it again"
            )

        def read(start: int, stop: int) -> bytes:
            return self._objects.origin.read(receipt.path, start, stop, size=receipt.bytes)

        return self._cached(receipt, read)

    def bring_keys(self, receipt: Receipt) -> None:
        """See `Target`."""
        _fetch_keys(self.shard(receipt))

    def _cached(self, receipt: Receipt, read: Callable[[int, int], bytes]) -> Shard:
        file = self._cache.sparse(receipt.sha256, receipt.bytes, read)
        return Shard(file, receipt=receipt, name=f"{self.name}/{receipt.path}")

    def _keep_keys(self, file: Path, receipt: Receipt) -> None:
        with file.open("rb") as opened, suppress(RemoteError):  # the cache's: they can be fetched

            def read(start: int, stop: int) -> bytes:
                opened.seek(start)
                return opened.read(stop - start)

            _fetch_keys(self._cached(receipt, read))

    def _equals(self, name: str, file: Path) -> bool:
        """Whether an object's bytes are those of a file."""
        if self._objects.size(name) != file.stat().st_size:
            return False
        with file.open("rb") as ours:
            return all(piece == ours.read(len(piece)) for piece in self._objects.pieces(name))


def _fetch_keys(shard: Shard) -> None:
    for group in range(shard.metadata.num_row_groups):
        shard.fetch(group, _KEYS)

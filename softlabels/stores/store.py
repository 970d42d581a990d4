"""Where a label set lies: a folder here, or a URL whose files come here as they are needed."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from softlabels.errors import (
    CorruptShardError,
    InputError,
    LabelSetError,
    MissingError,
    RemoteError,
    quoted,
)
from softlabels.format import layout, manifest, receipts
from softlabels.format.manifest import Receipt
from softlabels.format.shard import Shard, file_sha256
from softlabels.stores.cache import Cache
from softlabels.stores.hub import Hub
from softlabels.stores.origin import Origin, parse

# Requests of a process that are under way together.
_THREADS = 8
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")


class Store(Protocol):
    """A label set's files.

    Attributes:
        name: how messages call the set: its path or URL.
        root: the folder with plan.json, manifest.json and shards.parquet; the set itself if it is
            local.
        remote: whether bytes of shards have to be fetched.
    """

    name: str
    root: Path
    remote: bool

    def file(self, name: str, sha256: str | None) -> Path:
        """A small file, checked; raises `CorruptShardError` if it is not what it was."""

    def find(self, name: str) -> Path | None:
        """A file of a finished set, if it has it."""

    def folder(self, name: str) -> Path | None:
        """A folder of a finished set with all its files, checked, if it has it."""

    def shard(self, receipt: Receipt) -> Shard:
        """An open shard; raises `CorruptShardError`."""

    def check_keys(self) -> None:
        """Raise `CorruptShardError` if the key index is not what was written."""

    def parquet(self, receipt: Receipt) -> str:
        """Path or URL of a shard for other readers."""


def locate(path: str | os.PathLike[str]) -> Store:
    """The set at a path or URL; of a remote one, the manifest is fetched.

    Raises:
        LabelSetError: a URL leads to no finished label set.
        InputError: as `place`.
    """
    found = place(path)
    if isinstance(found, Path):
        return Folder(found.absolute())
    return _open_remote(found, Cache.from_environment())


def place(path: str | os.PathLike[str]) -> Path | Origin:
    """What a path or URL names; nothing is asked yet.

    Raises:
        InputError: it is no URL that can be read, or one that passed through a `Path`.
    """
    if not isinstance(path, str) or not _URL.match(path):
        folder = Path(path)
        if isinstance(path, Path) and _URL.match(str(path).replace(":/", "://", 1)):
            raise InputError(f"{folder}: a Path spoils a URL's slashes; pass it as a str")
        return folder
    if path.startswith("file://"):
        return Path(unquote(urlsplit(path).path))
    return parse(path)


class Folder:
    """A label set on a disk of this machine."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def file(self, name: str, sha256: str | None) -> Path:
        """See `Store`."""
        receipts.check_file(self.root / name, sha256)
        return self.root / name

    def find(self, name: str) -> Path | None:
        """See `Store`; not checked."""
        return self.root / name if (self.root / name).is_file() else None

    def folder(self, name: str) -> Path | None:
        """See `Store`; not checked where the set is unfinished."""
        if not (self.root / name).is_dir():
            return None
        if (self.root / layout.MANIFEST).is_file():
            receipts.check_folder(self.root, name)
        return self.root / name

    def shard(self, receipt: Receipt) -> Shard:
        """See `Store`."""
        return Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)

    def check_keys(self) -> None:
        """See `Store`."""
        receipts.check_keys(self.root)

    def parquet(self, receipt: Receipt) -> str:
        """See `Store`."""
        return str(self.root / receipt.path)


class Remote:
    """A label set somewhere else, at one revision.

    Small files are kept whole in `root` (of the Hub, in huggingface_hub's own cache), the rest in
    the cache's blobs. Pickled, it is the same set in another process, and nothing is asked.

    Args:
        root: where the manifest is.
    """

    remote = True

    def __init__(self, origin: Origin, root: Path, cache: Cache) -> None:
        self._origin, self._cache = origin, cache
        self.root, self.name = root, origin.url
        where = f"{self.name}/{layout.MANIFEST}"
        found = manifest.parse((root / layout.MANIFEST).read_bytes(), where=where)
        self._files = {**found.files, layout.PLAN: found.plan_sha256}
        self._checked: set[Path] = set()

    def __reduce__(self) -> tuple[type[Remote], tuple[Origin, Path, Cache]]:
        return Remote, (self._origin, self.root, self._cache)

    def file(self, name: str, sha256: str | None) -> Path:
        """See `Store`."""
        path = self._place(name, sha256)
        if path in self._checked and path.is_file():
            return path
        for again in (False, True):
            if isinstance(self._origin, Hub):
                self._origin.download(name, offline=_offline(), again=again)
            elif again or not path.is_file():
                self._check_online(name)
                self._cache.put(path, self._origin.whole(name))
            if _is(path, sha256):
                self._checked.add(path)
                return path
        raise CorruptShardError(
            f"{self.name}/{name}: it is not the file that {layout.MANIFEST} names; the set was "
            "changed after it was made, or is being replaced: open it again, and if that does not "
            "help tell who published it"
        )

    def find(self, name: str) -> Path | None:
        """See `Store`."""
        return self.file(name, self._files[name]) if name in self._files else None

    def folder(self, name: str) -> Path | None:
        """See `Store`."""
        files = [file for file in self._files if file.startswith(f"{name}/")]
        for file in files:
            self.file(file, self._files[file])
        return self.root / name if files else None

    def shard(self, receipt: Receipt) -> Shard:
        """See `Store`."""

        def read(start: int, stop: int) -> bytes:
            self._check_online(receipt.path)
            return self._origin.read(receipt.path, start, stop, size=receipt.bytes)

        if not 0 < receipt.footer_bytes <= receipt.bytes:
            raise CorruptShardError(f"{self.name}: the receipt of {receipt.path} is impossible")
        # Named by their content, equal shards of two revisions or mirrors are one file.
        file = self._cache.sparse(receipt.sha256, receipt.bytes, read)
        return Shard(file, receipt=receipt, name=f"{self.name}/{receipt.path}")

    def check_keys(self) -> None:
        """See `Store`."""
        self.find(layout.KEYS)

    def parquet(self, receipt: Receipt) -> str:
        """See `Store`."""
        return f"{self.name}/{receipt.path}"

    def _place(self, name: str, sha256: str | None) -> Path:
        large = name == layout.KEYS or name.startswith(f"{layout.PROBES}/")
        if large and not isinstance(self._origin, Hub) and sha256 is not None:
            return self._cache.blobs / sha256
        return self.root / name

    def _check_online(self, name: str) -> None:
        if _forbidden(self._origin):
            raise _not_cached(f"{self.name}/{name}")


def _open_remote(origin: Origin, cache: Cache) -> Remote:
    remote = _with_manifest(origin, cache)
    for name in (layout.PLAN, layout.SHARDS):
        remote.find(name)
    return remote


def _with_manifest(origin: Origin, cache: Cache, *, again: bool = False) -> Remote:
    try:
        if isinstance(origin, Hub):
            file = origin.download(layout.MANIFEST, offline=_offline(), again=again)
            return Remote(origin.pinned(file, layout.MANIFEST), file.parent, cache)
        return Remote(origin, _mirror(origin, cache), cache)
    except MissingError as error:
        raise LabelSetError(
            f"{origin.url} is no finished label set: {quoted(error, limit=300)}; a set that is "
            "still being made can be opened, where it is a folder or a bucket, with unfinished=True"
        ) from error
    except RemoteError:
        raise
    except LabelSetError as error:
        # It has no digest to be held to: one that came cut short shows only in what it says.
        if not again and not _forbidden(origin):
            return _with_manifest(origin, cache, again=True)
        raise LabelSetError(
            f"{error}. The manifest came cut short, or is being replaced: open the set again, and "
            "if that does not help tell who published it"
        ) from None


def _mirror(origin: Origin, cache: Cache) -> Path:
    """The folder of a set's small files, named by its manifest's digest; the manifest is there."""
    latest = cache.folder / "opened" / hashlib.sha256(origin.url.encode()).hexdigest()
    where = f"{origin.url}/{layout.MANIFEST}"
    if not _offline():
        data = origin.whole(layout.MANIFEST)
        manifest.parse(data, where=where)
        digest = hashlib.sha256(data).hexdigest()
        root = cache.folder / "sets" / digest
        if not _is(root / layout.MANIFEST, digest):
            cache.put(root / layout.MANIFEST, data)
        cache.put(latest, digest.encode())
        return root
    digest = latest.read_text() if latest.is_file() else ""
    root = cache.folder / "sets" / digest
    if not re.fullmatch("[0-9a-f]{64}", digest) or not _is(root / layout.MANIFEST, digest):
        raise _not_cached(where)
    return root


def _is(path: Path, sha256: str | None) -> bool:
    try:
        return path.is_file() and file_sha256(path) == sha256
    except FileNotFoundError:
        # Another process may have dropped it, just now.
        return False


def _not_cached(what: str) -> RemoteError:
    return RemoteError(
        f"{what} is not in the cache, and SOFTLABELS_OFFLINE or HF_HUB_OFFLINE forbids to fetch "
        "it; go online once, or unset it"
    )


def _offline() -> bool:
    return os.environ.get("SOFTLABELS_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _forbidden(origin: Origin) -> bool:
    """Whether the environment forbids to ask it."""
    if not isinstance(origin, Hub):
        return _offline()
    from huggingface_hub import constants

    return _offline() or bool(constants.HF_HUB_OFFLINE)


class InFlight:
    """Work in a few threads that do not keep a process from ending; equal work is done once."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """What a forked process has to do: the threads are in the other one."""
        self._lock = threading.Lock()
        self._futures: dict[Hashable, Future[None]] = {}
        self._queue: queue.SimpleQueue[tuple[Hashable, Callable[[], None]]] = queue.SimpleQueue()
        self._threads = 0

    def start(self, key: Hashable, work: Callable[[], None]) -> Future[None]:
        """Begin some work, or find what is under way with this key."""
        with self._lock:
            if key in self._futures:
                return self._futures[key]
            future = self._futures[key] = Future()
            self._queue.put((key, work))
            if self._threads < min(_THREADS, len(self._futures)):
                self._threads += 1
                threading.Thread(target=self._run, daemon=True, name="softlabels-fetch").start()
        return future

    def _run(self) -> None:
        while True:
            key, work = self._queue.get()
            try:
                work()
                error: BaseException | None = None
            except BaseException as caught:
                error = caught
            with self._lock:
                future = self._futures.pop(key)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
            del work, error, future


in_flight = InFlight()
os.register_at_fork(after_in_child=in_flight.forget)

"""The cache of remote sets: sparse copies of shards, shared by all processes, bounded.

A shard's copy has the shard's size from the start and holds the ranges that were needed so far.
Nothing says which: a range is here when its bytes have the digest that the receipt names. So a
hole, a write that a kill cut short and a flipped bit are all the same, fetched (again), and
several processes may write one copy at once. They map it, and so share its pages.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from softlabels.errors import InputError, RemoteError
from softlabels.format.mapped import Piece

DEFAULT_BYTES = 64 << 30
# Wrong pieces this near to each other are fetched by one request.
_GAP_BYTES = 64 << 10
# How long another process may take for a range before it is fetched here too.
_CLAIMED_S = 120.0
_POLL_S = 0.01
# A file under a temporary name that was not written to for this long is nobody's.
_WRITTEN_S = 3600.0
# A copy that is read is marked as used this often.
_MARK_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
# What is dropped at once when a disk is full, and written before the files are counted again.
_ROOM_BYTES = 64 << 20
_uncounted: defaultdict[Path, int] = defaultdict(int)


@dataclass(frozen=True)
class Cache:
    """A folder that holds at most so many bytes of shards, save for what is being read.

    Attributes:
        folder: shared by processes.
        limit: bytes; beyond it the least recently used copies are dropped.
    """

    folder: Path
    limit: int

    @classmethod
    def from_environment(cls) -> Cache:
        """SOFTLABELS_CACHE (or softlabels in XDG_CACHE_HOME) and SOFTLABELS_CACHE_BYTES.

        Raises:
            InputError: the limit is no number.
        """
        limit = os.environ.get("SOFTLABELS_CACHE_BYTES") or str(DEFAULT_BYTES)
        if not limit.isdecimal():
            raise InputError("SOFTLABELS_CACHE_BYTES must be a whole number of bytes")
        home = os.environ.get("XDG_CACHE_HOME", "")
        below = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        folder = os.environ.get("SOFTLABELS_CACHE") or below / "softlabels"
        return cls(Path(folder).absolute(), int(limit))

    @property
    def blobs(self) -> Path:
        """Where the files lie that may be dropped, each named by the sha256 of the whole."""
        return self.folder / "blobs"

    def sparse(self, sha256: str, size: int, read: Callable[[int, int], bytes]) -> SparseFile:
        """The copy of a file of so many bytes, as far as it was needed.

        Args:
            read: start and stop of bytes to fetch.

        Raises:
            RemoteError: the cache cannot be written.
        """
        with self.writing():
            return SparseFile(self, self.blobs / sha256, size, read)

    def put(self, path: Path, data: bytes) -> None:
        """A whole file, there at once or not at all; raises `RemoteError`."""
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                self.write(descriptor, 0, memoryview(data), keep=Path(name))
                os.replace(name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
            finally:
                os.close(descriptor)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The folder is there, and errors of its disk say what to do."""
        try:
            self.blobs.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            todo = (
                "free some of its disk, or set SOFTLABELS_CACHE to a folder on a larger one (and "
                "SOFTLABELS_CACHE_BYTES below what that has free)"
                if error.errno in _FULL
                else "set SOFTLABELS_CACHE to a folder that can"
            )
            raise RemoteError(
                f"{self.folder}: the cache of remote label sets cannot be written "
                f"({error.strerror or type(error).__name__}); {todo}"
            ) from error

    def write(self, descriptor: int, start: int, data: memoryview, *, keep: Path) -> None:
        """Write at a place of a file; where the disk is full, others are dropped for it.

        Args:
            keep: that file.
        """
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(descriptor, data[done:], start + done)
            except OSError as error:
                if error.errno not in _FULL or not self.make_room(keep, at_least=_ROOM_BYTES):
                    raise
        # The files are counted now and then: it takes milliseconds.
        _uncounted[self.folder] += len(data)
        if _uncounted[self.folder] >= min(_ROOM_BYTES, self.limit // 16):
            _uncounted[self.folder] = 0
            self.make_room(keep)

    def make_room(self, keep: Path, *, at_least: int = 0) -> bool:
        """Drop the least recently used files until the limit is kept.

        Who has a dropped file open keeps it, and its blocks, until the next use.

        Args:
            keep: the file that is being written.
            at_least: drop so many bytes whatever the limit.

        Returns:
            whether something was dropped.
        """
        with open(self.folder / ".lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_POLL_S)
                return True  # by another process, just now
            files = sorted(_used(self.blobs))
            total = sum(size for _, size, _ in files)
            # A tenth more, so that the next write does not come here again.
            surplus = total - self.limit + self.limit // 10 if total > self.limit else 0
            surplus, dropped = max(surplus, at_least), 0
            for _, size, path in files:
                if dropped < surplus and path != keep:
                    path.unlink(missing_ok=True)
                    dropped += size
            return dropped > 0


def _used(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """When each file was last used, and the bytes of disk that it takes."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                stat = entry.stat()
                # Another process is writing it, unless it was killed.
                if entry.name.startswith(".") and time.time() - stat.st_mtime < _WRITTEN_S:
                    continue
                yield stat.st_mtime_ns, stat.st_blocks * 512, Path(entry.path)


class SparseFile:
    """A file of which some ranges are here; the others read as zeros.

    Args:
        cache: whose file it is.
        path: made if it is not there.
        size: of the whole, in bytes.
        read: start and stop of bytes to fetch.
    """

    def __init__(
        self, cache: Cache, path: Path, size: int, read: Callable[[int, int], bytes]
    ) -> None:
        self._cache, self._path, self._read = cache, path, read
        self._marked = -_MARK_S
        self._file = _opened(path, size)
        weakref.finalize(self, os.close, self._file)
        self._bytes = memoryview(mmap.mmap(self._file, size, access=mmap.ACCESS_READ))
        self._mark()

    @property
    def buffer(self) -> pa.Buffer:
        """The mapped bytes."""
        return pa.py_buffer(self._bytes)

    @property
    def dropped(self) -> bool:
        """Whether it is no longer in the cache: what is fetched into it helps nobody else."""
        self._mark()
        return os.fstat(self._file).st_nlink == 0

    def bring(self, pieces: Sequence[Piece], digest: Callable[[memoryview], str]) -> None:
        """Fetch those pieces that are not here; only bytes that have their digest are written.

        What the server sends wrong twice stays away, for the reader to find and name.

        Raises:
            RemoteError: the server or the cache's disk fails.
        """
        asked = 0
        while asked < 2:
            wrong = [p for p in pieces if digest(self._bytes[p.start : p.stop]) != p.digest]
            if not wrong:
                return
            # A span that another process has just fetched is looked at again, not asked for.
            asked += any([self._fetch(span, digest) for span in _spans(wrong)])

    def _fetch(self, span: Sequence[Piece], digest: Callable[[memoryview], str]) -> bool:
        start, stop = span[0].start, span[-1].stop
        with self._claim(start, stop) as ours:
            if ours:
                data = memoryview(self._read(start, stop))
                for piece in span:
                    part = data[piece.start - start : piece.stop - start]
                    if digest(part) == piece.digest:
                        self._write(piece.start, part)
        return ours

    @contextmanager
    def _claim(self, start: int, stop: int) -> Iterator[bool]:
        """Whether the range is this process's to fetch; if not, another just did, or tried."""
        deadline, waited = time.monotonic() + _CLAIMED_S, False
        while not self._lock(start, stop):
            waited = True
            if time.monotonic() > deadline:
                yield True
                return
            time.sleep(_POLL_S)
        try:
            yield not waited
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, stop - start, start)

    def _lock(self, start: int, stop: int) -> bool:
        """The system frees it when the process ends; where there are no locks, all fetch."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, stop - start, start)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def _write(self, start: int, data: memoryview) -> None:
        with self._cache.writing():
            self._cache.write(self._file, start, data, keep=self._path)

    def _mark(self) -> None:
        if time.monotonic() - self._marked > _MARK_S:
            self._marked = time.monotonic()
            with suppress(OSError):
                os.utime(self._file)


def _opened(path: Path, size: int) -> int:
    """A descriptor of a file of that size."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not (found := os.fstat(file).st_size):
                os.ftruncate(file, size)
            if found in (0, size):
                return file
            # Cut in place, it would end every process that reads it; they keep theirs.
            path.unlink(missing_ok=True)
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _spans(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbours together, each run for one request."""
    spans: list[list[Piece]] = []
    for piece in sorted(pieces):
        if spans and piece.start - spans[-1][-1].stop <= _GAP_BYTES:
            spans[-1].append(piece)
        else:
            spans.append([piece])
    return spans

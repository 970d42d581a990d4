"""An object store in memory, with conditional puts and with faults, as fsspec sees one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from softlabels.stores import asking, bucket, fsspec_files

BUCKET = "labels"
# Of an operation ("put", "read", "list" or "remove"), the name, and whether it is done already.
Fault = Callable[[str, str, bool], None]


class FakeStore(AbstractFileSystem):
    """What a test sets up beforehand and looks at afterwards; all instances are one store.

    Attributes:
        objects: the bytes of each, by its path.
        asked: operations and paths, in order.
        sent: bytes that were read of each object.
        fault: called before and after each operation; may raise, or change the store.
        exclusive: whether it heeds the condition of a put.
    """

    protocol = "fake"
    cachable = False
    objects: dict[str, bytes]
    asked: list[tuple[str, str]]
    sent: Counter[str]
    fault: Fault | None
    exclusive: bool
    lock = threading.RLock()

    @classmethod
    def empty(cls) -> type[FakeStore]:
        """The store, as new."""
        cls.objects, cls.asked, cls.sent = {}, [], Counter()
        cls.fault, cls.exclusive = None, True
        return cls

    @classmethod
    def contents(cls, folder: str) -> dict[str, bytes]:
        """What lies below a folder, by relative paths."""
        start = f"{BUCKET}/{folder}/"
        return {p[len(start) :]: data for p, data in cls.objects.items() if p.startswith(start)}

    @classmethod
    def done(cls, operation: str, part: str) -> list[str]:
        """Paths of an operation that have a part in common."""
        return [path for what, path in cls.asked if what == operation and part in path]

    def _do(self, operation: str, path: str, work: Callable[[], Any]) -> Any:
        path = self._strip_protocol(path)
        type(self).asked.append((operation, path))
        if path.split("/")[0] != BUCKET:
            raise FileNotFoundError(path)
        if (fault := type(self).fault) is not None:
            fault(operation, path, False)
        with self.lock:
            found = work()
        if fault is not None:
            fault(operation, path, True)
        return found

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(rpath)

        def put() -> None:
            if mode == "create" and self.exclusive and path in self.objects:
                raise FileExistsError(path)
            self.objects[path] = Path(lpath).read_bytes()

        self._do("put", path, put)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        path = self._strip_protocol(path)

        def read() -> bytes:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[path][start:end]

        data = bytes(self._do("read", path, read))
        self.sent[path] += len(data)
        return data

    def rm(self, path: list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        for one in path:
            name = self._strip_protocol(one)
            self._do("remove", name, lambda name=name: self.objects.pop(name, None))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)

        def look() -> dict[str, Any]:
            if path in self.objects:
                return {"name": path, "size": len(self.objects[path]), "type": "file"}
            if any(name.startswith(f"{path}/") for name in self.objects):
                return {"name": path, "size": 0, "type": "directory"}
            raise FileNotFoundError(path)

        return dict(self._do("list", path, look))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        start = f"{path}/"

        def look() -> list[dict[str, Any]]:
            found: dict[str, dict[str, Any]] = {}
            for name, data in self.objects.items():
                if name.startswith(start):
                    head, *rest = name[len(start) :].split("/")
                    kind = "directory" if rest else "file"
                    size = 0 if rest else len(data)
                    found[head] = {"name": start + head, "size": size, "type": kind}
            if not found:
                raise FileNotFoundError(path)
            return list(found.values())

        infos = self._do("list", path, look)
        return infos if detail else [info["name"] for info in infos]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeStore]:
    """An empty store behind fake://labels."""
    fsspec.register_implementation("fake", FakeStore, clobber=True)
    monkeypatch.setattr(bucket, "EXCLUSIVE", {"fake"})
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    monkeypatch.setattr(fsspec_files, "_SYSTEMS", {})
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    return FakeStore.empty()

"""Requests to an object store: what is there, and puts, which may ask that nothing is there yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from softlabels.errors import MissingError
from softlabels.stores.asking import longest_s, persist
from softlabels.stores.fsspec_files import Fsspec

T = TypeVar("T")

_TODO = (
    "what is finished stays: see that the server can be reached, and run the same command again to "
    "go on"
)
# Of a listing, or of so many small files.
_MANY_S = 600.0
_MANY = 1000
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Objects:
    """Objects below a URL, each by its name relative to it.

    Attributes:
        origin: of the URL; reads what is read in parts.

    Raises:
        RemoteError: the store refuses, or failed several times.
    """

    origin: Fsspec

    @property
    def url(self) -> str:
        """Of them all; without credentials."""
        return self.origin.url

    def top(self) -> list[str]:
        """Names without their folders, and folders, just below the URL."""

        def call(system: Any, root: str, **limit: float) -> list[str]:
            system.invalidate_cache()
            paths = (path.strip("/") for path in system.ls(root, detail=False, **limit))
            return [PurePosixPath(path).name for path in paths if path != root.strip("/")]

        try:
            return sorted(self._ask("", call, _MANY_S))
        except MissingError:
            return []

    def find(self, folder: str) -> dict[str, int]:
        """Names and bytes of everything below a folder, in the order of a file system's walk."""

        def call(system: Any, root: str, **limit: float) -> dict[str, int]:
            system.invalidate_cache()
            found = system.find(f"{root}/{folder}", detail=True, **limit)
            start = len(root.strip("/")) + 1
            return {path.strip("/")[start:]: info["size"] for path, info in found.items()}

        try:
            found = self._ask(folder, call, _MANY_S)
        except MissingError:
            return {}
        return {name: found[name] for name in sorted(found, key=PurePosixPath)}

    def size(self, name: str) -> int | None:
        """Bytes of an object, if it is there."""

        def call(system: Any, root: str, **limit: float) -> Any:
            system.invalidate_cache()
            return system.info(f"{root}/{name}", **limit)

        try:
            found = self._ask(name, call)
        except MissingError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def read(self, name: str) -> bytes | None:
        """A small object, if it is there."""
        try:
            return self.origin.whole(name)
        except MissingError:
            return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Small objects, by requests side by side; without those that could not be had so."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _MANY):
            some = names[start : start + _MANY]

            def call(
                system: Any, root: str, some: Sequence[str] = some, **limit: float
            ) -> dict[str, bytes]:
                paths = {f"{root}/{name}".strip("/"): name for name in some}
                data = system.cat(list(paths), on_error="omit", **limit)
                return {paths[path.strip("/")]: bytes(one) for path, one in data.items()}

            with suppress(MissingError):
                found |= self._ask(some[0], call, _MANY_S)
        return found

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of a large object, in turn."""
        size = self.size(name)
        if size is None:
            raise MissingError(f"{self.url}/{name}: it was removed just now")
        for start in range(0, size, _PIECE_BYTES):
            yield self.origin.read(name, start, min(start + _PIECE_BYTES, size), size=size)

    def create(self, name: str, file: Path) -> bool:
        """Put a file whole where nothing is; False if something is there."""
        try:
            self._put(name, file, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, file: Path) -> None:
        """Put a file whole, whatever is there."""
        self._put(name, file)

    def remove(self, names: Sequence[str]) -> None:
        """Remove those of them that are there."""
        for start in range(0, len(names), _MANY):
            some = names[start : start + _MANY]

            def call(system: Any, root: str, some: Sequence[str] = some, **limit: float) -> None:
                system.rm([f"{root}/{name}" for name in some], **limit)

            with suppress(MissingError):
                self._ask(some[0], call, _MANY_S, failed="cannot be removed")

    def _put(self, name: str, file: Path, **mode: str) -> None:
        def call(system: Any, root: str, **limit: float) -> None:
            system.put_file(str(file), f"{root}/{name}", **mode, **limit)

        self._ask(name, call, longest_s(file.stat().st_size), failed="cannot be written")

    def _ask(
        self,
        name: str,
        call: Callable[..., T],
        seconds: float | None = None,
        *,
        failed: str = "cannot be read",
    ) -> T:
        where = f"{self.url}/{name}".rstrip("/")
        limit_s = longest_s(0) if seconds is None else seconds
        return persist(
            where, lambda: self.origin.ask(where, limit_s, call), failed=failed, todo=_TODO
        )

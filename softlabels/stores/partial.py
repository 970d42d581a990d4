"""A set in an object store while it is made: the units that were done when it was opened."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from softlabels.errors import LabelSetError, MissingError, RemoteError
from softlabels.format import layout
from softlabels.stores.cache import Cache
from softlabels.stores.fsspec_files import Fsspec
from softlabels.stores.objects import Objects
from softlabels.stores.origin import Origin
from softlabels.stores.store import Remote, Store, locate, place


class Partial(Remote):
    """See `Store`: `root` has the plan and the receipts, and no manifest."""

    def __init__(self, origin: Origin, root: Path, cache: Cache) -> None:
        self._origin, self._cache = origin, cache
        self.root, self.name = root, origin.url
        self._files: dict[str, str] = {}
        self._checked: set[Path] = set()

    def __reduce__(self) -> tuple[type[Remote], tuple[Origin, Path, Cache]]:
        return Partial, (self._origin, self.root, self._cache)


def locate_so_far(path: str | os.PathLike[str]) -> Store:
    """As `locate`, also of a set without a manifest where the files of a place can be listed.

    Raises:
        LabelSetError, InputError: as `locate`.
    """
    origin = place(path)
    try:
        return locate(path)
    except RemoteError:
        raise
    except LabelSetError:
        if isinstance(origin, Path) or not isinstance(origin, Fsspec):
            raise
        try:
            return _partial(origin)
        except MissingError:  # dropped, because another job just wrote the manifest; or no set
            return locate(path)


def _partial(origin: Fsspec) -> Partial:
    objects = Objects(origin)
    names = [layout.PLAN, *objects.find(layout.RECEIPTS)]
    found = objects.read_many(names)
    # Not in the cache, which is for what stays as it is.
    root = Path(tempfile.mkdtemp(prefix="softlabels-"))
    made = Partial(origin, root, Cache.from_environment())
    weakref.finalize(made, shutil.rmtree, root, ignore_errors=True)
    (root / layout.RECEIPTS).mkdir()
    for name in names:
        (root / name).write_bytes(found[name] if name in found else origin.whole(name))
    return made

"""Digests of weights, kept in the user's cache, so that a checkpoint is hashed once.

One JSON object, `softlabels/weights.json` in `XDG_CACHE_HOME`: the digest of everything that a
state dict follows from → the digest of the state dict. A file that changed has another name here,
so nothing is ever out of date; a cache that is damaged or cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

_KEPT = 1000


def fingerprint(files: Iterable[Path]) -> list[list[Any]]:
    """What tells whether a file is the one that it was, without reading it.

    A file of the Hub's cache is named by its own digest, so name and size suffice; any other is
    known by its time and inode too.
    """
    found: list[list[Any]] = []
    for file in sorted(files):
        real = file.resolve()
        stat = real.stat()
        known: list[Any] = [file.name, str(real), stat.st_size]
        if real.parent.name != "blobs":
            # The inode's own time too: an overwritten file may be given its old mtime back.
            known += [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        found.append(known)
    return found


def kept(origin: dict[str, Any], compute: Callable[[], str]) -> str:
    """The digest that was kept for an origin, else a computed one, which is kept.

    Args:
        origin: everything the state dict follows from, as JSON values.
        compute: makes the digest, 32 hex digits.
    """
    name = json_digest(origin)
    found = _read().get(name)
    if found is None:
        found = compute()
        # Read again: others may have added theirs in the meantime.
        _write({**_read(), name: found})
    return found


def json_digest(value: Any) -> str:
    """xxh3-128 (hex) of a value's JSON with sorted keys."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(data.encode())


def _path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative one is to be ignored.
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / (
        "softlabels/weights.json"
    )


def _read() -> dict[str, str]:
    try:
        found = json.loads(_path().read_bytes())
    except (OSError, RuntimeError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str) and _is_digest(v)}


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def _write(digests: dict[str, str]) -> None:
    newest = dict(list(digests.items())[-_KEPT:])
    with contextlib.suppress(OSError, RuntimeError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".weights-")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(newest, file, indent=0)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

"""A Ray cluster: one at an address, or one of this machine alone for as long as it is needed."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_OBJECT_STORE_BYTES = 80 << 20
_HERE = "127.0.0.1"
_LONGEST_FOLDER = 24  # a Unix socket's path may have 107 bytes, and Ray's own part takes 80


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to one that lives here as long as the block.

    A program that is connected already stays so.
    """
    # Ray takes this machine's outside address in place of 127.0.0.1, and listens on all, unless:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        with _own_folder() as folder:
            ray: Any = importlib.import_module("ray")
            options = {
                "_node_ip_address": _HERE,
                "_temp_dir": str(folder),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
            yield from _initialised(ray, options)
        return
    ray = importlib.import_module("ray")
    here = address.split(":")[0] in (_HERE, "localhost")
    yield from _initialised(
        ray, {"address": address, **({"_node_ip_address": _HERE} if here else {})}
    )


def _initialised(ray: Any, options: dict[str, Any]) -> Iterator[Any]:
    if ray.is_initialized():
        yield ray
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        if in_main_thread:  # Ray takes SIGTERM for itself
            signal.signal(signal.SIGTERM, terminated)
        yield ray
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, terminated)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for a cluster's sockets and logs, and the token without which it lets nobody in."""
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=short))
    # A program that has used Ray before has settled how its clusters are guarded.
    ours = "RAY_AUTH_MODE" not in os.environ and ("ray" not in sys.modules or _made_token())
    names = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    if ours:
        with os.fdopen(os.open(folder / "token", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(_token())
        os.environ.update(names)
    try:
        yield folder
    finally:
        for name in names if ours else ():
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _token() -> str:
    # Ray reads it once in a process, and takes that for every cluster.
    return secrets.token_hex(32)


def _made_token() -> bool:
    return _token.cache_info().currsize > 0

"""Notice when any program opens a file, by Linux inotify: C and Rust libraries included."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN = 0x20


@contextmanager
def watch(path: Path) -> Iterator[list[bool]]:
    """Yields a list that, when the block ends, holds True for an opened file, else False.

    It stays empty where there is no inotify (macOS, BSD).
    """
    seen: list[bool] = []
    if not sys.platform.startswith("linux"):
        yield seen
        return
    libc = ctypes.CDLL(None, use_errno=True)
    events = libc.inotify_init1(os.O_NONBLOCK)
    if events < 0 or libc.inotify_add_watch(events, os.fsencode(path), _IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), f"inotify cannot watch {path}")
    try:
        yield seen
        try:
            seen.append(bool(os.read(events, 4096)))
        except BlockingIOError:
            seen.append(False)
    finally:
        os.close(events)

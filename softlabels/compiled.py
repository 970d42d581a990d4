"""Functions as machine code, kept on disk; importing it fails where numba is not installed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba import njit


def compiled(function: Any, **options: Any) -> Any:
    """The function, compiled for the types it is called with; the interpreter is left to others.

    Args:
        options: of `numba.njit`.

    Raises:
        ImportError: this numba keeps what it compiles in an unknown way.
        RuntimeError: there is no place to keep it.
    """
    made = njit(nogil=True, cache=True, boundscheck=False, **options)(function)
    try:
        made._cache._cache_file = _OneAtATime(made._cache._cache_file, made.stats.cache_path)
    except AttributeError as error:
        raise ImportError(f"an unknown numba: {error}") from None
    return made


class _OneAtATime:
    """What was compiled of a function, on disk, for one process at a time.

    Of two processes that compile it for different types at once, numba gives both files one name,
    and from then on runs the machine code of one with the arguments of the other.

    Args:
        kept: numba's index and data files.
        folder: where they are.
    """

    def __init__(self, kept: Any, folder: str) -> None:
        self._kept, self._folder = kept, Path(folder)

    def load(self, key: Any) -> Any:
        """What was compiled for a key; None if nothing was, or the disk has no locks."""
        try:
            with self._alone():
                return self._kept.load(key)
        except (OSError, NotImplementedError):
            return None

    def save(self, key: Any, data: Any) -> None:
        """Keep it, unless the disk has no locks."""
        with suppress(OSError, NotImplementedError), self._alone():
            self._kept.save(key, data)

    def flush(self) -> None:
        """Forget what was kept."""
        with self._alone():
            self._kept.flush()

    def _alone(self) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        # One object a process: what is loaded may load others.
        return FileLock(self._folder / "softlabels.lock", is_singleton=True, poll_interval=0.01)

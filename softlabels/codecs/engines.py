"""What unpacks on a CPU: numba where it is installed, else NumPy; both give equal arrays."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from softlabels.codecs import unpack_numpy


@cache
def cpu() -> ModuleType:
    """The faster one; `pip install 'softlabels[fast]'` brings numba."""
    try:
        from softlabels.codecs import unpack_numba
    except (ImportError, RuntimeError):  # not installed, or nowhere to keep what it compiles
        return unpack_numpy
    return unpack_numba

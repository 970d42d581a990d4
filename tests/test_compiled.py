"""Functions as machine code: what several processes keep on one disk at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from softlabels import compiled as room
from softlabels.compiled import compiled

KERNEL = """
from softlabels.compiled import compiled

@compiled
def total(values):
    found = 0
    for value in values:
        found += value
    return found
"""
# Reads the index, and is overtaken by the other process before it writes its own.
COMPILES = """
import sys, time
import numpy as np
from numba.core.caching import IndexDataCacheFile

read = IndexDataCacheFile._load_index

def slow(self):
    found = read(self)
    time.sleep(0.7)
    return found

IndexDataCacheFile._load_index = slow
import kernel
print(kernel.total(np.arange(5, dtype=sys.argv[1])), flush=True)
"""
USES = """
import numpy as np, kernel
for kind in ("uint8", "float64"):
    print(kernel.total(np.arange(5, dtype=kind)))
print(sum(kernel.total.stats.cache_hits.values()))
"""


def test_processes_that_compile_at_once_do_not_get_each_others_code(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    paths = [str(tmp_path), str(Path(__file__).parents[1])]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "NUMBA_CACHE_DIR": str(tmp_path / "c"),
    }  # fmt: skip

    def begun(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, text=True
        )

    both = [begun(COMPILES, kind) for kind in ("uint8", "float64")]
    assert [float(process.communicate(timeout=120)[0]) for process in both] == [10, 10]
    found = begun(USES).communicate(timeout=120)[0].split()
    assert [float(each) for each in found] == [10, 10, 2], "a sum of each type, both from the disk"


class NoLocks:
    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("this disk has no locks")


def test_a_disk_without_locks_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(value: float) -> float:
        return 2 * value

    monkeypatch.setattr(room, "FileLock", NoLocks)
    made = compiled(doubled)
    assert made(np.float64(1.5)) == 3
    assert not made.stats.cache_hits


def test_an_unknown_numba_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown:
        """A dispatcher without what is replaced."""

    monkeypatch.setattr(room, "njit", lambda **_: lambda _: Unknown())
    with pytest.raises(ImportError, match="unknown numba"):
        compiled(abs)

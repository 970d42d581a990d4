"""Labelling takes no more memory for ten times the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# A process of its own, whose peak is its own. The first run warms up allocators and thread pools.
PEAKS = """
import resource, sys
import numpy as np, pyarrow as pa, torch
import softlabels as sl

CLASSES, LENGTH, UNIT = 512, 256, 16
out, few, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
table = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0))
teacher = sl.teachers.from_callable(
    lambda ids: table[ids], name="table", version="1", classes=CLASSES
)

def rows(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        yield {"id": number, "ids": rng.integers(0, CLASSES, LENGTH)}

def label(name, count):
    sl.precompute(
        rows(count), teacher, f"{out}/{name}", selection=sl.TopK(64), column="ids", key="id",
        max_length=LENGTH, unit_rows=UNIT, batch_tokens=2048, progress=False,
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(label("few", few), label("many", many))
"""


def peaks(tmp_path: Path, few: int, many: int) -> tuple[int, int]:
    command = [sys.executable, "-c", PEAKS, str(tmp_path), str(few), str(many)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    return first, second


def test_peak_memory_is_flat_in_the_number_of_records(tmp_path: Path) -> None:
    # Kept in memory, the labels of the second run would be 63 MB, of a peak of some 450 MB.
    few, many = peaks(tmp_path, 32, 320)
    assert many < 1.1 * few

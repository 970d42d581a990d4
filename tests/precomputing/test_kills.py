"""A job killed at random moments and steps, a dozen times; `make soak` does it 200 times.

And one that nobody kills, which must not die of its own end.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.slow
def test_a_job_killed_a_dozen_times_ends_in_the_uninterrupted_set() -> None:
    command = [sys.executable, str(SOAK), "--fork", "--kills", "12", "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "well: 12 kills" in found.stdout


TASKS = Path("/proc/self/task")

# Every command and job opens a set last. A thread of Arrow's that then still lets go of a Python
# object aborts the process while its interpreter ends, about once in a hundred times.
OPEN = f"""
import os, sys
from softlabels import LabelSet
before = os.listdir({str(TASKS)!r})
labels = LabelSet.open(sys.argv[1])
print(len(os.listdir({str(TASKS)!r})) - len(before), len(labels) > 0)
"""


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted where Linux lists them")
def test_opening_a_set_leaves_no_thread_behind(pristine: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(pristine)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "0 True"), found.stderr

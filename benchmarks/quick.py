"""Every benchmark in its quick form, in one table: figures to look at, not to quote.

    python benchmarks/quick.py [--out bench.md] [--only loader scale …]

Label sets are made first, of some pages of the Python language reference by the quickstart's
teacher. Each benchmark checks its answers before it measures, in a process of its own, one after
another; one that fails or takes too long is named, and the others go on. Whole runs are in
docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from timing import machine, markdown

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "pipelines"))
from quickstart import SOFTLABELS, write_text  # noqa: E402
from smollm2 import fetch  # noqa: E402

# What each is given beside --quick: the label sets, where it needs some.
BENCHMARKS = {
    "import": [],
    "selection": [],
    "losses": [],
    "shuffle": [],
    "dedup": [],
    "views": [],
    "executors": [],
    "scale": [],
    "cost": [],
    "precompute": [],
    "accelerator": ["--device", "cpu"],
    "storage": ["LABELS", "--learn", "OTHER"],
    "student_step": ["LABELS"],
    "loader": ["LABELS", "--k", "32"],
}
LIMIT = 600


@dataclass(frozen=True)
class Ran:
    """A benchmark that has run.

    Attributes:
        name: its file's, without bench_.
        seconds: that it took.
        tables: what it printed; of one without tables its lines, a table of one column.
        fault: how it ended otherwise than well; empty where it did not.
    """

    name: str
    seconds: float
    tables: list[list[list[str]]]
    fault: str

    def rows(self) -> Iterator[list[str]]:
        """Lines of the one table: benchmark, what was measured, its figures by name."""
        if self.fault:
            yield [self.name, self.fault, ""]
        for header, *body in self.tables:
            for what, *figures in body:
                named = zip(header[1:], figures, strict=False)
                told = " · ".join(f"{name} {figure}" for name, figure in named)
                yield [self.name, f"{header[0]} {what}".strip(), told]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sets = label(Path(folder))
        ran = [run(name, sets) for name in args.only]
    made = "\n".join(
        [
            f"Commit {commit()}, {date.today()}, {machine()}; {minutes(began)}.",
            "",
            markdown(["benchmark", "of", "figures"], [row for one in ran for row in one.rows()]),
            "",
            "Seconds: " + ", ".join(f"{one.name} {one.seconds:.0f}" for one in ran) + ".",
        ]
    )
    print(made)
    if args.out:
        args.out.write_text(made + "\n")
    if faults := [one.name for one in ran if one.fault]:
        sys.exit(f"failed: {', '.join(faults)}")


def label(folder: Path) -> dict[str, Path]:
    """Label sets with exact log-probs and dense positions: one, and a smaller one of other text."""
    teacher, text = fetch(), folder / "text.jsonl"
    with contextlib.redirect_stdout(sys.stderr):
        write_text(text, teacher, tokens=9_000)
    lines = text.read_text().splitlines(keepends=True)
    made = {}
    for name, some in {"OTHER": lines[::3], "LABELS": [*lines[1::3], *lines[2::3]]}.items():
        made[name], part = folder / name, folder / f"{name}.jsonl"
        part.write_text("".join(some))
        subprocess.run(
            [
                SOFTLABELS, "precompute", "--teacher", teacher, "--data", part, "--out", made[name],
                "--key", "id", "--k", "64", "--codec", "lossless", "--probes", "128",
                "--unit-rows", "8",
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
    return made


def run(name: str, sets: dict[str, Path]) -> Ran:
    """One benchmark, in its quick form."""
    given = [str(sets.get(word, word)) for word in BENCHMARKS[name]]
    command = [sys.executable, str(HERE / f"bench_{name}.py"), *given, "--quick"]
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        words = [*ended.stdout.splitlines(), *ended.stderr.strip().splitlines()] or ["no word"]
        printed, fault = ended.stdout, "" if not ended.returncode else words[-1]
    except subprocess.TimeoutExpired:
        printed, fault = "", f"took more than {LIMIT} s"
    lines = [[""], *([line] for line in printed.splitlines() if line)]
    return Ran(name, time.perf_counter() - began, list(tables(printed)) or [lines], fault)


def tables(printed: str) -> Iterator[list[list[str]]]:
    """The Markdown tables of a text, each its header and its rows."""
    table: list[list[str]] = []
    for line in [*printed.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(set(cell) <= {"-", ":"} and cell for cell in cells):
                table.append(cells)
        elif table:
            yield table
            table = []


def commit() -> str:
    """Of the code that ran; a + where it was changed since."""
    told = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(told, capture_output=True, text=True).stdout.strip() or "unknown"


def minutes(began: float) -> str:
    return f"{(time.perf_counter() - began) / 60:.0f} minutes on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()

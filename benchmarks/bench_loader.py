"""How fast do students get their labels, from a label set and from what others would use?

    python benchmarks/bench_loader.py LABELS [MORE …] [--k 32 64] [--positions 1000000]
                                      [--peers PYTHON] [--quick] [--json]

LABELS are finished label sets of one teacher's real text, with token ids and k entries or more;
their positions are cut into records of 512 and repeated under fresh keys. PYTHON is the interpreter
of an environment with the peers that need one of their own (MosaicML Streaming pins transformers):

    python -m venv peers
    peers/bin/pip install torch==2.13.0
    peers/bin/pip install torch==2.13.0 psutil mosaicml-streaming litdata webdataset pylance \\
        grain array_record

Every system (loader_peers/) stores the same records its own way, and must first deliver each once
an epoch, as it was given. Then they run in turn, a process for each system and measure. Some 12
minutes on two cores that do nothing else, and 2 GB in the system's temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from loader_peers import SYSTEMS
from loader_peers.children import Child, has
from loader_peers.contents import BATCH, LENGTH
from loader_peers.stock import Stock
from loader_peers.tables import tables
from timing import machine

# Systems that are delivered and measured by threads, not by worker processes.
THREADED = ("softlabels-1", "softlabels-2")
# Warm measures, by the columns of the table: shuffled or not, and worker processes.
WAYS = {
    "in order, 0": {"shuffled": False, "workers": 0},
    "shuffled, 0": {"shuffled": True, "workers": 0},
    "in order, 2": {"shuffled": False, "workers": 2},
    "shuffled, 2": {"shuffled": True, "workers": 2},
}
ALONE = ("in order, 0", "shuffled, 0")
# Records that a system is warmed up with, in files of their own, before it is measured cold.
FEW = 32
# What was measured of each system.
Found = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+", help="finished label sets of one teacher")
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--positions", type=int, default=1_000_000)
    parser.add_argument("--peers", help="an interpreter that has the peers; this one by default")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--quick", action="store_true", help="fewer records, k and rounds")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    args = parser.parse_args()
    if args.quick:
        args.k, args.positions = args.k[:1], min(args.positions, 200_000)
    pythons = {
        name: args.peers or sys.executable if entry.elsewhere else sys.executable
        for name, entry in SYSTEMS.items()
        if name in args.only
    }
    missing = [name for name in pythons if not has(pythons[name], SYSTEMS[name].needs)]
    for name in missing:
        del pythons[name]
    results = {}
    for k in args.k:
        stock = Stock.read(args.labels, k)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), pythons, _records(args.positions), 1 if args.quick else 3)
            found = bench.run(stock, cold=k == args.k[0])
        about = _about(stock, bench.records)
        results[k] = {"about": about, "systems": found}
        if not args.json:
            print(f"\n{about}\n\n{tables(found)}", flush=True)
    left_out = [SYSTEMS[name].label for name in missing]
    if args.json:
        print(json.dumps({"machine": machine(), "left_out": left_out, "k": results}, indent=1))
    elif left_out:
        print(f"\nLeft out, not installed: {', '.join(left_out)}")
    if not args.json:
        print(f"\n{machine()}")


def _records(positions: int) -> int:
    """As many as hold the positions, in whole batches of two workers and whole shares."""
    step = BATCH * 2 * max(entry.share for entry in SYSTEMS.values())
    return -(-positions // LENGTH // step) * step


def _about(stock: Stock, records: int) -> str:
    distinct = len(stock.tokens)
    return (
        f"k = {stock.labels.k}: {distinct * LENGTH:,} positions of {stock.plan.teacher.name}, "
        f"taken {records / distinct:.1f} times to {records * LENGTH:,} in {records:,} records "
        f"of {LENGTH}; batches of {BATCH}"
    )


@dataclass(frozen=True)
class Bench:
    """One k.

    Attributes:
        folder: a new one, for everything that is written.
        pythons: the interpreter of each system.
        records: of every system but those with a share.
        rounds: of which the median counts.
    """

    folder: Path
    pythons: dict[str, str]
    records: int
    rounds: int

    def run(self, stock: Stock, *, cold: bool) -> Found:
        """Write, check and measure them all."""
        self._write(stock)
        found: Found = {name: {"bytes_per_position": self._bytes(name)} for name in self.pythons}
        _progress("holding what they deliver to what they were given")
        for name, checked in self._at_once("check", self.pythons).items():
            found[name] |= checked
        for column, way in WAYS.items():
            _progress(f"measuring {column}")
            able = [n for n in self.pythons if column in ALONE or n not in THREADED]
            for name, turns in self._interleaved("rate", able, way=way).items():
                found[name][column] = turns
        _progress("measuring lookups")
        able = [n for n in self.pythons if n not in ("web", *THREADED)]
        for name, turns in self._interleaved("lookups", able).items():
            found[name]["lookups"] = turns
        for column in ALONE if cold else ():
            _progress(f"measuring {column}, cold")
            for name, turns in self._cold(WAYS[column]).items():
                found[name][f"{column}, cold"] = turns
        return found

    def _write(self, stock: Stock) -> None:
        _progress("writing")
        (self.folder / "given").mkdir()
        stock.give(self.folder / "given")
        stock.write(self.folder / "ours", self.records)
        stock.write(self.folder / "ours-few", FEW)
        self._at_once("write", [n for n in self.pythons if SYSTEMS[n].folder is None])

    def _home(self, name: str) -> Path:
        return self.folder / (SYSTEMS[name].folder or name)

    def _share(self, name: str) -> int:
        return self.records // SYSTEMS[name].share

    def _bytes(self, name: str) -> float:
        return sum(path.stat().st_size for path in _files(self._home(name))) / (
            self._share(name) * LENGTH
        )

    def _job(self, name: str, measure: str, more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        job = {
            "system": name,
            "measure": measure,
            "folder": str(self._home(name)),
            "few": f"{self._home(name)}-few",
            "given": str(self.folder / "given"),
            "records": self._share(name),
            "few_records": FEW,
            "seconds": 0.3 if self.rounds == 1 else 0.5,
            "scale": self._scale() if SYSTEMS[name].folder == "ours" else None,
            "threads": name in THREADED,
        }
        return self.pythons[name], job | more

    def _scale(self) -> int:
        plan = json.loads((self.folder / "ours" / "plan.json").read_text())
        return int(plan["codec"]["scale"])

    def _at_once(self, measure: str, names: Iterable[str]) -> Found:
        """The first answer of each, two at a time."""

        def answer(name: str) -> dict[str, Any]:
            with Child(*self._job(name, measure, {})) as child:
                return child.answer()

        names = list(names)
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(answer, names), strict=True))

    def _interleaved(self, measure: str, names: Iterable[str], **more: Any) -> Found:
        """Medians of what each found in its turns; all are started before the first."""
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        with ExitStack() as stack:
            children = {
                name: stack.enter_context(Child(*self._job(name, measure, more))) for name in turns
            }
            for child in children.values():
                child.answer()  # ready
            for _, (name, child) in product(range(self.rounds), children.items()):
                turns[name].append(child.turn())
        return {name: medians(found) for name, found in turns.items()}

    def _cold(self, way: dict[str, Any]) -> Found:
        """As `_interleaved`, each turn a new process and files that are not in memory."""
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in self.pythons}
        for _ in range(self.rounds):
            with ExitStack() as stack:
                children = {
                    name: stack.enter_context(Child(*self._job(name, "cold", {"way": way})))
                    for name in turns
                }
                for child in children.values():
                    child.answer()
                for name, child in children.items():
                    evict(self._home(name))
                    turns[name].append(child.turn())
        return {name: medians(found) for name, found in turns.items()}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def evict(folder: Path) -> None:
    """Ask the system to forget the files' pages; whether it did shows in what is read again."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _progress(doing: str) -> None:
    print(doing, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

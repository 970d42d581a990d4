"""What does each executor add to the plain loop, for work units of a second and of a minute?

    python benchmarks/bench_executors.py [--seconds 1 60] [--units 20 4] [--rounds 3 1] [--quick]

The teacher sleeps, so that a unit takes a known time and no processor: the rest is what labelling
costs. The plain loop calls it unit by unit and does nothing else. Each way is a command of its own;
all must have made the same set, byte by byte, before anything is timed and in each round.

Start-up is from the command to the teacher's first call, imports included. From there to the last
receipt are the units; ideal are units x seconds / workers. That includes how much later the second
of two workers begins. Between units is the mean time from an answer of the teacher to its next call
in the same process. Finishing is the rest of the command: workers end, tables are written, the set
is opened. Medians over the rounds; twenty-five minutes, one with --quick. Ray's row needs ray.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import machine, markdown

import softlabels as sl
from softlabels.format import layout
from softlabels.precomputing.executors import Ray
from softlabels.progress import Tracker

UNIT_ROWS, TOKENS, CLASSES, KEPT, WORKERS = 4, 8, 16, 4, 2
# Half a core an actor, so that two find room on one.
OPTIONS: dict[str, dict[str, Any]] = {
    "one process": {},
    "workers=2": {"workers": WORKERS},
    "two ranks": {},
    "Ray, two actors": {"executor": Ray(actors=WORKERS, resources={"CPU": 0.5})},
}
PLAIN = "plain loop"
ALONE = (PLAIN, "one process")
TOLD = ("finish", "finish_elsewhere")
HEADER = ("", "start-up, s", "units, s", "over the ideal", "second later, s",
          "between, ms", "finishing, s")  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Seconds of a command, or of the ranks' together: the columns of the table."""

    start: float
    units: float
    later: float
    between: float
    finish: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 60], help="of a unit")
    parser.add_argument("--units", type=int, nargs="+", default=[20, 4], help="for each of these")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 1], help="for each of these")
    parser.add_argument("--quick", action="store_true", help="one round of 4 units of 0.2 s")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, seconds, where = args.child
        print(json.dumps(_child(way, float(seconds), Path(where))))
        return
    if args.quick:
        args.seconds, args.units, args.rounds = [0.2], [4], [1]
    ways = [PLAIN, *OPTIONS]
    if importlib.util.find_spec("ray") is None:
        ways.pop()
    for seconds, units, rounds in zip(args.seconds, args.units, args.rounds, strict=True):
        _check_same(ways, units, 0.0)
        turns = [_check_same(ways, units, seconds) for _ in range(rounds)]
        rows = [_row(way, [turn[way] for turn in turns], units * seconds) for way in ways]
        print(f"{units} units of {seconds:g} s, {rounds} rounds\n\n{markdown(HEADER, rows)}\n")
    print(machine())


def _row(way: str, turns: list[Spent], alone: float) -> list[str]:
    medians = map(statistics.median, zip(*map(astuple, turns), strict=True))
    start, units, later, between, finish = medians
    ideal = alone / (1 if way in ALONE else WORKERS)
    delay = "" if way in ALONE else f"{later:.2f}"
    shown = f"{start:.1f}", f"{units:.2f}", f"{units / ideal - 1:.2%}", delay
    return [way, *shown, f"{between * 1e3:.1f}", f"{finish:.1f}"]


def _check_same(ways: list[str], units: int, seconds: float) -> dict[str, Spent]:
    """Run every way once.

    Raises:
        AssertionError: one made another set, or other answers, than the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        rows = (torch.arange(i, i + TOKENS) * (i + 1) % CLASSES for i in range(units * UNIT_ROWS))
        data.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
        spent = {way: _run(way, seconds, Path(folder) / way) for way in ways}
        sets = [_files(Path(folder) / way / "set") for way in ways if way != PLAIN]
        assert all(found == sets[0] for found in sets), "the executors made different sets"
        labels = sl.LabelSet.open(Path(folder) / ways[1] / "set")
        assert len(labels) == units * UNIT_ROWS
        plain = json.loads((Path(folder) / PLAIN / "answers.json").read_text())
        assert [record.ids.tolist() for record in labels[:]] == plain, "not the teacher's answers"
    return spent


def _files(root: Path) -> dict[str, Any]:
    """All but how long each shard took, which its receipt and a digest of them say."""
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    how = {"seconds": None, "accelerator": None}
    made = [one.model_copy(update=how) for one in sl.LabelSet.open(root).receipts]
    return files | {layout.SHARDS: made, layout.MANIFEST: None}


def _run(way: str, seconds: float, where: Path) -> Spent:
    """Start the command, or one for each rank, and wait for its end."""
    (where / "calls").mkdir(parents=True)
    command = [sys.executable, __file__, "--child", way, str(seconds), str(where)]
    ranks = [
        {"RANK": str(rank), "WORLD_SIZE": str(WORKERS), "LOCAL_RANK": str(rank)}
        for rank in range(WORKERS if way == "two ranks" else 0)
    ]
    began = time.monotonic()
    start = functools.partial(subprocess.Popen, command, stdout=subprocess.PIPE)
    started = [start(env=os.environ | rank) for rank in ranks or [{}]]
    outputs = [process.communicate()[0] for process in started]
    ended = time.monotonic()
    if any(process.returncode for process in started):
        sys.exit(f"error: {way} failed")
    last = max(json.loads(output.splitlines()[-1]) for output in outputs)
    firsts, gaps = [], []
    for path in (where / "calls").iterdir():  # a process each
        calls = [[*map(float, line.split())] for line in path.read_text().splitlines()]
        firsts.append(calls[0][0])
        gaps += [call[0] - before[1] for before, call in pairwise(calls)]
    return Spent(
        start=min(firsts) - began,
        units=last - min(firsts),
        later=max(firsts) - min(firsts),
        between=statistics.fmean(gaps or [0.0]),
        finish=ended - last,
    )


def answer(seconds: float, calls: str, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of any token ids (B, T), after so long; notes when it was called."""
    began = time.monotonic()
    time.sleep(seconds)
    classes = torch.arange(CLASSES)
    logits = ((input_ids[..., None] * 5 + classes * 3) % CLASSES).float()
    with open(f"{calls}/{os.getpid()}", "a") as file:
        file.write(f"{began} {time.monotonic()}\n")
    return logits


def _child(way: str, seconds: float, where: Path) -> float:
    """What the command does; returns when the last unit was done, in seconds of the clock."""
    teacher = functools.partial(answer, seconds, str(where / "calls"))
    data = where.parent / "rows.jsonl"
    if way == PLAIN:
        ids = torch.tensor([json.loads(line)["ids"] for line in data.read_text().splitlines()])
        answers = [teacher(unit) for unit in ids.split(UNIT_ROWS)]
        done = time.monotonic()
        (where / "answers.json").write_text(json.dumps(torch.cat(answers).topk(KEPT)[1].tolist()))
        return done
    receipts: list[float] = []
    sleeper = sl.teachers.from_callable(teacher, name="sleeper", version="1", classes=CLASSES)
    patches: Any = {name: _noting(receipts, getattr(Tracker, name)) for name in TOLD}
    with mock.patch.multiple(Tracker, **patches):
        sl.precompute(
            data, sleeper, where / "set", selection=sl.TopK(KEPT), column="ids", codec="plain",
            unit_rows=UNIT_ROWS, progress=False, **OPTIONS[way],
        )  # fmt: skip
    return receipts[-1]


def _noting(receipts: list[float], tell: Callable[..., None]) -> Callable[..., None]:
    """What tells the progress of a receipt, from here or another process, and notes when."""

    def told(*args: Any, **values: Any) -> None:
        receipts.append(time.monotonic())
        tell(*args, **values)

    return told


if __name__ == "__main__":
    main()

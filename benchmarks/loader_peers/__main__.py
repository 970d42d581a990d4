"""One system, one measure, one process; bench_loader.py starts it and says when to go on.

    python -m loader_peers '{"system": "raw", "measure": "rate", …}'

Each answer is a line of JSON; a line on standard input asks for the next.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from loader_peers import SYSTEMS
from loader_peers.contents import LENGTH, Batch, Given, System, Way
from loader_peers.same import Check

# Batches at the start of a turn that may have been made before it, and are not counted: what two
# PyTorch workers hold ready at the least, and what Grain reads ahead if that is soon delivered.
AHEAD, FAR_AHEAD, AHEAD_S = 6, 64, 0.25
Answers = Iterator[dict[str, Any]]


def main() -> None:
    job = json.loads(sys.argv[1])
    # Libraries print what they please to standard output; answers have it to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Memory maps of files cannot be written to, and nobody here does.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    torch.set_num_threads(1)
    entry = SYSTEMS[job["system"]]
    system = importlib.import_module(f"loader_peers.{entry.module}").System(**entry.options)
    for answer in MEASURES[job["measure"]](system, Path(job["folder"]), job):
        print(json.dumps(answer), file=answers, flush=True)
        if not sys.stdin.readline():
            break


def write(system: System, folder: Path, job: dict[str, Any]) -> Answers:
    """Write the records, and elsewhere a few of them."""
    for where, records in ((folder, job["records"]), (Path(job["few"]), job["few_records"])):
        where.mkdir()
        system.write(Given.open(Path(job["given"]), records), where)
    yield {}


def check(system: System, folder: Path, job: dict[str, Any]) -> Answers:
    """Hold every way of delivery to what was given."""
    found = Check(Given.open(Path(job["given"]), job["records"]), job["scale"])
    ways = [Way(s, w) for s in (True, False) for w in (0, 2)]
    for way in ways[: 2 if job["threads"] else 4]:
        # All contents once, and of the other ways a share.
        found.epoch(system.batches(folder, way), way, every=1 if way == ways[0] else 8)
    look = system.lookup(folder)
    if look is not None:
        for number in np.random.default_rng(0).integers(job["records"], size=16).tolist():
            found.record(look(number), number)
    yield {"code_error": found.code_error}


def rate(system: System, folder: Path, job: dict[str, Any]) -> Answers:
    """Positions a second in the middle of epochs, a turn at a time."""
    start = resident_from_now_on()
    batches = endless(system.batches(folder, Way(**job["way"], endless=True)))
    next(batches)
    yield {}
    while True:
        advance(islice(batches, AHEAD), math.inf)
        advance(islice(batches, FAR_AHEAD - AHEAD), AHEAD_S)
        began, cpu = time.perf_counter(), cpu_seconds()
        positions = advance(batches, job["seconds"])
        wall = time.perf_counter() - began
        yield {
            "positions_per_s": positions / wall,
            "cpu_s_per_million": 1e6 * (cpu_seconds() - cpu) / positions,
            "peak_bytes": max_resident() - start,
        }


def lookups(system: System, folder: Path, job: dict[str, Any]) -> Answers:
    """Single random records a second."""
    look = system.lookup(folder)
    assert look is not None
    random = np.random.default_rng(0)
    look(0)
    yield {}
    while True:
        began, done = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < job["seconds"]:
            look(int(random.integers(job["records"])))
            done += 1
        yield {"lookups_per_s": done / taken}


def cold(system: System, folder: Path, job: dict[str, Any]) -> Answers:
    """An epoch from its opening on, the files not in memory; it ends early if it takes long."""
    # What is loaded or compiled at the first use of a library is not what is asked for.
    for _ in system.batches(Path(job["few"]), Way(**job["way"])):
        pass
    yield {}
    read = psutil.Process().io_counters().read_bytes
    began = time.perf_counter()
    positions = advance(iter(system.batches(folder, Way(**job["way"]))), 3 * job["seconds"])
    yield {
        "positions_per_s": positions / (time.perf_counter() - began),
        "read_bytes_per_position": (psutil.Process().io_counters().read_bytes - read) / positions,
    }


MEASURES: dict[str, Callable[[System, Path, dict[str, Any]], Answers]] = {
    "write": write,
    "check": check,
    "rate": rate,
    "lookups": lookups,
    "cold": cold,
}


def endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def advance(batches: Iterator[Batch], seconds: float) -> int:
    """Positions delivered until the time is over, or all of them."""
    began, positions = time.perf_counter(), 0
    for batch in batches:
        positions += len(batch.numbers) * LENGTH
        if time.perf_counter() - began >= seconds:
            break
    return positions


def cpu_seconds() -> float:
    """Of this process, those it waited for, and its workers."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def resident_from_now_on() -> int:
    """Bytes in memory; the peak begins here, after the imports."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def max_resident() -> int:
    """The peak, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()

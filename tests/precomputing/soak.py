"""Kill a labelling job at random moments and steps; the set must come out as if nobody had.

    python tests/precomputing/soak.py --kills 200

Each job runs in a process of its own that is killed with SIGKILL: either some random time after it
began, or before or after one of its calls that change the file system. What it left is checked, and
the same job is started again, to be killed again or to finish. A finished set must be the
uninterrupted one, to the byte and record by record. Exits with 0 when all was well.

Killed jobs are new interpreters, or with --fork copies of this process, which start at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets  # noqa: F401  # what a job imports late is here before the first fork
import numba  # noqa: F401
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
from same_set import contents
from tables import CLASSES, TableTeacher

import softlabels as sl
from softlabels.verifying.verify import verify

ROWS, UNIT_ROWS, PROBES = 48, 4, 7
STEPS = ("link", "rename", "mkdir", "unlink", "rmdir", "fsync", "open")
READY = b"."


def rows() -> Iterator[dict[str, Any]]:
    """Samples of one to three windows."""
    for index in range(ROWS):
        ids = np.random.default_rng(index).integers(0, CLASSES, 1 + 5 * index % 17)
        yield {"id": f"s{index}", "ids": ids.tolist()}


def slow(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A teacher's work takes a while, so that moments fall into it too."""
    time.sleep(0.002)
    return logits


def job(out: Path) -> None:
    sl.precompute(
        list(rows()), TableTeacher(wrong=slow), out, selection=sl.TopK(3), column="ids", key="id",
        max_length=6, unit_rows=UNIT_ROWS, batch_tokens=24, probes=PROBES, codec="plain",
        progress=False,
    )  # fmt: skip


def instrument(fatal: int, *, after: bool) -> Counter[str]:
    """Count the calls that change the file system, and die at one of them.

    Args:
        fatal: which, from 1; 0 is none.
        after: die when it has returned, not before it begins.
    """
    calls: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            mine = calls.total() == fatal
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in STEPS:
        setattr(os, name, counted(name, getattr(os, name)))
    return calls


@dataclass(frozen=True)
class Kill:
    """When a job dies: some seconds after it began, or at a step; neither is never."""

    seconds: float | None = None
    step: int = 0
    after: bool = False

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds * 1000:.0f} ms after it began"
        return f"{'after' if self.after else 'before'} step {self.step}"


def in_a_fork(work: Callable[[], object]) -> int:
    """Process id of a copy of this process that does some work and exits with 0."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def status_of(child: int) -> int:
    """0, a positive exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(out: Path, kill: Kill, *, fork: bool) -> bool:
    """Run a job and kill it; whether it died of that, or had finished before.

    Raises:
        RuntimeError: it ended in another way.
    """
    ours, theirs = os.pipe()

    def work() -> None:
        instrument(kill.step, after=kill.after)
        os.write(theirs, READY)
        job(out)

    if fork:
        child = in_a_fork(work)
    else:
        command = [sys.executable, __file__, "--job", str(out), "--ready", str(theirs)]
        command += ["--step", str(kill.step), *(["--after"] if kill.after else [])]
        child = subprocess.Popen(command, pass_fds=[theirs]).pid
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    if kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, signal.SIGKILL)
    status = status_of(child)
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a job that should die {kill} ended with {status}")
    return status != 0


Record = tuple[Any, ...]


def records(labels: sl.LabelSet) -> list[Record]:
    """Every record as plain values, in the set's order."""
    whole = slice(None)
    values = [(y.ids, y.log_probs, y.logsumexp, y.log_tails) for y in labels[whole]]
    identities = labels.identities.to_pylist()
    return [
        (row["key"], row["part"], *(None if x is None else x.tolist() for x in fields))
        for row, fields in zip(identities, values, strict=True)
    ]


def check(out: Path, whole: Path) -> None:
    """What a killed job left is a part of the whole set, or nothing yet."""
    left = {name: data for name, data in contents(out).items() if not name.startswith(".tmp/")}
    if "plan.json" not in left:
        assert not left, f"files without a plan: {sorted(left)}"
        return
    expected = contents(whole)
    for name, data in left.items():
        if not name.startswith("receipts/"):
            assert data == expected[name], f"{name} is not that of the uninterrupted run"
    report = verify(out)
    assert not report.findings, report.findings
    labels = sl.LabelSet.open(out, unfinished=True)
    here, there = records(labels), records(sl.LabelSet.open(whole))
    assert here == there[: len(here)], "its records are not the first ones of the set"
    shards = sorted(name for name in left if name.startswith("data/"))
    assert shards == sorted(n for n in expected if n.startswith("data/"))[: len(shards)]
    assert len(shards) - len(labels.receipts) in (0, 1), "more than one receipt is missing"


def check_finished(out: Path, whole: Path) -> None:
    """It is the uninterrupted set: every record once, the same bytes, nothing left over."""
    labels, expected = sl.LabelSet.open(out), sl.LabelSet.open(whole)
    found = records(labels)
    assert found == records(expected)
    assert len({record[:2] for record in found}) == len(found)
    assert labels.totals.source_rows == ROWS
    assert labels.totals.probes == PROBES
    assert contents(out) == contents(whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def measured(out: Path) -> tuple[float, int]:
    """Seconds and steps of a job that nobody kills."""
    ours, theirs = os.pipe()

    def work() -> None:
        calls, began = instrument(0, after=False), time.perf_counter()
        job(out)
        os.write(theirs, f"{time.perf_counter() - began} {calls.total()}".encode())

    expect_well(work)
    os.close(theirs)
    with open(ours) as pipe:
        seconds, steps = pipe.read().split()
    return float(seconds), int(steps)


def expect_well(work: Callable[[], object]) -> None:
    if (status := status_of(in_a_fork(work))) != 0:
        raise RuntimeError(f"it ended with {status}; its error is above")


def kills(chance: random.Random, seconds: float, steps: int) -> Iterator[Kill]:
    """Random ones without end, by time and by step in turn."""
    for by_step in itertools.cycle([False, True]):
        if by_step:
            yield Kill(step=chance.randint(1, steps), after=chance.random() < 0.5)
        else:
            yield Kill(seconds=chance.uniform(0, seconds))


def soak(folder: Path, *, count: int, seed: int, fork: bool) -> Iterable[str]:
    """Kill jobs `count` times; yields a line for every ten.

    Raises:
        RuntimeError: a set is not what it should be; its folder is kept.
    """
    whole = folder / "whole"
    seconds, steps = measured(whole)
    yield f"an uninterrupted job takes {seconds:.2f} s and {steps} steps; seed {seed}"
    chance = random.Random(seed)
    planned = kills(chance, seconds, steps)
    hits = sets = escaped = 0
    while hits < count:
        sets += 1
        out, story = folder / f"set-{sets}", []
        try:
            while hits < count:
                kill = next(planned)
                story.append(str(kill))
                if not killed(out, kill, fork=fork):
                    escaped += 1
                    break
                hits += 1
                expect_well(lambda out=out: check(out, whole))  # type: ignore[misc]
                if hits % 10 == 0:
                    yield f"{hits} kills, {sets} sets, {escaped} jobs ended before their kill"
                if chance.random() < 0.5:
                    break
            expect_well(lambda out=out: job(out))  # type: ignore[misc]
            expect_well(lambda out=out: check_finished(out, whole))  # type: ignore[misc]
        except RuntimeError as error:
            raise RuntimeError(f"{out}, killed {', then '.join(story)}: {error}") from error
    yield f"well: {hits} kills, {sets} sets, each equal to the uninterrupted one"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="a random one by default")
    parser.add_argument("--fork", action="store_true", help="kill copies of this process")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ready", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--after", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job is not None:
        instrument(given.step, after=given.after)
        os.write(given.ready, READY)
        job(given.job)
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="softlabels-soak-"))
    try:
        for line in soak(folder, count=given.kills, seed=seed, fork=given.fork):
            print(line, flush=True)
    except RuntimeError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

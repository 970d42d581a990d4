"""What the benchmarks share: interleaved medians, peak memory, the machine, a Markdown table."""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch


def interleaved_medians(
    contestants: dict[str, Callable[[], Any]],
    *,
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each; all are run in turn, so that a busy machine slows them alike.

    Args:
        clock: `time.process_time` for CPU seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(runs + 1):
        for name, run in contestants.items():
            began = clock()
            run()
            if turn:  # the first is to warm up
                seconds[name].append(clock() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def peak_extra_bytes(run: Callable[[], Any]) -> int:
    """How far resident memory rises above its level at the start, sampled every millisecond."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    start = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak


def machine() -> str:
    """Where the numbers come from, in a line."""
    return (
        f"{platform.platform()}, {platform.machine()}, {psutil.cpu_count()} CPUs; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, text to the left and numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""What the benchmarks share: interleaved runs, peak memory, the machine, a Markdown table."""

from __future__ import annotations

import ctypes
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch


@dataclass(frozen=True)
class Taken:
    """Seconds of one contestant's runs, in the order of the turns."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """Median, of all threads together."""
        return statistics.median(self.cpus)

    def over(self, other: Taken) -> float:
        """Median of the ratios to what another took in the same turn, in wall time."""
        return statistics.median(a / b for a, b in zip(self.walls, other.walls, strict=True))

    def cpu_over(self, other: Taken) -> float:
        """As `over`, in CPU seconds."""
        return statistics.median(a / b for a, b in zip(self.cpus, other.cpus, strict=True))


def interleaved(
    contestants: dict[str, Callable[[], Any]], *, runs: int, warm: bool = True
) -> dict[str, Taken]:
    """All are run in turn, so that a busy machine slows them alike, after a turn that warms up."""
    if warm:
        for run in contestants.values():
            run()
    taken = {name: Taken() for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            began, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].walls.append(time.perf_counter() - began)
            taken[name].cpus.append(time.process_time() - cpu)
    return taken


def peak_extra_bytes(run: Callable[[], Any], *, device: str | torch.device = "cpu") -> int:
    """How far memory rises above its level at the start.

    On a CUDA device what is allocated. Elsewhere what is resident, sampled every millisecond,
    nothing kept from earlier runs that could be used again unseen.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - allocated
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
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

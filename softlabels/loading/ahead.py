"""Batches made ahead of their consumer, by threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from softlabels.parallel import each_with

A = TypeVar("A")
B = TypeVar("B")


def made_ahead(
    work: Iterator[A], make: Callable[[A], B], *, threads: int, ahead: int
) -> Iterator[tuple[A, B]]:
    """Each item of `work` and what `make` gives for it, in order.

    Threads, because unpacking and NumPy release the interpreter lock: PyTorch's worker processes
    copy every tensor through shared memory, at a tenth of the speed (benchmarks/bench_loader.py).

    Args:
        work: consumed by the caller's thread.
        make: called by several threads; what it raises is raised at its item's turn.
        threads: 0 makes each item when it is asked for.
        ahead: items that are made before they are asked for.
    """
    if not threads:
        yield from ((item, make(item)) for item in work)
        return
    pool = ThreadPoolExecutor(threads, "softlabels-loader")
    try:
        yield from each_with(make, work, pool, ahead=ahead)
    finally:
        # An epoch left early does not wait for what nobody will use.
        pool.shutdown(wait=False, cancel_futures=True)

"""Units done side by side by threads, their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from softlabels.errors import InputError

A = TypeVar("A")
B = TypeVar("B")

# Each holds a unit in memory.
_MOST_WORKERS = 8


def worker_count(workers: int | None) -> int:
    """How many threads: as many as asked for, else one for each core, at most eight.

    Raises:
        InputError: not a whole number from 1 on.
    """
    if workers is None:
        return min(_MOST_WORKERS, os.cpu_count() or 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InputError(f"workers is {workers!r}; it must be a whole number, at least 1")
    return workers


def in_order(function: Callable[[A], B], items: Iterable[A], *, workers: int) -> Iterator[B]:
    """`function` of each item, in order; at most twice as many are under way as there are threads.

    Threads, because hashing, packing and NumPy release the interpreter lock. What `function` raises
    is raised at its item's turn, after what is running has ended: nothing goes on unseen.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, "softlabels-units")
    try:
        for _, made in each_with(function, items, pool, ahead=2 * workers - 1):
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def each_with(
    function: Callable[[A], B], items: Iterable[A], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[tuple[A, B]]:
    """Each item and what `function` gives for it, in order.

    Args:
        items: consumed by the caller's thread.
        function: called by the pool's; what it raises is raised at its item's turn.
        ahead: items that are under way, or made, before they are asked for.
    """
    waiting: deque[tuple[A, Future[B]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > ahead:
            first, made = waiting.popleft()
            yield first, made.result()
    while waiting:
        first, made = waiting.popleft()
        yield first, made.result()

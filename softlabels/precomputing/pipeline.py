"""Stages that overlap: one thread works ahead of its consumer, another behind its producer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """An iterator whose next item is made in a thread while the one before is used.

    Args:
        items: never used by two threads at once.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, "softlabels-ahead")
        self._next = self._pool.submit(self._make)

    def _make(self) -> tuple[T, ...]:
        return tuple(islice(self._items, 1))

    def __iter__(self) -> Iterator[T]:
        while found := self._next.result():
            self._next = self._pool.submit(self._make)
            yield found[0]

    def check(self) -> None:
        """Raise what the thread raised, if it did, before its item is asked for."""
        _raise_if_failed(self._next)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class Behind(Generic[T]):
    """Work that a thread does on items in their order while the next ones are made.

    When the block ends, by an error elsewhere too, what was put is still done: it is complete.

    Args:
        work: called with each item.
    """

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, "softlabels-behind")
        self._waiting: deque[Future[None]] = deque()

    def put(self, item: T) -> None:
        """Hand an item over; waits until the one before is done, so that one is held at most.

        Raises:
            Exception: what `work` raised for an earlier item.
        """
        self._drain()
        self._waiting.append(self._pool.submit(self._work, item))

    def check(self) -> None:
        """Raise what `work` raised, if it did."""
        for done in self._waiting:
            _raise_if_failed(done)

    def _drain(self) -> None:
        while self._waiting:
            self._waiting[0].result()
            self._waiting.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._drain()
        finally:
            self._pool.shutdown()


def _raise_if_failed(future: Future[T]) -> None:
    if future.done() and not future.cancelled() and (error := future.exception()) is not None:
        raise error

"""What a loader delivers, batch by batch: records of a set in an order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from softlabels.labelset.reader import LabelSet
from softlabels.loading.assemble import Assembler, Beside
from softlabels.loading.batches import Arrangement, Batch, Place, arranged, regroup
from softlabels.loading.choice import Choice
from softlabels.loading.join import Join, JoinReport
from softlabels.loading.lengths import Lengths
from softlabels.loading.order import Order

Int64s = NDArray[np.int64]
B = TypeVar("B")


class Feed(Protocol[B]):
    """The batches of every epoch, and how one is made.

    Attributes:
        labels: the set that leads.
        name: two feeds of one name deliver the same; saved places depend on it.
        report: what the join to the data found, if there is data and it is known.
    """

    @property
    def labels(self) -> LabelSet: ...

    @property
    def report(self) -> JoinReport | None: ...

    @property
    def name(self) -> str: ...

    def batches(self, epoch: int, place: Place, *, full: bool) -> Iterator[tuple[B, Place]]:
        """The batches of an epoch from a place on, each with the place after it.

        Args:
            full: leave out those with fewer rows than the others.
        """
        ...

    def make(self, batch: B, *, epoch: int, verify: bool) -> dict[str, Any]:
        """A batch's tensors; called by several threads."""
        ...

    def filler(self, batch: B, *, epoch: int) -> dict[str, Any]:
        """A batch that no loss and no gradient come from, shaped like this one."""
        ...

    def count(self, epoch: int, *, full: bool) -> int:
        """Batches in an epoch; raises TypeError where that is not known before."""
        ...

    def items(self) -> int | None:
        """Items in an epoch; None where that is not known before."""
        ...


class OrderedFeed:
    """Records in an order that the feed itself makes.

    Args:
        assembler: makes the batches.
        join: fetches the records' rows; None where the set carries its inputs.
        choice: which records.
        order: of the choice's items.
        arrangement: of the order's items in batches.
        lengths: of the set's records; None where the arrangement does not ask.
    """

    def __init__(
        self,
        assembler: Assembler,
        join: Join | None,
        *,
        choice: Choice,
        order: Order,
        arrangement: Arrangement,
        lengths: Lengths | None,
    ) -> None:
        self._assembler, self._join, self._choice = assembler, join, choice
        self._order, self._arrangement, self._lengths = order, arrangement, lengths

    @property
    def name(self) -> str:
        order = self._order
        state = hashlib.sha256(f"{order.seed} {order.mixed} {self._arrangement.name}".encode())
        state.update("".join(self.labels.receipts.texts("sha256")).encode())
        state.update(self._assembler.teachers.name.encode())
        state.update(order.bounds.tobytes())
        state.update(self._choice.name)
        if self._lengths is not None:
            state.update(self._lengths.tokens.tobytes())
        return state.hexdigest()[:16]

    @property
    def labels(self) -> LabelSet:
        return self._assembler.teachers.leader

    @property
    def report(self) -> JoinReport | None:
        return None if self._join is None else self._join.report

    def batches(self, epoch: int, place: Place, *, full: bool) -> Iterator[tuple[Batch, Place]]:
        size = self._arrangement.batch_size
        chunks = self._chunks(epoch, place.seen)
        for chunk, batch, after in arranged(chunks, self._arrangement, epoch, place):
            if not full or len(batch) == size:
                yield replace(batch, items=chunk[batch.items]), after

    def _chunks(self, epoch: int, skip: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Records in the epoch's order, and their lengths."""
        for items in regroup(self._windows(epoch, skip), self._arrangement.chunk):
            records = self._choice(items, epoch)
            yield records, records if self._lengths is None else self._lengths(records)

    def _windows(self, epoch: int, skip: int) -> Iterator[Int64s]:
        """The order's windows; of a remote set the next ones are fetched while one is delivered."""
        held: deque[Int64s] = deque()
        for window in self._order.windows(epoch, skip=skip):
            self._assembler.teachers.prefetch(self._choice(window, epoch))
            held.append(window)
            if len(held) > self._order.ahead:
                yield held.popleft()
        yield from held

    def make(self, batch: Batch, *, epoch: int, verify: bool) -> dict[str, Any]:
        numbers, rows = self._fetch(batch.items)
        return self._assembler.make(numbers, batch.rows, rows, epoch=epoch, verify=verify)

    def filler(self, batch: Batch, *, epoch: int) -> dict[str, Any]:
        # A row without labels may have no token either.
        labelled = batch.items[batch.items >= 0][:1]
        some = labelled if len(labelled) else batch.items
        return self._assembler.filler(*self._fetch(some), epoch=epoch)

    def _fetch(self, items: Int64s) -> tuple[Int64s, Beside | None]:
        """Record numbers, and the data's rows."""
        known = items[items >= 0]
        return known, None if self._join is None else self._join.fetch(known, -1 - items[items < 0])

    def count(self, epoch: int, *, full: bool) -> int:
        if self._arrangement.rows_are_items:
            items, size = len(self._order), self._arrangement.batch_size
            return items // size if full else -(-items // size)
        return sum(1 for _ in self.batches(epoch, Place(), full=full))

    def items(self) -> int:
        return len(self._order)

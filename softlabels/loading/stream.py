"""Inputs lead: a stream of rows, each with the records of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.sources import Source
from softlabels.labelset.reader import LabelSet
from softlabels.loading.assemble import Assembler, Beside
from softlabels.loading.batches import Arrangement, Place, arranged
from softlabels.loading.join import JoinReport, OnMissing
from softlabels.loading.rows import Rows, open_for
from softlabels.loading.walk import Walk

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Matched:
    """Rows of a stream and their records, in the stream's order.

    Attributes:
        items: numbers of records; −1 for a row that has none, (N,).
        table: the row of each item.
        rows: its number in the stream, (N,).
    """

    items: Int64s
    table: pa.Table
    rows: Int64s

    def take(self, places: Int64s) -> Matched:
        """Some of the items."""
        return Matched(self.items[places], self.table.take(pa.array(places)), self.rows[places])


@dataclass(frozen=True)
class StreamBatch:
    """Rows of a stream that make a batch, and how they lie in it."""

    matched: Matched
    layout: Int64s | None

    def __len__(self) -> int:
        return len(self.matched.items) if self.layout is None else len(self.layout) - 1


class StreamedFeed:
    """Rows in the order they come, their labels found by key.

    Labels of rows that come in the set's own order are found by walking along it, others through
    the set's index of keys.

    Args:
        labels: the set.
        data: an iterable of rows, opened again for every epoch; its `set_epoch` is called.
        rows: how its rows are held to the set.
        source: the data, opened for the first time.
        assembler: makes the batches.
        arrangement: of the stream's records in batches.
        lengths: tokens of every record of the set; None where the arrangement does not ask.
        on_missing: what happens to rows without labels.

    Attributes:
        report: what was found in the epoch that was last delivered to its end; None before.
    """

    def __init__(
        self,
        labels: LabelSet,
        data: Any,
        source: Source,
        *,
        rows: Rows,
        assembler: Assembler,
        arrangement: Arrangement,
        lengths: Int64s | None,
        on_missing: OnMissing,
    ) -> None:
        self._labels, self._data = labels, data
        self._opened: Source | None = source
        self._rows, self._assembler, self._arrangement = rows, assembler, arrangement
        self._lengths, self._on_missing = lengths, on_missing
        self.report: JoinReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def name(self) -> str:
        state = hashlib.sha256(f"stream {self._on_missing} {self._arrangement.name}".encode())
        for receipt in self._labels.receipts:
            state.update(receipt.sha256.encode())
        state.update(self._assembler.teachers.name.encode())
        return state.hexdigest()[:16]

    def batches(
        self, epoch: int, place: Place, *, full: bool
    ) -> Iterator[tuple[StreamBatch, Place]]:
        size = self._arrangement.batch_size
        chunks = self._chunks(epoch, skip=place.seen)
        for chunk, batch, after in arranged(chunks, self._arrangement, epoch, place):
            made = StreamBatch(chunk.take(batch.items), batch.rows)
            if not full or len(made) == size:
                yield made, after

    def make(self, batch: StreamBatch, *, epoch: int, verify: bool) -> dict[str, Any]:
        numbers, rows = self._beside(batch.matched)
        return self._assembler.make(numbers, batch.layout, rows, epoch=epoch, verify=verify)

    def filler(self, batch: StreamBatch, *, epoch: int) -> dict[str, Any]:
        return self._assembler.filler(*self._beside(batch.matched.take(np.arange(1))), epoch=epoch)

    def count(self, epoch: int, *, full: bool) -> int:
        raise TypeError(
            "the data is a stream: how many batches it gives is known when it has ended"
        )

    def items(self) -> None:
        return None

    def _beside(self, matched: Matched) -> tuple[Int64s, Beside]:
        known, alone = np.flatnonzero(matched.items >= 0), np.flatnonzero(matched.items < 0)
        labelled, lone = matched.take(known), matched.take(alone)
        keys = self._keys(lone.table, lone.rows)
        return labelled.items, Beside(labelled.table, labelled.rows, lone.table, keys)

    def _keys(self, table: pa.Table, rows: Int64s) -> pa.Array:
        key = self._labels.plan.data.key
        if key is None:
            return pa.array(rows)
        kind = pa.string() if self._labels.plan.data.key_type == "string" else pa.int64()
        return table.column(key).combine_chunks().cast(kind)

    def _chunks(self, epoch: int, skip: int) -> Iterator[tuple[Matched, Int64s]]:
        """Items from place `skip` on, and their lengths."""
        held: list[Matched] = []
        size, count = self._arrangement.chunk, 0
        for matched in self._walk(epoch):
            if skip:
                gone = min(skip, len(matched.items))
                skip -= gone
                matched = matched.take(np.arange(gone, len(matched.items)))
            held.append(matched)
            count += len(matched.items)
            if count >= size:
                whole = _joined(held)
                for start in range(0, count - size + 1, size):
                    yield self._with_lengths(whole.take(np.arange(start, start + size)))
                held = [whole.take(np.arange(count - count % size, count))]
                count %= size
        if count:
            yield self._with_lengths(_joined(held))

    def _with_lengths(self, matched: Matched) -> tuple[Matched, Int64s]:
        return matched, matched.items if self._lengths is None else self._lengths[matched.items]

    def _walk(self, epoch: int) -> Iterator[Matched]:
        """The stream's rows and their records, a table at a time."""
        walk = Walk(self._labels)
        source, first, missing, rejected = self._open(epoch), 0, 0, 0
        first_missing: str | int | None = None
        for table in source.tables(self._rows.needed):
            rows = np.arange(first, first + len(table))
            keys = source.keys(table, first)
            places, records = walk.match(keys)
            lone = np.setdiff1d(np.arange(len(table)), places)
            for place in lone.tolist():
                key = keys[place].as_py()
                if key in self._labels.rejected:
                    rejected += 1
                    continue
                self._refuse_missing(key, first + place)
                first_missing = key if not missing else first_missing
                missing += 1
            if self._on_missing == "hard-label":
                places = np.concatenate([places, lone])
                records = np.concatenate([records, np.full(len(lone), -1)])
                order = np.argsort(places, kind="stable")
                places, records = places[order], records[order]
            yield Matched(records, table.take(pa.array(places)), rows[places])
            first += len(table)
        lost = walk.unseen()
        extra = self._labels.identity(lost[:1])["key"][0].as_py() if len(lost) else None
        self.report = JoinReport(walk.count, missing, first_missing, len(lost), extra, rejected)
        self.report.log()

    def _refuse_missing(self, key: str | int | None, row: int) -> None:
        if self._on_missing == "error":
            raise JoinError(
                f"key {quoted(key)} (row {row} of the stream) has no labels; join the data that "
                "was labelled, or choose on_missing='skip' to leave such rows out, 'hard-label' "
                "to train them on their hard labels alone"
            )

    def _open(self, epoch: int) -> Source:
        """The stream from its beginning."""
        if hasattr(self._data, "set_epoch"):
            self._data.set_epoch(epoch)
            self._opened = None  # it was opened for another epoch, perhaps
        opened, self._opened = self._opened, None
        if opened is None and isinstance(self._data, Iterator):
            raise InputError(
                "the data can be iterated over once only; for another epoch pass something that "
                "begins again, such as a datasets.IterableDataset"
            )
        return open_for(self._labels, self._data) if opened is None else opened


def _joined(parts: list[Matched]) -> Matched:
    return Matched(
        np.concatenate([part.items for part in parts]),
        pa.concat_tables([part.table for part in parts], promote_options="permissive"),
        np.concatenate([part.rows for part in parts]),
    )

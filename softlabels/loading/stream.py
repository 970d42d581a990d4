"""Inputs lead: a stream of rows, each with the records of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.sources import Source
from softlabels.labelset.reader import LabelSet
from softlabels.loading.assemble import Assembler, Beside
from softlabels.loading.batches import Arrangement, Place, arranged
from softlabels.loading.join import JoinReport, OnMissing
from softlabels.loading.lengths import Lengths
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
        lengths: of the set's records; None where the arrangement does not ask.
        on_missing: what happens to rows without labels.

    Attributes:
        labels: the set.
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
        lengths: Lengths | None,
        on_missing: OnMissing,
    ) -> None:
        self.labels, self._data = labels, data
        self._opened: Source | None = source
        self._rows, self._assembler, self._arrangement = rows, assembler, arrangement
        self._lengths, self._on_missing = lengths, on_missing
        self.report: JoinReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def name(self) -> str:
        state = hashlib.sha256(f"stream {self._on_missing} {self._arrangement.name}".encode())
        state.update("".join(self.labels.receipts.texts("sha256")).encode())
        state.update(self._assembler.teachers.name.encode())
        if self._lengths is not None:
            state.update(self._lengths.tokens.tobytes())
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
        # A row without labels may have no token either.
        labelled = np.flatnonzero(batch.matched.items >= 0)[:1]
        some = batch.matched.take(labelled) if len(labelled) else batch.matched
        return self._assembler.filler(*self._beside(some), epoch=epoch)

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
        key = self.labels.plan.data.key
        if key is None:
            return pa.array(rows)
        kind = pa.string() if self.labels.plan.data.key_type == "string" else pa.int64()
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
        return matched, matched.items if self._lengths is None else self._lengths(matched.items)

    def _walk(self, epoch: int) -> Iterator[Matched]:
        """The stream's rows and their records, a table at a time."""
        walk, source = Walk(self.labels), self._open(epoch)
        first, missing, rejects = 0, 0, 0
        first_missing: str | int | None = None
        for table in source.tables(self._rows.needed):
            rows = np.arange(first, first + len(table))
            keys = source.keys(table, first)
            places, records = walk.match(keys)
            lone = np.setdiff1d(np.arange(len(table)), places)
            known = [keys[place].as_py() in self.labels.rejected for place in lone.tolist()]
            rejected = np.asarray(known, bool)
            if len(unknown := lone[~rejected]):
                key = keys[int(unknown[0])].as_py()
                self._refuse_missing(key, int(rows[unknown[0]]))
                first_missing = first_missing if missing else key
            missing, rejects = missing + len(unknown), rejects + int(rejected.sum())
            if self._on_missing == "hard-label":
                lone = self._trained(table, lone, rejected)
                places = np.concatenate([places, lone])
                records = np.concatenate([records, np.full(len(lone), -1)])
                order = np.argsort(places, kind="stable")
                places, records = places[order], records[order]
            yield Matched(records, table.take(pa.array(places)), rows[places])
            first += len(table)
        lost = walk.unseen()
        extra = self.labels.identity(lost[:1])["key"][0].as_py() if len(lost) else None
        self.report = JoinReport(walk.count, missing, first_missing, len(lost), extra, rejects)
        self.report.log()

    def _trained(self, table: pa.Table, lone: Int64s, rejected: NDArray[np.bool_]) -> Int64s:
        """Places of the rows without labels that come: not those rejected for lack of a token."""
        rejects = lone[rejected]
        usable = rejects[self._rows.with_tokens(table.take(pa.array(rejects)))]
        return np.union1d(lone[~rejected], usable)

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
        if (worker := get_worker_info()) is not None:
            self._check_worker(worker.num_workers)
            self._opened = None  # forked workers share its open files, and where they stand
        opened, self._opened = self._opened, None
        if opened is None and isinstance(self._data, Iterator):
            raise InputError(
                "the data can be iterated over once only; for another epoch pass something that "
                "begins again, such as a datasets.IterableDataset"
            )
        source = open_for(self.labels, self._data) if opened is None else opened
        assert source.stream is not None
        return replace(source, stream=self._rows.of_first_columns(source.stream))

    def _check_worker(self, workers: int) -> None:
        """Refuse what does not give every worker process all rows from the first one on."""
        # Of datasets' streams, IterableDatasets too, whole tables are asked for: nothing is shared.
        shared = isinstance(self._data, IterableDataset) and not hasattr(self._data, "with_format")
        if isinstance(self._data, Iterator) or (shared and workers > 1):
            raise InputError(
                f"the data is a stream ({type(self._data).__name__}) that every worker process "
                "reads for itself, but may give each a share of its rows, or go on where another "
                "one was; set num_workers=0: the loader's threads prepare batches, "
                "sl.loader(…, threads=…)"
            )


def _joined(parts: list[Matched]) -> Matched:
    rows = np.concatenate([part.rows for part in parts])
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"rows {rows[0]} to {rows[-1]} of the stream differ in type: {quoted(error)[1:-1]}; "
            "make them alike, or leave the column out: sl.loader(…, columns=[…])"
        ) from None
    return Matched(np.concatenate([part.items for part in parts]), table, rows)

"""Labels lead: their rows are found by key in data with random access."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.sources import KEY_BATCH_ROWS, Source, chunks
from softlabels.inputs.views import Views
from softlabels.labelset.reader import LabelSet
from softlabels.loading.assemble import Beside
from softlabels.loading.rows import Rows, open_for

Int64s = NDArray[np.int64]
OnMissing = Literal["error", "skip", "hard-label"]
ON_MISSING = ("error", "skip", "hard-label")

logger = logging.getLogger("softlabels")


@dataclass(frozen=True)
class JoinReport:
    """What a join found.

    Attributes:
        records: records that have their row.
        missing: rows of the data that have no labels, left out or trained on their hard labels.
        first_missing: the key of the first of them.
        rejected: more of these, which labelling rejected, as the set says.
        extra: records whose key the data does not have; they are left out.
        first_extra: the key of the first of them.
    """

    records: int
    missing: int = 0
    first_missing: str | int | None = None
    extra: int = 0
    first_extra: str | int | None = None
    rejected: int = 0

    def log(self) -> None:
        """Say what was left out, if anything."""
        if self.missing:
            logger.warning(
                "%d rows of the data have no labels, the first has key %s",
                self.missing,
                quoted(self.first_missing),
            )
        if self.extra:
            logger.warning(
                "%d records have labels but no row in the data and are left out, the first has "
                "key %s",
                self.extra,
                quoted(self.first_extra),
            )


class Join:
    """Rows of a dataset that labels belong to.

    Args:
        labels: the set.
        data: anything with random access that `softlabels.precompute` takes.
        source: the same, opened.
        records: the record numbers that are wanted, ascending; None for all.
        chosen: the user named them, so that each must have its row.
        columns, tokenizer, views: as for `Rows`.
        on_missing: what happens to rows without labels.

    Attributes:
        records: those that have a row, ascending; None for all of the set.
        unlabelled: the rows that are to be trained on their hard labels alone, (N,); none that
            labelling rejected for lack of a token.
        report: what was found.

    Raises:
        JoinError: a wanted record has no row, or a row no labels.
        InputError: the data has no such columns, or no random access.
        DuplicateKeyError: a key stands in two rows.
    """

    def __init__(
        self,
        labels: LabelSet,
        data: Any,
        source: Source,
        *,
        records: Int64s | None,
        chosen: bool,
        columns: Sequence[str] | None,
        tokenizer: Any,
        views: Views | None,
        on_missing: OnMissing,
    ) -> None:
        self._labels, self._data = labels, data
        self._use(source)
        self._source.check_unique_keys()
        self.rows = Rows(labels, self._source, columns=columns, tokenizer=tokenizer, views=views)
        self._row_of, without = self._find_rows()
        rejected = self._rejected(without)
        unknown, rejects = without[~rejected], without[rejected]
        self.records, self.report = self._joined(records, unknown, chosen=chosen)
        self.report = replace(self.report, rejected=len(rejects))
        if len(unknown) and on_missing == "error":
            raise self._missing(unknown)
        self.unlabelled = without[:0]
        if on_missing == "hard-label":
            self.unlabelled = np.union1d(unknown, self._with_tokens(rejects))
        self.report.log()

    def __getstate__(self) -> dict[str, Any]:
        # Open data holds closures; another process opens it again.
        hidden = ("_source", "_read", "_lock")
        return {k: v for k, v in self.__dict__.items() if k not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use(open_for(self._labels, self._data))

    def fetch(self, records: Int64s, unlabelled: Int64s) -> Beside:
        """The data's rows.

        Args:
            records: numbers of records; each has its row.
            unlabelled: places in `self.unlabelled`.
        """
        rows, alone = self._row_of[records], self.unlabelled[unlabelled]
        lone = self.table(alone)
        return Beside(self.table(rows), rows, lone, self.keys(lone, alone))

    def table(self, rows: Int64s) -> pa.Table:
        """Rows by number."""
        # Users' datasets are rarely made for several threads.
        with self._lock:
            return self._read(rows.tolist(), self.rows.needed)

    def keys(self, table: pa.Table, rows: Int64s) -> pa.Array:
        """The keys of rows."""
        if self._labels.plan.data.key is None:
            return pa.array(rows)
        return self._source.keys(table, int(rows[0]) if len(rows) else 0)

    def _use(self, source: Source) -> None:
        if source.read is None or source.rows is None:
            raise InputError("data is a stream; this join needs random access")
        self._source, self._read, self._lock = source, source.read, threading.Lock()

    def _find_rows(self) -> tuple[Int64s, Int64s]:
        """The row of each record of the set, −1 where none has its key; and rows without labels."""
        count = self._source.rows
        assert count is not None
        key = self._labels.plan.data.key
        row_of = np.full(len(self._labels), -1, np.int64)
        without = []
        for chunk in chunks(count, KEY_BATCH_ROWS):
            rows = np.arange(chunk.start, chunk.stop)
            table = None if key is None else self._read(chunk, [key])
            keys = pa.array(rows) if table is None else self._source.keys(table, chunk.start)
            places, records = self._labels.match(keys)
            row_of[records] = rows[places]
            found = np.zeros(len(rows), bool)
            found[places] = True
            without.append(rows[~found])
        return row_of, np.concatenate(without)

    def _rejected(self, rows: Int64s) -> NDArray[np.bool_]:
        """Which rows labelling rejected, bool, (rows,)."""
        known = self._labels.rejected
        if not len(rows) or not known:
            return np.zeros(len(rows), bool)
        return np.asarray([key in known for key in self._keys_of(rows)], bool)

    def _with_tokens(self, rows: Int64s) -> Int64s:
        """Which of these rows have a token to train on."""
        parts = (rows[chunk] for chunk in chunks(len(rows), KEY_BATCH_ROWS))
        found = [part[self.rows.with_tokens(self.table(part))] for part in parts]
        return np.concatenate([rows[:0], *found])

    def _keys_of(self, rows: Int64s) -> list[Any]:
        keys: list[Any] = self.keys(self.table(rows), rows).to_pylist()
        return keys

    def _joined(
        self, wanted: Int64s | None, without: Int64s, *, chosen: bool
    ) -> tuple[Int64s | None, JoinReport]:
        """The wanted records that have a row, and the report."""
        every = np.arange(len(self._labels)) if wanted is None else wanted
        has_row = self._row_of[every] >= 0
        joined, lost = every[has_row], every[~has_row]
        if chosen and len(lost):
            raise JoinError(
                f"key {quoted(self._key_of(lost))} has labels but no row in the data, as "
                f"have {len(lost) - 1} other of the chosen records; join the data that was "
                "labelled, or choose with records= those whose rows are there"
            )
        report = JoinReport(
            len(joined),
            len(without),
            self._key_of_row(without) if len(without) else None,
            len(lost),
            self._key_of(lost) if len(lost) else None,
        )
        everything = len(joined) == len(self._labels)
        return (None if everything else joined), report

    def _missing(self, without: Int64s) -> JoinError:
        return JoinError(
            f"key {quoted(self.report.first_missing)} (row {without[0]}) has no labels, as have "
            f"{len(without) - 1} other of the data's {self._source.rows} rows; join the data that "
            "was labelled, or choose on_missing='skip' to leave such rows out, 'hard-label' to "
            "train them on their hard labels alone"
        )

    def _key_of(self, records: Int64s) -> str | int:
        key: str | int = self._labels.take(records[:1]).identity["key"][0].as_py()
        return key

    def _key_of_row(self, rows: Int64s) -> str | int:
        key: str | int = self._keys_of(rows[:1])[0]
        return key

"""The loader: batches of inputs and soft labels, in an order that resumes exactly."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from softlabels.errors import InputError
from softlabels.labelset.reader import LabelSet
from softlabels.loading.collate import Picked, collate
from softlabels.loading.join import Join
from softlabels.loading.order import Order


class Loader:
    """Iterate over it for one epoch of batches; made by `softlabels.loader`.

    Each `iter()` begins the current epoch; when an epoch ends the next begins, in another order if
    a seed was given. `state_dict` may be taken after any batch.
    """

    def __init__(
        self,
        labels: LabelSet,
        join: Join | None,
        order: Order,
        *,
        batch_size: int,
        drop_last: bool,
        pad_id: int,
    ) -> None:
        self.labels, self._join, self._order = labels, join, order
        self.batch_size, self.drop_last, self._pad_id = batch_size, drop_last, pad_id
        self._epoch, self._seen, self._resume = 0, 0, 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        records, size = len(self._order), self.batch_size
        return records // size if self.drop_last else -(-records // size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._seen, self._resume = self._resume, 0
        batch: list[int] = []
        for number in self._order.numbers(self._epoch, skip=self._seen):
            batch.append(number)
            if len(batch) == self.batch_size:
                self._seen += len(batch)
                yield self._collate(batch)
                batch = []
        if batch and not self.drop_last:
            self._seen += len(batch)
            yield self._collate(batch)
        self.set_epoch(self._epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the next `iter()` delivers it from its start."""
        self._epoch, self._seen, self._resume = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: plain numbers and text, for `load_state_dict` or JSON."""
        return {"version": 1, "epoch": self._epoch, "seen": self._seen, "order": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the batch size may differ.

        Raises:
            InputError: the state is of another label set, seed or choice of records.
        """
        if state.get("version") != 1 or state.get("order") != self._digest():
            raise InputError(
                "this state is of another loader: label set, seed and records must be the same "
                "(the batch size may differ)"
            )
        self.set_epoch(int(state["epoch"]))
        self._seen = self._resume = int(state["seen"])

    def _collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        picked = [Picked(*self.labels.record(number)) for number in numbers]
        table = None if self._join is None else self._join.fetch(numbers, picked)
        stored = [one.token_ids for one in picked if one.token_ids is not None]
        if self._join is not None and not stored:
            stored = self._join.token_ids(table, picked)
        batch = collate(picked, stored, pad_id=self._pad_id)
        return batch if self._join is None else {**self._join.extra(table), **batch}

    def _digest(self) -> str:
        state = hashlib.sha256(f"{self._order.seed}".encode())
        for receipt in self.labels.receipts:
            state.update(receipt.sha256.encode())
        for group in self._order.groups:
            state.update(group.tobytes())
        return state.hexdigest()[:16]


def loader(
    labels: LabelSet,
    data: Any = None,
    *,
    batch_size: int = 8,
    seed: int | None = None,
    records: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    tokenizer: Any = None,
    drop_last: bool = False,
    pad_id: int = 0,
) -> Loader:
    """Batches of inputs and soft labels.

    Args:
        labels: an opened label set.
        data: what was labelled, with random access; joined by key, and every row's digest is
            compared with the one that was labelled. May be left out when the set carries its
            inputs.
        batch_size: records in a batch.
        seed: shuffles each epoch in its own order; None keeps the stored order.
        records: only these record numbers.
        columns: of `data`, to put into batches; all but the key and the labelled ones by default.
        tokenizer: the student's; refused if it is not the teacher's.
        drop_last: leave out a last batch that is not full.
        pad_id: stands after a record's end in input_ids.

    Returns:
        a `Loader` of dicts; see `softlabels.loading.collate.collate` for their fields.

    Raises:
        VocabularyMismatchError: the tokenizer differs from the teacher's.
        JoinError: labels and data do not belong together.
        InputError: no data for a set without inputs; no records.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    if tokenizer is not None:
        labels.check_tokenizer(tokenizer)
    if data is None and not labels.plan.store_inputs:
        raise InputError(
            f"{labels.root} does not carry its inputs (store_inputs=False); pass the data that "
            "was labelled: sl.loader(labels, data)"
        )
    join = None if data is None else Join(labels, data, columns=columns, tokenizer=tokenizer)
    order = Order(_by_group(labels, records), seed)
    if not len(order):
        raise InputError("there are no records to load")
    return Loader(labels, join, order, batch_size=batch_size, drop_last=drop_last, pad_id=pad_id)


def _by_group(labels: LabelSet, records: Sequence[int] | None) -> list[Any]:
    groups = labels.row_groups
    if records is None:
        return [np.arange(group.start, group.start + group.rows) for group in groups]
    chosen = np.unique(np.asarray(records, np.int64))
    if len(chosen) != len(records) or (
        len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(labels)
    ):
        raise InputError(
            f"records must be different numbers from 0 to {len(labels) - 1}, the records of the set"
        )
    bounds = np.searchsorted(chosen, [*(group.start for group in groups), len(labels)])
    parts = [chosen[low:high] for low, high in itertools.pairwise(bounds)]
    return [part for part in parts if len(part)]

"""The loader: batches of inputs and soft labels, in an order that resumes exactly."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from softlabels.errors import InputError
from softlabels.labelset.reader import LabelSet
from softlabels.loading.collate import collate
from softlabels.loading.join import Join
from softlabels.loading.order import MIXED_GROUPS, Order


class Loader(IterableDataset[dict[str, Any]]):
    """Iterate over it for one epoch of batches; made by `softlabels.loader`.

    Each `iter()` begins the current epoch; when an epoch ends the next begins, in another order if
    a seed was given. `state_dict` may be taken after any batch.

    `torch.utils.data.DataLoader(loader, batch_size=None)` gives the same batches in the same
    order, whatever its `num_workers`. Workers hold copies: with them this object's state does not
    move, so call `set_epoch` before each epoch, and save only between epochs.
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
        epoch, seen, self._resume = self._epoch, self._resume, 0
        worker = get_worker_info()
        ours, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        numbers = self._order.numbers(epoch, skip=seen)
        for turn in itertools.count():
            batch = list(itertools.islice(numbers, self.batch_size))
            if not batch or (self.drop_last and len(batch) < self.batch_size):
                break
            seen += len(batch)
            if turn % workers == ours:  # DataLoader takes from its workers in turn
                made = self._collate(batch)
                self._epoch, self._seen = epoch, seen
                yield made
        self.set_epoch(epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the next `iter()` delivers it from its start."""
        self._epoch, self._seen, self._resume = _count(epoch, "epoch"), 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: plain numbers and text, for `load_state_dict` or JSON."""
        return {"version": 1, "epoch": self._epoch, "seen": self._seen, "order": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the batch size may differ.

        Raises:
            InputError: the state is of another label set, seed or choice of records, or none.
        """
        if state.get("version") != 1 or state.get("order") != self._digest:
            raise InputError(
                "this state is of another loader: label set, seed and records must be the same "
                "(the batch size may differ)"
            )
        seen = _count(state.get("seen"), "seen")
        if seen > len(self._order):
            raise InputError(f"this state has seen {seen} of {len(self._order)} records")
        self.set_epoch(_count(state.get("epoch"), "epoch"))
        self._seen = self._resume = seen

    def _collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        records = self.labels.take(numbers)
        if self._join is None:
            return collate(records, pad_id=self._pad_id)
        table = self._join.fetch(numbers, records)
        if not self.labels.plan.store_inputs:
            records = self._join.inputs(table, records)
        return {**self._join.extra(table), **collate(records, pad_id=self._pad_id)}

    @cached_property
    def _digest(self) -> str:
        state = hashlib.sha256(f"{self._order.seed} {self._order.mixed}".encode())
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
        drop_last: leave out a last batch that is not full; shuffled, it is another one in each
            epoch.
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
    if seed is not None:
        seed = _count(seed, "seed")
    if tokenizer is not None:
        labels.check_tokenizer(tokenizer)
    if data is None and not labels.plan.store_inputs:
        raise InputError(
            f"{labels.root} does not carry its inputs (store_inputs=False); pass the data that "
            "was labelled: sl.loader(labels, data)"
        )
    if data is None and columns:
        raise InputError("columns= names columns of the data; pass it: sl.loader(labels, data)")
    chosen = _chosen(labels, records)
    mixed = min(MIXED_GROUPS, labels.groups_in_memory)
    order = Order(_by_group(labels, chosen), seed, mixed)
    if not len(order) or (drop_last and len(order) < batch_size):
        raise InputError(
            f"there are {len(order)} records to load"
            + (f" and drop_last leaves out a batch below {batch_size}" if len(order) else "")
        )
    join = None
    if data is not None:
        join = Join(labels, data, records=chosen, columns=columns, tokenizer=tokenizer)
    return Loader(labels, join, order, batch_size=batch_size, drop_last=drop_last, pad_id=pad_id)


def _chosen(labels: LabelSet, records: Sequence[int] | None) -> NDArray[np.int64]:
    """Record numbers, ascending."""
    if records is None:
        return np.arange(len(labels))
    numbers = np.asarray(records)
    chosen = np.unique(numbers)
    if len(chosen) and not (
        chosen.dtype.kind in "iu"
        and numbers.shape == chosen.shape
        and 0 <= chosen[0] <= chosen[-1] < len(labels)
    ):
        raise InputError(
            f"records must be different numbers from 0 to {len(labels) - 1}, the records of the set"
        )
    return chosen.astype(np.int64)


def _by_group(labels: LabelSet, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    starts = [group.start for group in labels.row_groups]
    bounds = np.searchsorted(chosen, [*starts, len(labels)])
    parts = [chosen[low:high] for low, high in itertools.pairwise(bounds)]
    return [part for part in parts if len(part)]


def _count(value: Any, name: str) -> int:
    """A number from 0 on; NumPy's integers too."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"{name} is {value!r}; it must be an integer from 0 on")
    return int(value)

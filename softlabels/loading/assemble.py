"""One batch: labels read, joined to their rows, checked, cut and collated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted
from softlabels.format.records import Records
from softlabels.format.records import join as join_records
from softlabels.labels import Batched, Labels
from softlabels.loading.collate import collate, collate_arrays, collate_packed
from softlabels.loading.rows import Rows
from softlabels.loading.teachers import Teachers, beside

Int64s = NDArray[np.int64]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """What a batch looks like.

    Attributes:
        pad_id: stands where there is no token.
        max_length: tokens of a record, at most; None for all.
        row_length: tokens in a row of several records; None for a row each.
        device: where the tensors are wanted.
        single: records are arrays with one label each.
    """

    pad_id: int = 0
    max_length: int | None = None
    row_length: int | None = None
    device: torch.device = CPU
    single: bool = False

    def collate(self, records: Records, layout: Int64s | None) -> dict[str, Any]:
        """Records as tensors."""
        if records.arrays is not None:
            return collate_arrays(records, single=self.single)
        if layout is None or self.row_length is None:
            return collate(records, pad_id=self.pad_id)
        return collate_packed(records, layout, length=self.row_length, pad_id=self.pad_id)

    def cut(self, records: Records) -> Records:
        """Records of no more tokens than are wanted."""
        return records if self.max_length is None else records.cut(self.max_length)


@dataclass(frozen=True)
class Beside:
    """Rows of the data that a batch is joined to.

    Attributes:
        table: the row of each record.
        rows: their numbers, for errors, (records,).
        alone: rows that have no labels.
        keys: theirs.
    """

    table: pa.Table
    rows: Int64s
    alone: pa.Table
    keys: pa.Array


class Assembler:
    """Makes batches; may be used by several threads.

    Args:
        teachers: the sets that labels come from.
        rows: how the data's rows are held to it; None where the set carries its inputs.
        shape: of the batches.
    """

    def __init__(self, teachers: Teachers, rows: Rows | None, shape: Shape) -> None:
        self.teachers, self._rows, self._shape = teachers, rows, shape

    def make(
        self,
        numbers: Int64s,
        layout: Int64s | None,
        rows: Beside | None,
        *,
        epoch: int,
        verify: bool,
    ) -> dict[str, Any]:
        """A batch's tensors.

        Args:
            numbers: of its records.
            layout: row i of the batch has the records layout[i] up to layout[i + 1]; None for a
                row each.
            rows: of the data, where there is data.
            epoch: what is drawn depends on it.
            verify: hold them to their digests.

        Raises:
            JoinError: a row is not the one that was labelled.
            CorruptShardError: bytes of the set are not the ones that were written.
        """
        first, *others = self.teachers.take(numbers, epoch, self._shape.device)
        records, extra = self._joined(first, rows, verify=verify)
        batch = self._shape.collate(self._shape.cut(records), layout)
        labels = [batch["soft_labels"], *(self._labels(records, o, layout) for o in others)]
        return self._finish({**extra, **batch, **self.teachers.fields(labels)})

    def filler(self, numbers: Int64s, rows: Beside | None, *, epoch: int) -> dict[str, Any]:
        """A batch of one token and no label, for a rank that has none of its own.

        Its key is None. Losses and gradients of it are zero.
        """
        first, *others = self.teachers.take(numbers, epoch, self._shape.device)
        records, extra = self._joined(first, rows, verify=False)
        one = _one_token(records)
        if one.arrays is None:
            one = replace(one, next_ids=np.full(1, -1))
        layout = None if self._shape.row_length is None else np.asarray([0, 1])
        batch = self._shape.collate(one, layout)
        others = [_one_token(beside(records, o)) for o in others]
        labels = [batch["soft_labels"], *(self._labels(one, o, layout) for o in others)]
        extra = {name: values[:1] for name, values in extra.items()}
        none = torch.zeros(1, dtype=torch.int64)
        batch |= {"key": [None], "part": none} | ({"view": none} if "view" in batch else {})
        return self._finish({**extra, **batch, **self.teachers.fields(labels)})

    def _labels(self, records: Records, other: Records, layout: Int64s | None) -> Labels:
        """Another teacher's labels, laid out as the batch is."""
        cut = self._shape.cut(beside(records, other))
        found: Labels = self._shape.collate(cut, layout)["soft_labels"]
        return found

    def _finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self._shape.device
        if device.type == "cpu":
            return batch
        return {name: _moved(value, device) for name, value in batch.items()}

    def _joined(
        self, records: Records, rows: Beside | None, *, verify: bool
    ) -> tuple[Records, dict[str, Any]]:
        """Records with their tokens, and the columns of their rows."""
        if rows is None or self._rows is None:
            return records, {}
        parts, tables = [], []
        if known := len(records):
            check = self._rows.check if verify else self._rows.check_keys
            check(rows.table, records, rows.rows)
            if not self.teachers.leader.plan.store_inputs:
                records = self._rows.with_inputs(rows.table, records)
            parts.append(records)
            tables.append(rows.table)
        if len(rows.alone):
            none = self.teachers.leader.take([0], device=self._shape.device).labels[:0]
            records, at = self._rows.unlabelled(rows.alone, rows.keys, none)
            parts.append(records)
            tables.append(rows.alone.take(pa.array(at)))
            if not known and not len(records):
                raise InputError(
                    f"key {quoted(rows.keys[0].as_py())}: no row of this batch has labels or a "
                    "token to train on; leave such rows out of the data, or pass on_missing='skip'"
                )
        table = pa.concat_tables(tables, promote_options="permissive")
        return join_records(parts), self._rows.extra(table)


def _one_token(records: Records) -> Records:
    """The first record without labels, cut to one token; an array stays whole."""
    one = records.slice(0, 1)
    return (one.cut(1) if one.arrays is None else one).without_labels()


def _moved(value: Any, device: torch.device) -> Any:
    """On the device, the copy not waited for."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Batched):
        return [_moved(labels, device) for labels in value]
    if isinstance(value, dict):
        return {name: _moved(labels, device) for name, labels in value.items()}
    if isinstance(value, Batched):
        return value if value.device == device else value.to(device)
    if isinstance(value, torch.Tensor):
        pinned = value.pin_memory() if device.type == "cuda" else value
        return pinned.to(device, non_blocking=True)
    return value

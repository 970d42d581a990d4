"""Grain over ArrayRecord: the bytes of a record's fields one after another, not grouped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray
from torch import Tensor

from loader_peers.contents import BATCH, NARROW, Batch, Converted, Given, Row, Way, collate, widened


class Parse:
    """A record's bytes as its fields."""

    def __init__(self, folder: Path) -> None:
        self._fields = json.loads((folder / "fields.json").read_text())

    def __call__(self, data: bytes) -> Row:
        row, at = {}, 0
        for name, (kind, shape) in self._fields.items():
            count = int(np.prod(shape))
            row[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += row[name].nbytes
        return row


class System:
    """One ArrayRecord file, a record by itself, not compressed."""

    def write(self, given: Given, folder: Path) -> None:
        first = given.row(0)
        fields = {name: [str(first[name].dtype), first[name].shape] for name in NARROW}
        (folder / "fields.json").write_text(json.dumps(fields))
        writer = ArrayRecordWriter(
            str(folder / "records.array_record"), "group_size:1,uncompressed"
        )
        for row in given.rows():
            writer.write(b"".join(row[name].tobytes() for name in NARROW))
        writer.close()

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        rows = grain.MapDataset.source(_source(folder))
        if way.shuffled:
            rows = rows.shuffle(seed=way.seed)
        if way.endless:
            rows = rows.repeat()
        made = rows.map(Parse(folder)).to_iter_dataset().batch(BATCH, batch_fn=_stacked)
        if way.workers:
            made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=way.workers))
        return Converted(made, _widened)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        source, parse = _source(folder), Parse(folder)
        return lambda number: widened(collate([parse(source[number])]))


def _source(folder: Path) -> Any:
    return grain.sources.ArrayRecordDataSource(str(folder / "records.array_record"))


def _stacked(rows: Sequence[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in NARROW}


def _widened(batch: dict[str, NDArray[Any]]) -> Batch:
    tensors: dict[str, Tensor] = {name: torch.from_numpy(batch[name]) for name in NARROW}
    return widened(tensors)

"""Our files read by hand: PyArrow and the codec, with no digests, masks or keys' checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from loader_peers.contents import BATCH, LENGTH, Batch, Way
from loader_peers.parquet import MIXED
from softlabels import codecs

COLUMNS = ["key", "input_ids", "positions", "entries", "packed"]


class Groups(IterableDataset[Batch]):
    """Row groups read in turn, or some at a time and their records mixed."""

    def __init__(self, folder: Path, way: Way) -> None:
        self._folder, self._way = folder, way
        self._random = np.random.default_rng(way.seed)
        self._codec = _codec(folder)

    def __iter__(self) -> Iterator[Batch]:
        files = [pq.ParquetFile(path, memory_map=True) for path in _shards(self._folder)]
        order = np.asarray(
            [(i, group) for i, file in enumerate(files) for group in range(file.num_row_groups)]
        )
        if self._way.shuffled:
            self._random.shuffle(order)
        worker = get_worker_info()
        mine = iter(order if worker is None else order[worker.id :: worker.num_workers])
        while some := list(islice(mine, MIXED if self._way.shuffled else 1)):
            tables = [files[i].read_row_group(g, COLUMNS, use_threads=False) for i, g in some]
            table = pa.concat_tables(tables).combine_chunks()
            numbers = np.arange(len(table))
            if self._way.shuffled:
                self._random.shuffle(numbers)
            for start in range(0, len(numbers), BATCH):
                if self._way.shuffled:
                    rows = table.take(pa.array(numbers[start : start + BATCH]))
                else:
                    rows = table.slice(start, BATCH)
                yield decoded(rows, self._codec)


class System:
    """Reads what stock.py wrote."""

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        return DataLoader(
            Groups(folder, way),
            batch_size=None,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
        )

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        files = [pq.ParquetFile(path, memory_map=True) for path in _shards(folder)]
        places = [
            (file, group, row)
            for file in files
            for group in range(file.num_row_groups)
            for row in range(file.metadata.row_group(group).num_rows)
        ]
        codec = _codec(folder)

        def look(number: int) -> Batch:
            file, group, row = places[number]
            table = file.read_row_group(group, COLUMNS, use_threads=False)
            return decoded(table.slice(row, 1), codec)

        return look


def decoded(rows: pa.Table, codec: codecs.Codec) -> Batch:
    """Records as tensors; all have the same length."""
    labels, _ = codec.decode(rows)
    tokens = rows.column("input_ids").combine_chunks().flatten().to_numpy().astype(np.int64)
    shape = (len(rows), LENGTH)
    return Batch(
        torch.from_numpy(rows.column("key").to_numpy().copy()),
        torch.from_numpy(tokens).view(shape),
        labels.ids.view(*shape, -1),
        labels.log_probs.view(*shape, -1),
        labels.log_tail(1.0).view(shape),
    )


def _codec(folder: Path) -> codecs.Codec:
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return codecs.from_json(plan["codec"])


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*.parquet"))

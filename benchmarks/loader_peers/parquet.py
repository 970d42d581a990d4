"""PyArrow by hand: Parquet, a binary cell for each field of a record, not compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from loader_peers.contents import BATCH, LENGTH, NARROW, Batch, Converted, Given, Way, widened

# Records of a row group, and row groups whose records are shuffled together.
GROUP, MIXED = 32, 16


class Groups(IterableDataset[dict[str, Tensor]]):
    """Row groups read in turn, or some at a time and their records mixed."""

    def __init__(self, path: Path, way: Way) -> None:
        self._path, self._way = path, way
        self._random = np.random.default_rng(way.seed)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        file = pq.ParquetFile(self._path, memory_map=True)
        order = np.arange(file.num_row_groups)
        if self._way.shuffled:
            self._random.shuffle(order)
        worker = get_worker_info()
        mine = iter(order if worker is None else order[worker.id :: worker.num_workers])
        while groups := list(islice(mine, MIXED if self._way.shuffled else 1)):
            arrays = narrow(file.read_row_groups(groups, use_threads=False))
            numbers = np.arange(len(arrays["number"]))
            if self._way.shuffled:
                self._random.shuffle(numbers)
            for start in range(0, len(numbers), BATCH):
                where: Any = slice(start, start + BATCH)
                where = numbers[where] if self._way.shuffled else where
                yield {name: torch.from_numpy(values[where]) for name, values in arrays.items()}


class System:
    """One file."""

    def write(self, given: Given, folder: Path) -> None:
        kinds = {name: str(given.row(0)[name].dtype) for name in NARROW}
        fields = [pa.field(name, pa.binary(), metadata={"dtype": kinds[name]}) for name in NARROW]
        rows = list(given.rows())
        columns = [pa.array([row[name].tobytes() for row in rows]) for name in NARROW]
        pq.write_table(
            pa.table(columns, schema=pa.schema(fields)),
            folder / "records.parquet",
            row_group_size=GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        groups = Groups(folder / "records.parquet", way)
        made = DataLoader(
            groups,
            batch_size=None,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
        )
        return Converted(made, widened)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        file = pq.ParquetFile(folder / "records.parquet", memory_map=True)

        def look(number: int) -> Batch:
            group = file.read_row_group(number // GROUP, use_threads=False)
            arrays = narrow(group.slice(number % GROUP, 1))
            return widened({name: torch.from_numpy(values) for name, values in arrays.items()})

        return look


def narrow(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as arrays, without a copy where a column lies in one piece."""
    arrays = {}
    for field in table.schema:
        cells = table.column(field.name).combine_chunks()
        offsets = np.frombuffer(cells.buffers()[1], np.int32)[cells.offset :]
        data = np.frombuffer(cells.buffers()[2], np.uint8)[offsets[0] : offsets[len(cells)]]
        values = data.view(field.metadata[b"dtype"].decode())
        arrays[field.name] = values.reshape(len(cells), *shape_of(field.name))
    return arrays


def shape_of(name: str) -> tuple[int, ...]:
    """Of a record's field."""
    return {"number": (), "ids": (LENGTH, -1), "log_probs": (LENGTH, -1)}.get(name, (LENGTH,))

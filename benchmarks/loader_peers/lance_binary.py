"""Lance: a binary cell for each field of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from loader_peers.contents import BATCH, NARROW, Batch, Converted, Given, Way, loaded, widened
from loader_peers.parquet import narrow


class ByNumber:
    """Narrow records by number; opened where it is used, since Lance must not be forked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: Any = None

    def __getitem__(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
        if self._rows is None:
            self._rows = lance.dataset(str(self._folder))
        return _tensors(self._rows.take(numbers))


class InOrder:
    """Batches of a scan, which Lance reads ahead."""

    def __init__(self, folder: Path) -> None:
        self._rows = lance.dataset(str(folder))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._rows.to_batches(batch_size=BATCH):
            yield _tensors(pa.Table.from_batches([batch]))


class System:
    """A dataset."""

    def write(self, given: Given, folder: Path) -> None:
        first = given.row(0)
        fields = [
            pa.field(name, pa.binary(), metadata={"dtype": str(first[name].dtype)})
            for name in NARROW
        ]
        rows = list(given.rows())
        columns = [pa.array([row[name].tobytes() for row in rows]) for name in NARROW]
        table = pa.table(columns, schema=pa.schema(fields))
        lance.write_dataset(table, str(folder), mode="overwrite")

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        if not way.shuffled and not way.workers:
            return Converted(InOrder(folder), widened)
        records = lance.dataset(str(folder)).count_rows()
        return loaded(ByNumber(folder), records, way, context="spawn")

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        rows = ByNumber(folder)
        return lambda number: widened(rows[np.asarray([number])])


def _tensors(table: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in narrow(table).items()}

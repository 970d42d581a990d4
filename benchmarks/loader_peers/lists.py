"""`datasets`: nested lists, as most people write them, and flat ones read as Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from loader_peers.contents import BATCH, NARROW, Batch, Converted, Given, Way, loaded, widened
from loader_peers.parquet import shape_of

datasets.disable_progress_bars()


class Flat:
    """Narrow records by number, from Arrow's own memory."""

    def __init__(self, folder: Path) -> None:
        self._rows = datasets.load_from_disk(str(folder)).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
        first, last = int(numbers[0]), int(numbers[-1])
        if np.array_equal(numbers, np.arange(first, last + 1)):
            table = self._rows[first : last + 1]  # not copied
        else:
            table = self._rows[numbers]
        return {name: _values(table, name) for name in NARROW}


class System:
    """Saved with `save_to_disk`."""

    def __init__(self, kind: Literal["flat", "nested"]) -> None:
        self._nested = kind == "nested"

    def write(self, given: Given, folder: Path) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in NARROW}
        for row in given.rows():
            for name, values in row.items():
                flat = values.reshape(-1) if values.ndim else values.item()
                columns[name].append(values.tolist() if self._nested else flat)
        first = given.row(0)
        features = datasets.Features({name: self._feature(first[name]) for name in NARROW})
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))

    def _feature(self, value: NDArray[Any]) -> Any:
        feature: Any = datasets.Value(str(value.dtype))
        for _ in range(value.ndim if self._nested else min(1, value.ndim)):
            feature = datasets.List(feature)
        return feature

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        if not self._nested:
            source = Flat(folder)
            return loaded(source, len(source), way)
        made = DataLoader(
            datasets.load_from_disk(str(folder)).with_format("torch"),
            batch_size=BATCH,
            shuffle=way.shuffled,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
        )
        return Converted(made, widened)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        if not self._nested:
            source = Flat(folder)
            return lambda number: widened(source[np.asarray([number])])
        rows = datasets.load_from_disk(str(folder)).with_format("torch")
        return lambda number: widened(rows[[number]])


def _values(table: pa.Table, name: str) -> Tensor:
    cells = table.column(name).combine_chunks()
    flat = cells if name == "number" else cells.flatten()
    return torch.from_numpy(flat.to_numpy().reshape(len(cells), *shape_of(name)))

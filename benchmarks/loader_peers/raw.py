"""A raw memory map: the least that reading can cost, and what it costs in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loader_peers.contents import NARROW, Batch, Given, Row, Way, loaded, widened


class Mapped:
    """Narrow records by number."""

    def __init__(self, arrays: Row) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["number"])

    def __getitem__(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
        first, last = int(numbers[0]), int(numbers[-1])
        neighbours = np.array_equal(numbers, np.arange(first, last + 1))
        # A slice is not copied before it is widened.
        where = slice(first, last + 1) if neighbours else numbers
        return {name: torch.from_numpy(self.arrays[name][where]) for name in NARROW}


class System:
    """One .npy file a field."""

    def write(self, given: Given, folder: Path) -> None:
        places = np.arange(given.records) % given.distinct
        np.save(folder / "number.npy", np.arange(given.records))
        for name in NARROW[1:]:
            np.save(folder / f"{name}.npy", given.arrays[name][places])

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        source = _open(folder)
        return loaded(source, len(source), way)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        source = _open(folder)
        return lambda number: widened(source[np.asarray([number])])


def _open(folder: Path) -> Mapped:
    return Mapped({name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in NARROW})

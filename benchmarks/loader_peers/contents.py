"""What every system is given, and the tensors that every system delivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

A = TypeVar("A")
B = TypeVar("B")

# A record as it is stored, by name: its number, token ids, k class ids and log-probs of each token,
# and the log of the mass of all other classes. 16 bits where they suffice, as a careful user does.
Row = dict[str, NDArray[Any]]
NARROW = ("number", "input_ids", "ids", "log_probs", "log_tails")
LENGTH = 512
BATCH = 8


class Batch(NamedTuple):
    """What a student takes, B records of T tokens.

    Attributes:
        numbers: of the records, (B,) int64.
        input_ids: (B, T) int64.
        ids: (B, T, k) int64.
        log_probs: (B, T, k) float32.
        log_tails: (B, T) float32, at T = 1.
    """

    numbers: Tensor
    input_ids: Tensor
    ids: Tensor
    log_probs: Tensor
    log_tails: Tensor


@dataclass(frozen=True)
class Way:
    """How records are wanted.

    Attributes:
        shuffled: else in the stored order.
        workers: PyTorch's worker processes, or the system's own.
        endless: one iteration is all epochs, for a system that would start workers anew for each.
    """

    shuffled: bool = False
    workers: int = 0
    seed: int = 0
    endless: bool = False


class System(Protocol):
    """A way to store records and to deliver them."""

    def write(self, given: Given, folder: Path) -> None:
        """All records into a new folder."""

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        """What can be iterated over, an epoch each time."""

    def lookup(self, folder: Path) -> Callable[[int], Batch] | None:
        """A record by its number, as a batch of one; None where there is no random access."""


@dataclass(frozen=True)
class Given:
    """Records on disk, as arrays; record i has the contents i mod `distinct`.

    Attributes:
        records: how many.
        arrays: of the distinct ones: the narrow fields, and exact_log_probs, float32.
    """

    records: int
    arrays: Row

    @classmethod
    def open(cls, folder: Path, records: int) -> Given:
        """Of a folder of .npy files."""
        files = sorted(folder.glob("*.npy"))
        return cls(records, {file.stem: np.load(file, mmap_mode="r") for file in files})

    @property
    def distinct(self) -> int:
        return len(self.arrays["ids"])

    @property
    def k(self) -> int:
        return int(self.arrays["ids"].shape[-1])

    def row(self, number: int) -> Row:
        """A record; its arrays own their memory."""
        place = number % self.distinct
        row = {name: np.array(self.arrays[name][place]) for name in NARROW[1:]}
        return {"number": np.asarray(number, np.int64), **row}

    def rows(self) -> Iterator[Row]:
        return map(self.row, range(self.records))

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """What a system that lost nothing delivers."""
        places = numbers % self.distinct
        rows = {name: torch.from_numpy(self.arrays[name][places]) for name in NARROW[1:]}
        return widened({"number": torch.from_numpy(numbers), **rows})

    def exact(self, numbers: NDArray[np.int64]) -> Tensor:
        """Log-probs before they were rounded to float16, (B, T, k)."""
        return torch.from_numpy(self.arrays["exact_log_probs"][numbers % self.distinct])


class Converted(Generic[A, B]):
    """An iterable whose items are converted as they come, in the process that consumes them."""

    def __init__(self, source: Iterable[A], convert: Callable[[A], B]) -> None:
        self._source, self._convert = source, convert

    def __iter__(self) -> Iterator[B]:
        return map(self._convert, self._source)


def collate(rows: list[Row]) -> dict[str, Tensor]:
    """Rows as tensors of a batch, narrow: worker processes then pass on half the bytes or less."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in NARROW}


def widened(batch: dict[str, Tensor]) -> Batch:
    """A narrow batch as a student takes it; entries may lie flat."""
    tokens = batch["input_ids"].shape
    return Batch(
        batch["number"].reshape(-1),
        batch["input_ids"].to(torch.int64),
        batch["ids"].reshape(*tokens, -1).to(torch.int64),
        batch["log_probs"].reshape(*tokens, -1).to(torch.float32),
        batch["log_tails"],
    )


class Numbers:
    """Batches of record numbers, in order or in another permutation each epoch."""

    def __init__(self, records: int, way: Way) -> None:
        self._records, self._way = records, way
        self._random = np.random.default_rng(way.seed)

    def __len__(self) -> int:
        return -(-self._records // BATCH)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        numbers = np.arange(self._records)
        if self._way.shuffled:
            self._random.shuffle(numbers)
        return iter(np.split(numbers, range(BATCH, self._records, BATCH)))


class ByNumbers(Protocol):
    """Records of a list of numbers, narrow."""

    def __getitem__(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]: ...


def loaded(
    source: ByNumbers, records: int, way: Way, *, context: str | None = None
) -> Iterable[Batch]:
    """By PyTorch's DataLoader, which asks for a batch's records together.

    Args:
        context: how workers are started, where they may not be forked.
    """
    made: Iterable[dict[str, Tensor]] = torch.utils.data.DataLoader(
        source,  # type: ignore[arg-type]
        sampler=Numbers(records, way),
        batch_size=None,
        num_workers=way.workers,
        persistent_workers=way.workers > 0,
        multiprocessing_context=context if way.workers else None,
    )
    return Converted(made, widened)

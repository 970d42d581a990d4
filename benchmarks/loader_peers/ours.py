"""softlabels: a label set in its default codec, by its loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import softlabels as sl
from loader_peers.contents import BATCH, Batch, Converted, Way


class System:
    """Written by stock.py; every byte is held to the set's digests as it is read."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        seed = way.seed if way.shuffled else None
        made: Any = sl.loader(
            sl.LabelSet.open(folder), batch_size=BATCH, seed=seed, threads=self._threads
        )
        if way.workers:
            made = DataLoader(
                made,
                batch_size=None,
                num_workers=way.workers,
                persistent_workers=True,
            )
        return Converted(made, _batch)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        labels = sl.LabelSet.open(folder)
        none = torch.empty(1, 0, dtype=torch.int64)

        def look(number: int) -> Batch:
            found = labels[number]
            return _as_batch(torch.tensor([number]), none, found[None])

        return look


def _batch(batch: dict[str, Any]) -> Batch:
    return _as_batch(torch.tensor(batch["key"]), batch["input_ids"], batch["soft_labels"])


def _as_batch(numbers: torch.Tensor, input_ids: torch.Tensor, labels: sl.SoftLabels) -> Batch:
    return Batch(numbers, input_ids, labels.ids, labels.log_probs, labels.log_tail(1.0))

"""LitData: chunks of arrays, made by `optimize`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from litdata import StreamingDataLoader, StreamingDataset, optimize

from loader_peers.contents import BATCH, Batch, Converted, Given, Row, Way, collate, widened


class System:
    """Chunks of 64 MB, as its documentation shows."""

    def write(self, given: Given, folder: Path) -> None:
        # It would put these beside the system's temporary folders and leave them there.
        for use in ("", "DATA_"):
            os.environ[f"DATA_OPTIMIZER_{use}CACHE_FOLDER"] = f"{folder}-{use}cache"
        optimize(
            fn=partial(_row, given),
            inputs=list(range(given.records)),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
        )

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        rows = StreamingDataset(str(folder), shuffle=way.shuffled, seed=way.seed, drop_last=False)
        made = StreamingDataLoader(
            rows,
            batch_size=BATCH,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
            collate_fn=collate,
        )
        return Converted(made, widened)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        rows = StreamingDataset(str(folder))
        return lambda number: widened(collate([rows[number]]))


def _row(given: Given, number: int) -> Row:
    return given.row(number)

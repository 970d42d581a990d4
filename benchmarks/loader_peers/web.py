"""WebDataset: tar files with a .npy member for each field of a record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import DataLoader

from loader_peers.contents import BATCH, NARROW, Batch, Converted, Given, Row, Way, collate, widened

# Tar files for two workers to share, and records in the shuffle buffer: its documentation's.
SHARDS, BUFFER = 8, 1000


class System:
    """Eight tar files."""

    def write(self, given: Given, folder: Path) -> None:
        size = -(-given.records // SHARDS)
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=size, verbose=0) as writer:
            for row in given.rows():
                members = {f"{name}.npy": row[name] for name in NARROW}
                writer.write({"__key__": f"{int(row['number']):08d}", **members})

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        urls = sorted(map(str, folder.glob("*.tar")))
        shards = len(urls) if way.shuffled else False
        rows = webdataset.WebDataset(urls, shardshuffle=shards, seed=way.seed)
        if way.shuffled:
            rows = rows.shuffle(BUFFER)
        made = rows.decode().batched(BATCH, collation_fn=_collate, partial=True)
        loader = DataLoader(
            made,
            batch_size=None,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
        )
        return Converted(loader, widened)

    def lookup(self, folder: Path) -> None:
        """A tar file has no index."""


def _collate(samples: list[dict[str, Any]]) -> Any:
    rows: list[Row] = [{name: sample[f"{name}.npy"] for name in NARROW} for sample in samples]
    return collate(rows)

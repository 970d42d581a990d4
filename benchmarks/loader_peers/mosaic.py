"""MosaicML Streaming: MDS shards of arrays, not compressed, read from the local disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from loader_peers.contents import BATCH, NARROW, Batch, Converted, Given, Way, collate, widened

# Its package imports torchvision for images; the one on PyPI does not load beside a CPU build of
# torch, and no image is read here.
_IMAGES: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object, "CIFAR10": object},
    "torchvision.transforms.functional": {"to_tensor": None},
}
for name, given in _IMAGES.items():
    module = ModuleType(name)
    module.__dict__.update(given, __spec__=ModuleSpec(name, None))
    sys.modules[name] = module

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402


class System:
    """Shards of 64 MiB, its default."""

    def write(self, given: Given, folder: Path) -> None:
        first = given.row(0)
        columns = {
            name: f"ndarray:{first[name].dtype}:{','.join(map(str, first[name].shape))}"
            for name in NARROW[1:]
        }
        with MDSWriter(out=str(folder), columns={"number": "int", **columns}) as writer:
            for row in given.rows():
                writer.write({**row, "number": int(row["number"])})

    def batches(self, folder: Path, way: Way) -> Iterable[Batch]:
        rows = StreamingDataset(
            local=str(folder), shuffle=way.shuffled, shuffle_seed=way.seed, batch_size=BATCH
        )
        made = StreamingDataLoader(
            rows,
            batch_size=BATCH,
            num_workers=way.workers,
            persistent_workers=way.workers > 0,
            collate_fn=collate,
        )
        return Converted(made, widened)

    def lookup(self, folder: Path) -> Callable[[int], Batch]:
        rows = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
        return lambda number: widened(collate([rows[number]]))

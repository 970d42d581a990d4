"""Golden sets of arrays, views, independent classes and vectors: what was labelled, and by what.

    python tests/golden/kinds.py        # writes those that are not there

The library wrote them once; they stay as they are. The tests read them with NumPy, PyArrow, xxhash
and zstandard alone, as docs/FORMAT.md says, and hold them to the numbers below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import softlabels as sl

HERE = Path(__file__).parent
WIDTH, CLASSES, RECORDS = 3, 12, 5
TEMPERATURES = (1.0, 2.0)
CODECS = {
    "binary": ("binary", {"codec": "binary", "selection": sl.TopK(4)}),
    "binary-all": ("binary", {"codec": "binary"}),
    "binary-plain": ("binary", {"codec": "binary_plain", "selection": sl.TopK(4)}),
    "float32": ("embedding", {"codec": "float32"}),
    "float16": ("embedding", {"codec": "float16"}),
    "int8": ("embedding", {"codec": "int8"}),
    "product": ("embedding", {"codec": "product"}),
}


def frames(record: int, count: int | None = None) -> np.ndarray:
    """The array of a record, float32 (1 to 3, 3)."""
    rows = 1 + record % 3 if count is None else count
    numbers = np.arange(rows * WIDTH).reshape(rows, WIDTH)
    return (np.sin(1 + record * 7 + numbers) * 2).astype(np.float32)


def answers(array: np.ndarray) -> np.ndarray:
    """Logits or vectors of frames (T, 3), float64 (T, 12)."""
    weights = np.cos(np.arange(WIDTH * CLASSES)).reshape(WIDTH, CLASSES) * 3
    return array.astype(np.float64) @ weights


def rows(count: int = RECORDS) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "x": frames(i), "label": f"c{i}"} for i in range(count)]


def turned(sample: np.ndarray, params: dict[str, Any], other: np.ndarray) -> np.ndarray:
    """A view: numbers moved along, and some of another sample's first one."""
    moved = np.roll(sample, params["by"], -1)
    return (moved + np.float32(params["share"]) * other[:1, :1]).astype(np.float32)


def drawn(rng: np.random.Generator, sample: np.ndarray) -> dict[str, Any]:
    return {"by": int(rng.integers(3)), "share": int(rng.integers(1, 4)) / 4}


VIEWS = sl.Views(turned, drawn, count=3, seed=5, partner=True, clean=True)


def teacher(kind: str, **options: Any) -> Any:
    def function(arrays: torch.Tensor) -> torch.Tensor:
        found = answers(arrays.numpy()).astype(np.float32)
        return torch.from_numpy(found if "positions" in options else found[:, 0])

    return sl.teachers.from_callable(
        function, name="cosines", version="1", classes=CLASSES, takes="arrays",
        kind=kind, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def make() -> None:
    for name, (kind, options) in CODECS.items():
        count = 300 if name == "product" else RECORDS
        at = {} if kind == "embedding" else {"temperatures": TEMPERATURES}
        out = HERE / f"1.0-{name}"
        if not out.exists():
            sl.precompute(
                rows(count), teacher(kind, positions="every"), out, column="x", key="id",
                unit_rows=3 if name != "product" else 300, progress=False, **at, **options,
            )  # fmt: skip
    out = HERE / "1.0-views"
    if not out.exists():
        named = teacher("categorical", class_names=[f"c{i}" for i in range(CLASSES)])
        sl.precompute(
            rows(), named, out, column="x", key="id", label="label", views=VIEWS, codec="plain",
            selection=sl.TopK(3), temperatures=TEMPERATURES, unit_rows=3, progress=False,
        )  # fmt: skip


if __name__ == "__main__":
    make()

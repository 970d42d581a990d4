"""Sets whose teacher knows what comes next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl

CLASSES = 16
Knowing = Callable[..., sl.LabelSet]


def successor_table(ahead: int = 1, *, sure: float = 4.0) -> torch.Tensor:
    """Logits (V, V) of a teacher that believes the token so many further on to follow."""
    noise = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(1))
    places = torch.arange(CLASSES)
    return noise.index_put((places, (places + ahead) % CLASSES), torch.tensor(sure + 3))


@pytest.fixture(scope="session")
def counting_rows() -> list[dict[str, Any]]:
    """Eight samples of 24 tokens that count up modulo V, one in eight of them misprinted."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(8):
        ids = (np.arange(24) * 1 + number) % CLASSES
        wrong = rng.random(24) < 1 / 8
        ids[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
        rows.append({"id": f"s{number}", "ids": ids.tolist()})
    return rows


@pytest.fixture(scope="session")
def knowing(counting_rows: list[dict[str, Any]]) -> Knowing:
    """A set of them by a teacher that knows how to count, or is one off."""

    def make(out: Path, *, ahead: int = 1, **options: Any) -> sl.LabelSet:
        table = successor_table(ahead)
        teacher = sl.teachers.from_callable(
            lambda ids: table[ids], name="counts", version=str(ahead), classes=CLASSES
        )
        settings: dict[str, Any] = {
            "selection": sl.TopK(6), "column": "ids", "key": "id", "max_length": 24,
            "unit_rows": 3, "codec": "plain",
        }  # fmt: skip
        return sl.precompute(counting_rows, teacher, out, progress=False, **(settings | options))

    return make


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory, knowing: Knowing) -> sl.LabelSet:
    """A finished one with probes; never changed."""
    return knowing(tmp_path_factory.mktemp("counted") / "labels", probes=40)

"""A set that every test of loading reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softlabels as sl

Precompute = Callable[..., sl.LabelSet]
SIZES = [5, 15, 1, 6, 3, 2, 7, 6, 12, 4]


@pytest.fixture(scope="package")
def samples() -> list[dict[str, Any]]:
    """Samples of many lengths, with other columns."""
    rng = np.random.default_rng(5)
    return [
        {"id": f"s{i}", "ids": rng.integers(0, 16, n).tolist(), "weight": i / 4, "note": f"n{i}"}
        for i, n in enumerate(SIZES)
    ]


@pytest.fixture(scope="package")
def labels(
    tmp_path_factory: pytest.TempPathFactory, precompute: Precompute, samples: list[dict[str, Any]]
) -> sl.LabelSet:
    """Four shards of windows, some of whose tokens have no labels."""
    return precompute(tmp_path_factory.mktemp("loader") / "set", samples, overlap=1)

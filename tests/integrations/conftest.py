"""A set that every test of the integrations trains on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabels as sl

Precompute = Callable[..., sl.LabelSet]
SIZES = [5, 15, 1, 6, 3, 2, 7, 6, 12, 4, 5, 3]


@pytest.fixture(scope="session")
def labels_dir(tmp_path_factory: pytest.TempPathFactory, precompute: Precompute) -> Path:
    """Windows of at most six tokens, some without labels; sixteen records and their inputs."""
    rng = np.random.default_rng(5)
    rows: list[dict[str, Any]] = [
        {"id": f"s{i}", "ids": rng.integers(0, 16, n).tolist()} for i, n in enumerate(SIZES)
    ]
    out = tmp_path_factory.mktemp("integrations") / "labels"
    precompute(out, rows, overlap=1)
    return out


@pytest.fixture(scope="session")
def labels(labels_dir: Path) -> sl.LabelSet:
    return sl.LabelSet.open(labels_dir)

"""Sets of a teacher that is a table, and recipes that take a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_students import CONFIG

import softlabels as sl
from softlabels.training import DataRecipe, OptimizerRecipe, StudentRecipe, TrainRecipe

Precompute = Callable[..., sl.LabelSet]


@pytest.fixture(scope="package")
def id_samples() -> list[dict[str, Any]]:
    """Thirty samples of many lengths, some long enough for several windows."""
    rng = np.random.default_rng(5)
    return [
        {"id": f"s{i}", "ids": rng.integers(0, 16, n).tolist()}
        for i, n in enumerate(rng.integers(2, 20, 30))
    ]


@pytest.fixture(scope="package")
def labels(
    tmp_path_factory: pytest.TempPathFactory,
    precompute: Precompute,
    id_samples: list[dict[str, Any]],
) -> sl.LabelSet:
    """k = 6 of 16 classes, windows of at most eight tokens, one of them context only."""
    out = tmp_path_factory.mktemp("training") / "labels"
    return precompute(out, id_samples, selection=sl.TopK(6), max_length=8, overlap=1, unit_rows=8)


@pytest.fixture
def recipe() -> TrainRecipe:
    """Twelve steps of a student of a few thousand parameters, with dropout."""
    return TrainRecipe(
        student=StudentRecipe(config={**CONFIG, "attention_dropout": 0.1}),
        optimizer=OptimizerRecipe(lr=1e-2),
        data=DataRecipe(batch_size=4, held_out=0.2),
        steps=12,
        seed=3,
        device="cpu",
        log_every=2,
        checkpoint_every=3,
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"

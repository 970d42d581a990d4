"""Label sets of a few kilobytes, made in milliseconds by a teacher that is a table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl

CLASSES = 16
Precompute = Callable[..., sl.LabelSet]


@pytest.fixture(scope="session")
def id_rows() -> list[dict[str, Any]]:
    """Six samples of token ids with string keys; the second is long enough for three windows."""
    rng = np.random.default_rng(0)
    return [
        {"id": f"s{index}", "ids": rng.integers(0, CLASSES, size).tolist()}
        for index, size in enumerate([5, 15, 5, 5, 5, 5])
    ]


@pytest.fixture(scope="session")
def precompute(id_rows: list[dict[str, Any]]) -> Precompute:
    """`sl.precompute` of rows of token ids with a small teacher, k = 3, three rows a shard."""
    table = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)) * 2

    def run(out: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> sl.LabelSet:
        teacher = options.pop("teacher", None) or sl.teachers.from_callable(
            lambda ids: table[ids], name="table", version="1", classes=CLASSES
        )
        settings: dict[str, Any] = {
            "selection": sl.TopK(3),
            "column": "ids",
            "key": "id",
            "max_length": 6,
            "unit_rows": 3,
            "temperatures": (1.0, 2.0),
        }
        return sl.precompute(
            id_rows if rows is None else rows,
            teacher,
            out,
            progress=False,
            **(settings | options),
        )

    return run


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, precompute: Precompute) -> Path:
    """A finished set of two shards; never changed."""
    out = tmp_path_factory.mktemp("tiny") / "labels"
    precompute(out)
    return out


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to do what you like with."""
    return Path(shutil.copytree(pristine, tmp_path / "labels"))

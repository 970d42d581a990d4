"""Small label sets by a teacher that tells whether it ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tables import TableTeacher

import softlabels as sl


@pytest.fixture
def run(id_rows: list[dict[str, Any]], precompute: Any, tmp_path: Path) -> Callable[..., Any]:
    """`precompute` of `id_rows` into the folder "set", by a `TableTeacher`."""

    def label(rows: Any = None, *, out: Path | None = None, **options: Any) -> sl.LabelSet:
        options.setdefault("teacher", TableTeacher())
        rows = id_rows if rows is None else rows
        return precompute(tmp_path / "set" if out is None else out, rows, **options)

    return label

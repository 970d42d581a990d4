"""Arrow's columns as NumPy's arrays, and what they cost a process that only looks at a set."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import softlabels as sl
from softlabels.arrow import nulls_of, numpy_of

COLUMNS = [
    pa.array([3, 1, 2], pa.int64()),
    pa.array([], pa.uint16()),
    pa.array([7, 8, 9, 10], pa.uint32()).slice(1, 2),
    pa.array([0.5, float("nan")], pa.float32()),
    pa.chunked_array([[1, 2], [], [3]], pa.int32()),
    pa.chunked_array([], pa.int64()),
]


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_a_column_without_nulls_is_what_to_numpy_gives(column: Any) -> None:
    found = numpy_of(column)
    np.testing.assert_array_equal(found, column.to_numpy())
    assert found.dtype == column.to_numpy().dtype
    assert not nulls_of(column).any()
    assert nulls_of(column).shape == found.shape


@pytest.mark.parametrize("values", [[None, 4, None, 5] * 5, [None] * 9])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_nulls_become_what_is_asked_for(values: list[int | None], start: int) -> None:
    column = pa.array(values, pa.uint32()).slice(start)
    expected = [-1 if value is None else value for value in values[start:]]
    for given in (column, pa.chunked_array([column])):
        assert numpy_of(given, null=-1).tolist() == expected
        assert nulls_of(given).tolist() == [value is None for value in values[start:]]
    halves = numpy_of(column.cast(pa.float32()), null=np.nan)
    assert halves.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(halves), nulls_of(column))


def test_nulls_of_no_type_are_nulls() -> None:
    assert nulls_of(pa.nulls(3)).tolist() == [True] * 3


@pytest.mark.parametrize(
    "column", [pa.array([1, None]), pa.array(["a"]), pa.array([True])], ids=str
)
def test_other_columns_are_refused(column: pa.Array) -> None:
    with pytest.raises(pa.ArrowException):
        numpy_of(column)


LOOKING = """
import contextlib, io, sys
import softlabels as sl
from softlabels.cli.look import show_info

labels = sl.LabelSet.open(sys.argv[1])
next(iter(sl.loader(labels, batch_size=2, seed=0)))
with contextlib.redirect_stdout(io.StringIO()):
    show_info(sys.argv[1], as_json=False)
assert "pandas" not in sys.modules
"""


def test_opening_loading_and_info_import_no_pandas(tmp_path: Any) -> None:
    """Arrow imports it for what `numpy_of` is in place of: it would take most of their time."""
    labels = sl.precompute(
        [{"id": f"s{i}", "ids": [i, 1, 2]} for i in range(5)],
        sl.teachers.from_callable(_null, name="null", version="1", classes=8),
        tmp_path / "set", column="ids", key="id", selection=sl.TopK(2), codec="plain",
        progress=False,
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", LOOKING, str(labels.root)], check=True, timeout=120)


def _null(ids: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 8)

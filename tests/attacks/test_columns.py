"""Thousands of columns beside those of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from forge import FIRST, refusals, reseal, rewrite

import softlabels as sl


def test_unknown_columns_cost_a_moment_and_are_ignored(tiny: Path, pristine: Path) -> None:
    def more(table: Any) -> Any:
        arrays = [*table.columns, *(pa.nulls(len(table), pa.int8()) for _ in range(2000))]
        fields = [*table.schema, *(pa.field(f"x{n}", pa.int8()) for n in range(2000))]
        return pa.table(arrays, schema=pa.schema(fields))

    rewrite(tiny / FIRST, more)
    reseal(tiny)
    assert refusals(tiny) == []
    labels, before = sl.LabelSet.open(tiny), sl.LabelSet.open(pristine)
    assert labels[0].log_probs.equal(before[0].log_probs)


COLUMNS = ("key", "part", "view", "length", "positions", "source_length", "input_digest")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_null_where_the_format_has_none_is_refused_by_name(name: str, tiny: Path) -> None:
    def without(table: Any) -> Any:
        values = pa.array([None, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        place = table.schema.get_field_index(name)
        return table.set_column(place, pa.field(name, values.type), values)

    rewrite(tiny / FIRST, without)
    reseal(tiny)
    said = refusals(tiny)
    assert said
    assert all(f"1 nulls in column {name}" in words for words in said), said

"""Counts that are wrong, negative, fractional or beyond all memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import FIRST, edit_json, refusal, refusals, reseal, rewrite, with_column

import softlabels as sl
from softlabels.errors import LabelSetError
from softlabels.looking.audit import audit

HUGE = (1 << 30, 1 << 40)


@pytest.mark.parametrize("name", ["shards", "records", "positions", "bytes"])
@pytest.mark.parametrize("value", [-1, 1.5, "many", None, 1 << 80])
def test_totals_that_are_no_counts_are_refused(tiny: Path, name: str, value: Any) -> None:
    edit_json(tiny / "manifest.json", lambda found: found["totals"].update({name: value}))
    words = refusals(tiny)
    assert any("totals" in said for said in words), words


@pytest.mark.parametrize("name", ["positions", "entries"])
@pytest.mark.parametrize("value", [0, *HUGE])
def test_receipts_that_claim_other_counts_take_no_memory_and_are_found(
    tiny: Path, name: str, value: int
) -> None:
    reseal(tiny, **{name: value})
    assert refusals(tiny)
    refusal(lambda: audit(sl.LabelSet.open(tiny)))


@pytest.mark.parametrize("claims", [{"bytes": 1 << 40}, {"bytes": 0}, {"footer_sha256": "0" * 64}])
def test_receipts_of_other_files_are_refused(tiny: Path, claims: dict[str, Any]) -> None:
    reseal(tiny, **claims)
    with pytest.raises(LabelSetError, match=rf"{FIRST}|bytes"):
        sl.LabelSet.open(tiny)[0]


@pytest.mark.parametrize("column", ["length", "positions", "entries"])
@pytest.mark.parametrize("value", [-1, 0, 1000])
def test_rows_that_claim_other_counts_are_refused(packed: Path, column: str, value: int) -> None:
    rewrite(packed / FIRST, lambda table: with_column(table, column, [value] * len(table)))
    reseal(packed)
    with pytest.raises(LabelSetError, match=FIRST):
        sl.LabelSet.open(packed)[0]


@pytest.mark.parametrize("column", ["positions", "entries"])
def test_rows_that_claim_more_than_memory_holds_are_refused_before_any_is_taken(
    packed: Path, column: str
) -> None:
    most = int(np.iinfo(np.int32).max)
    rewrite(packed / FIRST, lambda table: with_column(table, column, [most] * len(table)))
    reseal(packed)
    with pytest.raises(LabelSetError, match=FIRST):
        sl.LabelSet.open(packed)[0]


@pytest.mark.parametrize("start", [-1, 0, 1 << 30])
@pytest.mark.parametrize("length", [-1, (1 << 31) - 1])
def test_spans_outside_of_their_record_are_refused(tiny: Path, start: int, length: int) -> None:
    spans = [{"start": start, "length": length}]
    rewrite(tiny / FIRST, lambda table: with_column(table, "label_spans", [spans] * len(table)))
    reseal(tiny)
    with pytest.raises(LabelSetError, match="label_spans"):
        sl.LabelSet.open(tiny)[0]

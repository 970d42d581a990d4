"""How fast a set was made, as far as its receipts say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabels as sl
from softlabels.format.receipts import Receipts
from softlabels.looking.audit import audit
from softlabels.looking.charts import charts
from softlabels.looking.pages import audit_page, picture
from softlabels.looking.svg import drawn
from softlabels.looking.text import class_decoder, decoder
from softlabels.looking.throughput import throughput


@pytest.fixture
def tells(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Receipts that say these seconds and accelerators."""

    def tell(seconds: list[float], accelerators: list[str | None]) -> None:
        monkeypatch.setattr(Receipts, "seconds", lambda _: np.asarray(seconds))
        monkeypatch.setattr(Receipts, "accelerators", lambda _: accelerators)

    return tell


def test_units_of_which_nothing_is_known_are_left_out_and_counted(
    counted: sl.LabelSet, tells: Any
) -> None:
    positions = counted.receipts.numbers("positions").tolist()
    assert len(positions) == 3
    tells([2.0, np.nan, 4.0], ["cpu", None, "H\x1b[2J200"])
    found = throughput(counted)
    assert found == {
        "edges": [0, 1, 2, 3],
        "rates": [positions[0] / 2, None, positions[2] / 4],
        "positions": positions[0] + positions[2],
        "seconds": 6.0,
        "units": 2,
        "accelerators": ["H\x1b[2J200", "cpu"],
    }
    chart = next(c for c in charts(audit(counted)) if c.name == "throughput")
    assert "on H\\u001b[2J200, cpu" in chart.words or "\\x1b" in chart.words
    assert "\x1b" not in picture(chart)
    assert "2 of 3 units" in chart.words


def test_neighbours_are_taken_together_where_there_are_many(
    tmp_path: Path, precompute: Any, tells: Any
) -> None:
    rows = [{"id": f"s{i}", "ids": [1, 2, 3]} for i in range(90)]
    labels = precompute(tmp_path / "set", rows, unit_rows=1)
    tells([float(1 + i % 3) for i in range(90)], ["cpu"] * 90)
    found = throughput(labels)
    assert found is not None
    assert found["edges"] == [*range(0, 90, 3), 90]
    assert found["rates"] == [9 / 6] * 30


def test_numbers_beside_the_axis_are_short(counted: sl.LabelSet, tells: Any) -> None:
    tells([1e-3] * 3, ["cpu"] * 3)
    chart = next(c for c in charts(audit(counted)) if c.name == "throughput")
    ticks = [tick.words for tick in drawn(chart).y_ticks]
    assert ticks[0] == "0"
    assert all(words.endswith("k") and len(words) <= 4 for words in ticks[1:])


def test_a_set_that_does_not_say_has_no_chart_of_it(counted: sl.LabelSet, tells: Any) -> None:
    tells([np.nan] * 3, [None] * 3)
    found = audit(counted)
    assert found.throughput is None
    decode = decoder(counted)
    page = audit_page(counted, found, decode=decode, classes=class_decoder(counted, decode))
    assert "Speed of labelling" not in page


def test_a_set_made_now_says_how_fast_and_on_what_a_model_ran(
    tmp_path: Path, model: Any, counting_rows: list[dict[str, Any]]
) -> None:
    made = sl.precompute(
        counting_rows, model, tmp_path / "set", column="ids", key="id", selection=sl.TopK(4),
        max_length=24, progress=False,
    )  # fmt: skip
    found = throughput(made)
    assert found is not None
    assert (found["units"], found["positions"]) == (1, made.totals.positions)
    assert found["accelerators"] == ["cpu"]

"""What a running job reports of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import softlabels as sl
from softlabels.progress import Progress, Tracker


def test_precompute_reports_every_row_and_byte(
    run: Callable[..., sl.LabelSet],
    id_rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from softlabels.precompute import run as precompute_room

    seen: list[Progress] = []
    monkeypatch.setattr(
        precompute_room,
        "Tracker",
        lambda report, rows: Tracker(lambda event: (seen.append(event), report(event)), rows),
    )
    labels = run()
    assert (seen[-1].source_rows, seen[-1].total_rows, seen[-1].share) == (6, 6, 1.0)
    assert seen[-1].tokens == labels.totals.positions
    assert seen[-1].bytes == labels.totals.bytes
    run(iter(id_rows))
    assert (seen[-1].skipped_rows, seen[-1].tokens, seen[-1].total_rows) == (6, 0, None)
    assert capsys.readouterr().err == ""

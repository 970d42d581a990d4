"""What a running job reports of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tables import TableTeacher

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


def test_a_log_tells_the_perplexity_and_mass_that_the_set_holds(
    tmp_path: Any, id_rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = sl.precompute(
        id_rows, TableTeacher(), tmp_path / "set", selection=sl.TopK(3), column="ids", key="id",
        max_length=6, unit_rows=3, codec="plain", progress=True,
    )  # fmt: skip
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    y = labels[list(range(len(labels)))]
    hard = torch.cat([record.hard_log_probs for record in y])
    judged = hard[torch.isfinite(hard)].double()
    mass = torch.cat([record.log_probs for record in y]).double().exp().sum(-1)
    assert last["event"] == "finished"
    assert last["positions"] == len(hard) == labels.totals.positions
    assert last["perplexity"] == pytest.approx(float((-judged.mean()).exp()), rel=1e-5)
    assert last["mass_kept"] == pytest.approx(float(mass.mean()), rel=1e-5)
    assert last["bytes_per_position"] == pytest.approx(
        labels.totals.bytes / labels.totals.positions, rel=1e-5
    )
    assert (last["share"], last["eta_s"], last["units"]) == (1.0, 0.0, 2)

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
    from softlabels.precomputing import run as precompute_room

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


def test_tokens_of_a_unit_that_ran_out_of_memory_are_counted_once(
    run: Callable[..., sl.LabelSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from softlabels.precomputing import run as precompute_room

    def narrow(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if ids.shape == (3, 5) and len(teacher.batches) > 1:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return logits

    seen: list[Progress] = []
    monkeypatch.setattr(precompute_room, "Tracker", lambda _, rows: Tracker(seen.append, rows))
    teacher = TableTeacher(wrong=narrow)
    labels = run(teacher=teacher, batch_tokens=18)
    assert [tuple(ids.shape) for ids in teacher.batches][:2] == [(2, 6), (3, 5)]
    assert len(teacher.batches) > 4  # it began again
    assert seen[-1].tokens == labels.totals.positions == seen[-1].seen.positions
    assert seen[-1].share == 1

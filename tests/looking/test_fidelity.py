"""What a codec and a selection cost at the probes, against dense float64 distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.looking.fidelity import fidelity


def test_plain_labels_of_all_classes_lose_nothing(knowing: Any, tmp_path: Path) -> None:
    labels = knowing(tmp_path / "set", selection=sl.TopK(16), probes=30)
    rows = fidelity(labels)
    assert [row.temperature for row in rows] == [1.0, 2.0, 4.0]
    for row in rows:
        assert row.positions == 30
        assert row.codec_kl == pytest.approx(0, abs=1e-9)
        assert row.selection_kl == pytest.approx(0, abs=1e-9)
        assert row.total_tv == pytest.approx(0, abs=1e-6)
        assert row.gradient_angle < 0.01


def test_kl_and_variation_are_those_of_the_distribution_with_an_even_tail(
    counted: sl.LabelSet,
) -> None:
    for row in fidelity(counted):
        kl = variation = 0.0
        for probes in counted.probes():
            for number, place, logits in zip(
                probes.records, probes.positions, probes.logits, strict=True
            ):
                y = counted[int(number)][int(place)]
                p = torch.softmax(logits.double() / row.temperature, -1)
                tail = y.log_tail(row.temperature).double().exp()
                q = torch.full_like(p, float(tail) / (len(p) - y.k))
                q[y.ids] = y.log_probs_at(row.temperature).double().exp()
                kl += float((p * (p / q).log()).sum()) / row.positions
                variation += float((p - q).abs().sum()) / 2 / row.positions
        assert row.codec_kl is not None
        assert row.selection_kl is not None
        assert row.codec_kl + row.selection_kl == pytest.approx(kl, abs=1e-6)
        assert row.total_tv == pytest.approx(variation, abs=1e-6)
        assert row.worst_kl is not None
        assert row.worst_kl >= kl


def test_a_coarse_codec_costs_what_it_rounds_and_fewer_classes_turn_the_gradient(
    counted: sl.LabelSet, tmp_path: Path
) -> None:
    few = sl.derive(counted, tmp_path / "few", codec="compact", k=2, progress=False)
    for exact, coarse in zip(fidelity(counted), fidelity(few), strict=True):
        assert exact.codec_kl == pytest.approx(0, abs=1e-9)
        assert coarse.codec_kl is not None
        assert 1e-8 < coarse.codec_kl < 1e-2
        assert coarse.gradient_angle > exact.gradient_angle


def test_sampled_labels_have_an_angle_alone(knowing: Any, tmp_path: Path) -> None:
    labels = knowing(
        tmp_path / "set", selection=sl.Sampled(6), codec=None, probes=20, temperatures=None
    )
    (row,) = fidelity(labels)
    assert (row.temperature, row.positions, row.codec_kl) == (1.0, 20, None)
    assert 0 < row.gradient_angle < 45


def test_a_set_without_probes_has_no_fidelity(pristine: Path) -> None:
    assert fidelity(sl.LabelSet.open(pristine)) == []

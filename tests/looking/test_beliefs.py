"""Entropy, masses, ranks and calibration of stored labels, against dense distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from softlabels.labels import SoftLabels
from softlabels.looking.beliefs import Distributions, beliefs
from softlabels.looking.histogram import Histogram


def labelled(logits: torch.Tensor, k: int, hard: torch.Tensor) -> SoftLabels:
    log_p = torch.log_softmax(logits.double(), -1)
    values, ids = log_p.topk(k)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    known = hard >= 0
    chosen = log_p.gather(-1, hard.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return SoftLabels(
        ids=ids, log_probs=values, log_tails=rest.unsqueeze(-1), temperatures=(1.0,),
        hard_log_probs=torch.where(known, chosen, torch.nan), classes=logits.shape[-1],
    )  # fmt: skip


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(50, 9, generator=torch.Generator().manual_seed(3)).double() * 2


@pytest.fixture
def hard() -> torch.Tensor:
    labels = torch.randint(9, (50,), generator=torch.Generator().manual_seed(4))
    labels[:5] = -1
    return labels


def test_with_every_class_kept_entropy_and_ranks_are_the_dense_ones(
    logits: torch.Tensor, hard: torch.Tensor
) -> None:
    found = beliefs(labelled(logits, 9, hard), hard.numpy())
    p = torch.softmax(logits, -1)
    np.testing.assert_allclose(found.entropy, -(p * p.log()).sum(-1), atol=1e-12)
    np.testing.assert_allclose(found.kept, 1, atol=1e-12)
    assert (found.tail == 0).all()
    places = logits.argsort(-1, descending=True).argsort(-1).gather(-1, hard.clamp(min=0)[:, None])
    expected = torch.where(hard >= 0, places[:, 0] + 1, 0)
    assert found.ranks.tolist() == expected.tolist()
    assert found.right.tolist() == (expected == 1).tolist()
    assert found.known.tolist() == (hard >= 0).tolist()


def test_classes_that_were_not_kept_count_as_one_and_have_no_rank(
    logits: torch.Tensor, hard: torch.Tensor
) -> None:
    found = beliefs(labelled(logits, 3, hard), hard.numpy())
    p = torch.softmax(logits, -1)
    kept = p.topk(3).values
    merged = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)
    np.testing.assert_allclose(found.entropy, -(merged * merged.log()).sum(-1), atol=1e-9)
    np.testing.assert_allclose(found.tail, merged[:, -1], atol=1e-9)
    here = (p.topk(3).indices == hard[:, None]).any(-1)
    assert (found.ranks > 0).tolist() == (here & (hard >= 0)).tolist()
    assert found.ranks.max() <= 3


def test_without_the_hard_labels_ids_their_stored_log_prob_tells_the_same(
    logits: torch.Tensor, hard: torch.Tensor
) -> None:
    for k in (3, 9):
        labels = labelled(logits, k, hard)
        known, told = beliefs(labels, hard.numpy()), beliefs(labels, None)
        # A class just below the last one kept cannot be told from it.
        differ = known.ranks != told.ranks
        assert (told.ranks[differ] == k).all()
        assert differ.mean() < 0.1
        assert known.right.tolist() == told.right.tolist()


def test_sampled_labels_have_no_entropy_and_no_mass(logits: torch.Tensor) -> None:
    labels = SoftLabels(
        ids=torch.tensor([[0, 1]]), log_probs=torch.tensor([[0.1, -2.0]]), sampled=True
    )
    found = beliefs(labels, None)
    assert np.isnan([*found.entropy, *found.kept, *found.tail]).all()
    assert not found.known.any()


def test_the_calibration_error_is_that_of_its_definition(
    logits: torch.Tensor, hard: torch.Tensor
) -> None:
    given = Distributions(9)
    for part in (slice(0, 20), slice(20, 50)):
        labels = labelled(logits[part], 3, hard[part])
        given.add(beliefs(labels, hard[part].numpy()), 3)
    found = given.to_json()
    p, known = torch.softmax(logits, -1).max(-1), hard >= 0
    confidence, right = p.values[known], (p.indices == hard)[known].double()
    error = 0.0
    for low in range(15):
        inside = (confidence * 15).long() == low
        if inside.any():
            gap = float((confidence[inside].mean() - right[inside].mean()).abs())
            error += float(inside.sum()) / 45 * gap
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(error)
    assert found["calibration"]["accuracy"] == pytest.approx(float(right.mean()))
    chosen = torch.log_softmax(logits, -1).gather(-1, hard.clamp(min=0)[:, None])[known]
    assert found["perplexity"] == pytest.approx(math.exp(-float(chosen.mean())))
    assert sum(row["count"] for row in found["ranks"]) == found["hard_positions"] == 45
    assert [row["rank"] for row in found["ranks"]] == ["1", "2", "3", "not kept"]


def test_nothing_to_tell_is_none() -> None:
    found = Distributions(9).to_json()
    assert found["positions"] == 0
    for name in ("entropy", "kept_mass", "ranks", "calibration", "perplexity"):
        assert found[name] is None


def test_a_histogram_counts_what_lies_beyond_its_ends_in_the_outer_bins() -> None:
    found = Histogram(0.0, 1.0, bins=4)
    found.add(np.array([-np.inf, 0.1, 0.3, 0.99, 7.0]))
    assert found.counts == [2, 1, 0, 2]
    assert found.edges == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.mean == pytest.approx((0 + 0.1 + 0.3 + 0.99 + 1) / 5)
    assert found.quantile(0.5) == pytest.approx(0.3, abs=1 / 80)

"""TopP and Dense against what a dense softmax gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import softlabels as sl
from softlabels.errors import InputError

TEMPERATURES = (1.0, 2.0, 0.5)


def some_logits(rows: int = 40, classes: int = 200) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 3


def hard_labels(rows: int) -> Tensor:
    return torch.arange(rows) - 1


@pytest.mark.parametrize(("p", "max_k"), [(0.5, 64), (0.9, 64), (0.9, 8), (1.0, 5), (1e-9, 5)])
def test_top_p_keeps_the_fewest_classes_that_reach_p(p: float, max_k: int) -> None:
    logits = some_logits()
    found = sl.TopP(p, max_k)(logits, hard_labels(40), temperatures=TEMPERATURES)
    probs, order = logits.double().softmax(-1).sort(-1, descending=True)
    for row in range(40):
        needed = int((probs[row].cumsum(-1) < p).sum()) + 1
        kept = min(needed, max_k)
        used = found.log_probs[row] > -math.inf
        assert int(used.sum()) == kept
        assert found.ids[row][used].tolist() == order[row, :kept].tolist()
        assert (found.ids[row][~used] == 0).all()


def test_top_p_tails_hold_the_mass_of_every_other_class_at_every_temperature() -> None:
    logits = some_logits()
    found = sl.TopP(0.8, 16)(logits, hard_labels(40), temperatures=TEMPERATURES)
    assert found.log_tails is not None
    for place, temperature in enumerate(TEMPERATURES):
        probs = (logits.double() / temperature).softmax(-1)
        kept = torch.zeros_like(probs).bool()
        kept.scatter_(-1, found.ids.where(found.log_probs > -math.inf, found.ids[:, :1]), True)
        expected = probs.masked_fill(kept, 0).sum(-1).log()
        torch.testing.assert_close(found.log_tails[:, place].double(), expected, rtol=0, atol=2e-5)


def test_top_p_of_one_is_top_k() -> None:
    logits = some_logits()
    found = sl.TopP(1.0, 16)(logits, hard_labels(40), temperatures=(1.0,))
    top = sl.TopK(16)(logits, hard_labels(40), temperatures=(1.0,))
    assert torch.equal(found.ids, top.ids)
    assert torch.equal(found.log_probs, top.log_probs)


@pytest.mark.parametrize("p", [0, -0.1, 1.01, math.nan, "a"])
def test_a_mass_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(InputError, match="p is"):
        sl.TopP(p)


def test_top_p_of_more_classes_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="more than the teacher's 10 classes"):
        sl.TopP(0.9, 11)(some_logits(2, 10), hard_labels(2), temperatures=())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_is_the_log_softmax_of_all_classes(dtype: torch.dtype) -> None:
    logits = some_logits().to(dtype)
    found = sl.Dense()(logits, hard_labels(40), temperatures=TEMPERATURES)
    expected = logits.double().log_softmax(-1)
    assert (found.ids == torch.arange(200)).all()
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(found.logits, logits)
    assert (found.log_tails == -math.inf).all()
    hard = expected.gather(-1, hard_labels(40).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.hard_log_probs[1:].double(), hard[1:], rtol=0, atol=1e-5)
    assert found.hard_log_probs[0].isnan()


def test_one_row_of_dense_labels_is_the_same_row_among_others() -> None:
    logits = some_logits(8, 50_000)
    together = sl.Dense()(logits, hard_labels(8), temperatures=())
    alone = sl.Dense()(logits[3:4], hard_labels(8)[3:4], temperatures=())
    assert torch.equal(alone.log_probs[0], together.log_probs[3])


def test_dense_for_another_number_of_classes_is_refused() -> None:
    with pytest.raises(InputError, match="for 11 classes and the teacher has 10"):
        sl.Dense(11)(some_logits(2, 10), hard_labels(2), temperatures=())


def test_classes_that_reach_p_exactly_are_not_joined_by_one_more() -> None:
    halves = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125]).log()
    for logits, p, kept in (
        (halves, 0.5, 1), (halves, 0.75, 2), (halves, 0.875, 3),
        (torch.zeros(8), 0.5, 4), (torch.zeros(8), 0.125, 1), (torch.zeros(8), 1.0, 8),
    ):  # fmt: skip
        found = sl.TopP(p, len(logits))(logits.unsqueeze(0), hard_labels(1), temperatures=(1.0,))
        assert int((found.log_probs > -math.inf).sum()) == kept

"""reduce: every position weighs the same, however a batch was cut."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from softlabels import TopK
from softlabels.errors import InputError
from softlabels.losses import kl_divergence, reduce

LOSS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[True, False, True], [False, True, False]])


def test_the_mean_is_over_the_places_where_the_mask_is_true() -> None:
    assert reduce(LOSS, MASK) == 7
    assert reduce(LOSS) == 10.5
    assert reduce(torch.tensor(3.0)) == 3


@pytest.mark.parametrize("positions", [21, torch.tensor(21), torch.tensor(21.0)])
def test_given_positions_divide_in_place_of_the_mask(positions: Tensor | int) -> None:
    assert reduce(LOSS, MASK, positions=positions) == 1
    assert reduce(LOSS, positions=positions) == 3


def test_fewer_positions_than_ranks_may_be_a_fraction() -> None:
    assert reduce(LOSS, MASK, positions=torch.tensor(0.5)) == 42


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_the_mask_leaves_out_is_not_read(garbage: float) -> None:
    loss = LOSS.masked_fill(~MASK, garbage).requires_grad_()
    found = reduce(loss, MASK)
    assert found == 7
    found.backward()
    assert loss.grad is not None
    torch.testing.assert_close(loss.grad, MASK / 3)


@pytest.mark.parametrize("positions", [None, 0, torch.tensor(0), torch.tensor(0.0)])
def test_nothing_that_counts_gives_zero_and_no_gradient(positions: Tensor | int | None) -> None:
    loss = LOSS.clone().requires_grad_()
    found = reduce(loss, torch.zeros_like(MASK), positions=positions)
    assert found == 0
    found.backward()
    assert loss.grad is not None
    assert (loss.grad == 0).all()
    assert reduce(torch.empty(0), positions=positions) == 0
    assert reduce(torch.empty(2, 0), torch.empty(2, 0, dtype=torch.bool), positions=positions) == 0


def test_a_mask_of_another_shape_is_refused_even_if_it_could_be_spread() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\).*\(1, 3\)"):
        reduce(LOSS, MASK[:1])


@pytest.mark.parametrize("positions", [-2, -0.5, math.nan, torch.tensor(-1)])
def test_what_is_no_count_of_positions_is_refused(positions: Any) -> None:
    with pytest.raises(InputError, match=r"positions is (-|nan)"):
        reduce(LOSS, MASK, positions=positions)


def test_micro_batches_under_the_steps_positions_add_up_to_the_whole_batch() -> None:
    torch.manual_seed(0)
    teacher, hidden = torch.randn(6, 5, 30), torch.randn(6, 5, 8, dtype=torch.float64)
    labels = TopK(4)(teacher.view(30, 30), torch.full((30,), -1), temperatures=(1.0,))
    labels = labels.map(lambda t: t.unflatten(0, (6, 5)))
    mask = torch.rand(6, 5) < 0.5
    mask[4] = False  # a micro-batch may have nothing to learn
    head = torch.nn.Linear(8, 30, dtype=torch.float64)

    def gradient(cuts: list[int], positions: Tensor | None) -> tuple[Tensor, Tensor]:
        head.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for start, stop in pairwise(cuts):
            loss = kl_divergence(head(hidden[start:stop]), labels[start:stop])
            part = reduce(loss, mask[start:stop], positions=positions)
            part.backward()
            total += part.detach()
        assert head.weight.grad is not None
        return total, head.weight.grad.clone()

    whole = gradient([0, 6], None)
    for cuts in ([0, 1, 4, 5, 6], [0, 5, 6], list(range(7))):
        torch.testing.assert_close(gradient(cuts, mask.sum()), whole)

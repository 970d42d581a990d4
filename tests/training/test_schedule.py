"""Learning rate and mix, step by step."""

from __future__ import annotations

import math

import pytest

from softlabels.training import LossRecipe, OptimizerRecipe
from softlabels.training.schedule import hard_weight, learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    recipe = OptimizerRecipe(lr=2.0, **fields)  # type: ignore[arg-type]
    return [learning_rate(recipe, step, steps) for step in range(steps)]


def test_each_schedule_warms_up_and_falls_as_its_name_says() -> None:
    assert rates(4, schedule="constant", warmup=0) == [2.0] * 4
    assert rates(8, schedule="constant", warmup=0.5) == [0.5, 1, 1.5, 2, 2, 2, 2, 2]
    assert rates(6, schedule="linear", warmup=1 / 3) == [1, 2, 2, 1.5, 1, 0.5]
    assert rates(4, schedule="linear", warmup=0, final=0.5) == [2, 1.75, 1.5, 1.25]
    assert rates(8, schedule="wsd", warmup=0.25, decay=0.5) == [1, 2, 2, 2, 2, 1.5, 1, 0.5]
    cosine = rates(4, schedule="cosine", warmup=0)
    assert cosine == pytest.approx([1 + math.cos(math.pi * i / 4) for i in range(4)])


def test_no_step_is_without_a_rate() -> None:
    for schedule in ("constant", "linear", "cosine", "wsd"):
        for steps in (1, 2, 3, 7):
            assert min(rates(steps, schedule=schedule, warmup=0.5, decay=0.5)) > 0


def weights(steps: int, **fields: object) -> list[float]:
    recipe = LossRecipe(**fields)  # type: ignore[arg-type]
    return [hard_weight(recipe, step, steps) for step in range(steps)]


def test_the_mix_goes_from_its_first_weight_to_its_last() -> None:
    assert weights(3, hard_weight=0.25) == [0.25] * 3
    assert weights(2, name="ce") == [1.0] * 2
    ends = {"hard_weight": 1.0, "hard_weight_end": 0.0}
    assert weights(5, **ends, hard_weight_schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    cosine = weights(5, **ends, hard_weight_schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)])
    assert weights(1, **ends, hard_weight_schedule="linear") == [1.0]

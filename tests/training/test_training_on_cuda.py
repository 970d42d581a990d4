"""Training on a GPU: both ways to the loss, in bfloat16, and a run that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.training import LossRecipe, TrainRecipe, loop, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("through", ["hidden", "logits"])
def test_a_gpu_learns_what_a_cpu_learns(
    labels: sl.LabelSet, recipe: TrainRecipe, tmp_path: Path, autocast: bool, through: Any
) -> None:
    assert recipe.student is not None
    assert recipe.student.config is not None
    student = replace(recipe.student, config={**recipe.student.config, "attention_dropout": 0.0})
    recipe = replace(
        recipe, student=student, steps=40, loss=LossRecipe(hard_weight=0.3, through=through)
    )
    slow = train(labels, recipe=recipe, out=tmp_path / "cpu")
    fast = train(labels, recipe=replace(recipe, device="cuda", autocast=autocast),
                 out=tmp_path / "cuda")  # fmt: skip
    assert slow.after is not None
    assert fast.after is not None
    assert fast.after.kl == pytest.approx(slow.after.kl, rel=0.1 if autocast else 0.02)


def test_a_run_that_died_goes_on(
    labels: sl.LabelSet, recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, device="cuda")
    real, counted = loop.take_step, iter(range(1000))

    def dying(*args: Any, **options: Any) -> Any:
        if next(counted) == 7:
            raise KeyboardInterrupt
        return real(*args, **options)

    whole = train(labels, recipe=recipe, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(labels, recipe=recipe, out=tmp_path / "run")
    before = torch.cuda.get_rng_state()
    result = train(labels, recipe=recipe, out=tmp_path / "run")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert result.after is not None
    assert whole.after is not None
    # Dropout and order are the same; sums on a GPU may be taken in another order.
    assert result.after.kl == pytest.approx(whole.after.kl, rel=1e-3)

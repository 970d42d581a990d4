"""Learning rate and mix at a step: pure functions of the step and the recipe."""

from __future__ import annotations

import math

from softlabels.training.recipe import LossRecipe, OptimizerRecipe


def learning_rate(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        step: from 0 on.
        steps: of the whole run.
    """
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    first = warm
    if recipe.schedule == "wsd":
        first = max(warm, steps - round(recipe.decay * steps))
    if recipe.schedule == "constant" or step < first:
        return recipe.lr
    # The last step still learns: the end would be at `steps`, one after it.
    gone = (step - first) / (steps - first)
    left = (1 + math.cos(math.pi * gone)) / 2 if recipe.schedule == "cosine" else 1 - gone
    return recipe.lr * (recipe.final + (1 - recipe.final) * left)


def hard_weight(recipe: LossRecipe, step: int, steps: int) -> float:
    """The weight of the cross-entropy on hard labels at a step, 0 to 1; see `LossRecipe`."""
    if recipe.name == "ce":
        return 1.0
    end = recipe.hard_weight_end
    if end is None:
        return recipe.hard_weight
    gone = step / max(1, steps - 1)
    if recipe.hard_weight_schedule == "cosine":
        gone = (1 - math.cos(math.pi * gone)) / 2
    return (1 - gone) * recipe.hard_weight + gone * end

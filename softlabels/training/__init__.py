"""A small trainer of students, for experiments: losses, mixes, k and seeds on one label set.

    from softlabels.training import LossRecipe, TrainRecipe, train

    recipe = TrainRecipe(loss=LossRecipe(name="kl", temperature=2.0), epochs=3)
    result = train("labels/docs", recipe=recipe, out="runs/kl-2")
    result.after.kl, result.after.top1_agreement

The same call goes on after a crash, to the bit on a CPU. For loops of other libraries see
docs/TRAINING.md.
"""

from softlabels.training.evaluate import Evaluation, evaluate
from softlabels.training.recipe import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    TrainRecipe,
)
from softlabels.training.run import Trained, train
from softlabels.training.step import DivergedError

__all__ = [
    "DataRecipe",
    "DivergedError",
    "Evaluation",
    "LossRecipe",
    "OptimizerRecipe",
    "StudentRecipe",
    "TrainRecipe",
    "Trained",
    "evaluate",
    "train",
]

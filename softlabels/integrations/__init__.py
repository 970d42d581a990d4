"""The loader inside other people's training loops.

`Steps` is what a loop takes in place of a dataloader. `softlabels.integrations.transformers` has a
Trainer and `softlabels.integrations.accelerate` a `prepare`, each importing what it is for;
docs/TRAINING.md shows all of them.
"""

from softlabels.integrations.steps import Steps
from softlabels.integrations.tensors import from_tensors, to_tensors

__all__ = ["Steps", "from_tensors", "to_tensors"]

"""Losses: pure functions on student logits and SoftLabels, unreduced."""

from softlabels.losses.divergences import kl_divergence
from softlabels.losses.hard import cross_entropy, next_tokens
from softlabels.losses.reduction import reduce

__all__ = ["cross_entropy", "kl_divergence", "next_tokens", "reduce"]

"""Losses: pure functions on what a student gives and labels of its kind, unreduced."""

from softlabels.losses.binary import binary_cross_entropy, binary_kl_divergence
from softlabels.losses.decoupled import decoupled_kl_divergence
from softlabels.losses.divergences import (
    js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    soft_cross_entropy,
    total_variation,
)
from softlabels.losses.embeddings import cosine_distance, similarity_mse, vector_mse
from softlabels.losses.hard import cross_entropy, next_tokens
from softlabels.losses.linear import linear_kl_divergence
from softlabels.losses.logits import logit_mse
from softlabels.losses.reduction import reduce

__all__ = [
    "binary_cross_entropy",
    "binary_kl_divergence",
    "cosine_distance",
    "cross_entropy",
    "decoupled_kl_divergence",
    "js_divergence",
    "kl_divergence",
    "linear_kl_divergence",
    "logit_mse",
    "next_tokens",
    "reduce",
    "reverse_kl_divergence",
    "similarity_mse",
    "soft_cross_entropy",
    "total_variation",
    "vector_mse",
]

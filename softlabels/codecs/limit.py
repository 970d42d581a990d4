"""How few bytes labels could take: a lower bound, so that anyone sees how far from it a set is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs.compact import scale_of
from softlabels.codecs.curves import prob_codes
from softlabels.codecs.ranks import less_floor
from softlabels.labels import SoftLabels


@dataclass(frozen=True)
class Limit:
    """Bytes a position that no code falls below which takes its symbols one by one.

    Attributes:
        ids: order-0 entropy of the *set* of ids: Σ over entries of −log₂ (frequency of the id),
            less log₂ k! for the order that is not kept.
        values: order-0 entropy of the value codes of `compact`, less their floor, and of the
            floors.
    """

    ids: float
    values: float

    @property
    def total(self) -> float:
        """Of ids and values."""
        return self.ids + self.values


def limit(labels: SoftLabels, *, scale: int | None = None) -> Limit:
    """The limit of labels of batch shape (positions,).

    Frequencies are those of the labels themselves, so of a small sample it is too low: of N
    entries of n different ids by n / 2N nats an entry.

    Args:
        scale: of the value codes; that of `compact` for this k by default.
    """
    used = labels.log_probs > -torch.inf
    counts = used.sum(-1)
    ids = labels.ids[used].numpy()
    scale = scale_of(labels.k) if scale is None else scale
    codes = prob_codes(labels.log_probs[used].numpy(), scale)
    codes, floors = less_floor(codes, counts.numpy())
    orders = torch.lgamma(counts.double() + 1).sum().item() / np.log(2)
    positions = max(1, len(labels))
    return Limit(
        ids=(_bits(ids) - orders) / 8 / positions,
        values=(_bits(codes) + _bits(floors)) / 8 / positions,
    )


def _bits(symbols: NDArray[Any]) -> float:
    """Order-0 entropy of all symbols together, in bits."""
    _, counts = np.unique(symbols, return_counts=True)
    return float((counts * np.log2(len(symbols) / counts)).sum()) if len(symbols) else 0.0

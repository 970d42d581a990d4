"""How few bytes labels could take: a lower bound, so that anyone sees how far from it a set is."""

from __future__ import annotations

import math
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
        ids: order-0 entropy of the *set* of ids, of which class v is one with its frequency π:
            Σ h(π) + log₂ P(k), with h the entropy of a coin and P(k) the probability that k coins
            of these show it. For k ≪ V it is k · H(ids) − log₂ k!; for equal π, log₂ C(V, k).
        values: order-0 entropy of the value codes of `compact`, less their floor, and of the
            floors.
    """

    ids: float
    values: float

    @property
    def total(self) -> float:
        """Of ids and values."""
        return self.ids + self.values


def limit(labels: SoftLabels) -> Limit:
    """The limit of labels of batch shape (positions,).

    Frequencies are those of the labels themselves, so of a small sample it is too low: of N
    entries of n different ids by n / 2N nats an entry.
    """
    used = labels.log_probs > -torch.inf
    counts = used.sum(-1)
    ids = labels.ids[used].numpy()
    codes = prob_codes(labels.log_probs[used].numpy(), scale_of(labels.k))
    codes, floors = less_floor(codes, counts.numpy())
    positions = max(1, len(labels))
    return Limit(
        ids=_set_bits(ids, positions) / 8,
        values=(_bits(codes) + _bits(floors)) / 8 / positions,
    )


def _set_bits(ids: NDArray[np.int64], positions: int) -> float:
    """Order-0 entropy of one position's set of ids, in bits."""
    if not len(ids):
        return 0.0
    _, found = np.unique(ids, return_counts=True)
    share, kept = found / positions, len(ids) / positions
    absent = 1 - share[share < 1]
    bits = -(share * np.log2(share)).sum() - (absent * np.log2(absent)).sum()
    # Poisson's, narrower as the coins are less even: to a hundredth of a bit for any k and V.
    poisson = kept * math.log(kept) - kept - math.lgamma(kept + 1)
    narrower = 1 - (share * share).sum() / kept
    number = poisson - math.log(narrower) / 2 if narrower > 1e-9 else 0.0
    return float(bits + min(0.0, number) / math.log(2))


def _bits(symbols: NDArray[Any]) -> float:
    """Order-0 entropy of all symbols together, in bits."""
    _, counts = np.unique(symbols, return_counts=True)
    return float((counts * np.log2(len(symbols) / counts)).sum()) if len(symbols) else 0.0

"""What a teacher believes at each position, in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import MissingTailError
from softlabels.labels import SoftLabels
from softlabels.looking.alignment import of_tokens
from softlabels.looking.histogram import Histogram
from softlabels.training.evaluate import BINS, likeliest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Less is drawn as this.
LEAST_LOG_PROB = -20.0
LEAST_LOG10_TAIL = -8.0
_ROUNDED = 0.5


@dataclass(frozen=True)
class Beliefs:
    """Of n labelled positions; NaN where something is not known.

    Attributes:
        first: the first guess, (n,).
        first_probs: its probability.
        entropy: in nats, the classes not kept counted as one, so that it is a lower bound; NaN
            where the tail at T = 1 is not known, and of sampled labels.
        kept: mass of the kept classes; NaN of sampled labels.
        tail: mass of the others.
        hard_log_probs: of the hard label, as it was stored.
        ranks: of the hard label among the kept classes, from 1; 0 where it is not among them, or
            there is none. Of equal log-probs the better rank.
        right: whether the first guess is the hard label; False where there is none.
        known: whether there is a hard label.
    """

    first: Ints
    first_probs: Floats
    entropy: Floats
    kept: Floats
    tail: Floats
    hard_log_probs: Floats
    ranks: Ints
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]


def beliefs(labels: SoftLabels, hard: Ints | None) -> Beliefs:
    """Of labels of batch shape (n,).

    Args:
        hard: the hard labels, (n,), −1 where there is none. Where they are None, the kept class
            whose log-prob comes nearest to the stored one of the hard label is taken for it.
    """
    log_probs = labels.log_probs.double()
    probs = log_probs.exp()
    if labels.hard_log_probs is None:
        stored = torch.full((len(labels),), math.nan, dtype=torch.float64)
    else:
        stored = labels.hard_log_probs.double()
    first = likeliest(labels)
    known = ~stored.isnan()
    if hard is None:
        reference = _nearest(log_probs, stored)
        right = reference == log_probs.amax(-1)
    else:
        wanted = torch.from_numpy(hard)
        known &= wanted >= 0
        reference = of_tokens(labels, wanted).double()
        right = first == wanted
    ranks = 1 + (log_probs > reference.unsqueeze(-1)).sum(-1)
    ranks = ranks.masked_fill((reference == -torch.inf) | ~known, 0)
    entropy, kept, tail = _masses(labels, log_probs, probs)
    return Beliefs(
        first=first.numpy(),
        first_probs=probs.amax(-1).numpy(),
        entropy=entropy.numpy(),
        kept=kept.numpy(),
        tail=tail.numpy(),
        hard_log_probs=stored.numpy(),
        ranks=ranks.numpy(),
        right=(right & known).numpy(),
        known=known.numpy(),
    )


def _nearest(log_probs: Tensor, stored: Tensor) -> Tensor:
    """The kept log-prob nearest to the stored one, (n,); −∞ where that lies below all of them."""
    place = (log_probs - stored.unsqueeze(-1)).abs().nan_to_num(torch.inf).argmin(-1, keepdim=True)
    nearest = log_probs.gather(-1, place).squeeze(-1)
    # Codecs of a byte an entry round by less.
    return nearest.masked_fill(stored < nearest - _ROUNDED, -torch.inf)


def _masses(labels: SoftLabels, log_probs: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, kept mass and tail mass, each (n,)."""
    unknown = torch.full((len(labels),), math.nan, dtype=torch.float64)
    if labels.sampled:
        return unknown, unknown, unknown
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    kept = probs.sum(-1)
    try:
        log_tail = labels.log_tail(1.0).double()
    except MissingTailError:
        return unknown, kept, unknown
    tail = log_tail.exp()
    return entropy - torch.special.xlogy(tail, tail), kept, tail


class Distributions:
    """Histograms of beliefs, and how well they are calibrated against the hard labels.

    Args:
        classes: V.
    """

    def __init__(self, classes: int) -> None:
        self.entropy = Histogram(0.0, math.log(max(2, classes)))
        self.kept = Histogram(0.0, 1.0)
        self.log10_tail = Histogram(LEAST_LOG10_TAIL, 0.0)
        self.hard_log_probs = Histogram(LEAST_LOG_PROB, 0.0)
        # Place 0 is for hard labels that were not kept.
        self._ranks = np.zeros(2, np.int64)
        self._bins = np.zeros((3, BINS))
        self._surprise, self.positions = 0.0, 0

    def add(self, found: Beliefs, k: int) -> None:
        """Count some positions, k classes kept at each."""
        self.positions += len(found.first)
        self.entropy.add(_known(found.entropy))
        self.kept.add(_known(found.kept))
        with np.errstate(divide="ignore"):
            self.log10_tail.add(np.log10(_known(found.tail)))
        hard = found.hard_log_probs[found.known]
        self.hard_log_probs.add(hard)
        self._surprise -= float(hard.sum())
        counts = np.bincount(found.ranks[found.known], minlength=max(2, k + 1))
        if len(counts) > len(self._ranks):
            counts, self._ranks = self._ranks, counts
        self._ranks[: len(counts)] += counts
        confidence = np.minimum(found.first_probs[found.known], 1.0)
        place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        for row, weights in enumerate((None, confidence, found.right[found.known])):
            self._bins[row] += np.bincount(place, weights, minlength=BINS)

    @property
    def hard_positions(self) -> int:
        """How many have a hard label."""
        return int(self._ranks.sum())

    def ranks(self) -> list[dict[str, Any]]:
        """How often the hard label has each rank, in steps that double: 1, 2, 3 to 4 …"""
        rows, low, last = [], 1, len(self._ranks) - 1
        while low <= last:
            high = min(last, 1 if low == 1 else 2 * (low - 1))
            name = f"{low}" if low == high else f"{low}–{high}"
            rows.append({"rank": name, "count": int(self._ranks[low : high + 1].sum())})
            low = high + 1
        rows.append({"rank": "not kept", "count": int(self._ranks[0])})
        return rows

    def calibration(self) -> dict[str, Any]:
        """Of the first guess against the hard label: Guo et al., ICML 2017, with 15 equal bins.

        The expected calibration error is Σ share · |mean confidence − share that is right|.
        """
        size, confidence, right = self._bins
        total = size.sum()
        return {
            "expected_calibration_error": _share(float(np.abs(confidence - right).sum()), total),
            "confidence": _share(float(confidence.sum()), total),
            "accuracy": _share(float(right.sum()), total),
            "bins": [
                {"count": int(n), "confidence": float(c / n), "accuracy": float(r / n)}
                for n, c, r in zip(size, confidence, right, strict=True)
                if n
            ],
        }

    def to_json(self) -> dict[str, Any]:
        """All of it; None for what the set does not tell."""
        hard, surprise = self.hard_positions, None
        if hard:
            surprise = self._surprise / hard
        return {
            "positions": self.positions,
            "hard_positions": hard,
            "mean_surprise": surprise,
            "perplexity": math.exp(surprise) if surprise is not None and surprise < 700 else None,
            "entropy": _json(self.entropy),
            "kept_mass": _json(self.kept),
            "log10_tail_mass": _json(self.log10_tail),
            "hard_log_probs": _json(self.hard_log_probs),
            "ranks": self.ranks() if hard else None,
            "calibration": self.calibration() if hard else None,
        }


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _share(part: float, of: float) -> float:
    return part / of if of else math.nan


def _json(histogram: Histogram) -> dict[str, Any] | None:
    return histogram.to_json() if histogram.count else None

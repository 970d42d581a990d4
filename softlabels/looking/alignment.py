"""Whether labels stand at the positions that the set says: a label one off trains to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import MissingTailError
from softlabels.format.plan import Plan
from softlabels.format.records import Records
from softlabels.labels import SoftLabels
from softlabels.looking.blocks import following

SHIFTS = (-1, 0, 1)
# A better shift than the next best one is believed from here on: a teacher that knows anything at
# all is better by whole nats, and one of random weights by none.
_LEAST_GAIN, _LEAST_Z = 0.1, 5.0
# Where the hard label is kept, its log-prob stands twice, in codes that are coarser for entries.
_SAME_PROB, _SAME_SHARE = 0.05, 0.99

Verdict = Literal["aligned", "token before", "token after", "hard labels differ", "cannot tell"]


@dataclass(frozen=True)
class Alignment:
    """How well labels fit tokens one place on, where the set says, and one place back.

    Attributes:
        positions: where all three tokens are known.
        log_probs: mean log-prob in nats of the token at each of `SHIFTS`; a class that was not
            kept has an equal share of the tail.
        kept: share of these tokens that are kept classes.
        first: share of them that are the first guess.
        hard_agrees: where the token is a kept class, how often its log-prob is the one that was
            stored of the hard label; None where there is none.
        verdict: "token before" or "token after" where labels speak of the neighbour of the token
            that they should speak of; "cannot tell" where no shift is clearly best.
    """

    positions: int
    log_probs: tuple[float, float, float]
    kept: tuple[float, float, float]
    first: tuple[float, float, float]
    hard_agrees: float | None
    verdict: Verdict

    @property
    def words(self) -> str:
        """The verdict, and what to do."""
        return _WORDS[self.verdict]


_WORDS: dict[Verdict, str] = {
    "aligned": "Labels stand where they should: no other shift fits the tokens as well.",
    "token before": "Labels speak of the token before the one that they should speak of, as those "
    "of prompt log-probs that were not shifted: each belongs one position nearer to the beginning.",
    "token after": "Labels speak of the token after the one that they should speak of: each "
    "belongs one position nearer to the end.",
    "hard labels differ": "Labels stand where they should, but the stored log-probs of hard labels "
    "are not those of the tokens that follow: they belong to other tokens.",
    "cannot tell": "No shift fits clearly better than the others: the teacher knows too little of "
    "these tokens, or there are too few of them.",
}


class AlignmentCheck:
    """Feeds on records, one block after another."""

    def __init__(self) -> None:
        self._count = 0
        self._sums = np.zeros((3, len(SHIFTS)))
        # Of pairs of shifts: differences of log-probs, and their squares.
        self._differences = np.zeros((2, len(SHIFTS), len(SHIFTS)))
        self._hard = np.zeros(2)

    def add(self, records: Records, plan: Plan) -> None:
        """Compare labels with the tokens around them; nothing where the set has no tokens."""
        targets = [following(records, plan, shift=shift) for shift in SHIFTS]
        if any(target is None for target in targets):
            return
        tokens = torch.from_numpy(np.stack([target for target in targets if target is not None]))
        there = (tokens >= 0).all(0)
        self.add_labels(records.soft[there], tokens[:, there])

    def add_labels(self, labels: SoftLabels, tokens: Tensor) -> None:
        """Compare labels of batch shape (n,) with tokens at each of `SHIFTS`, (3, n)."""
        if not len(labels):
            return
        others, best = _of_others(labels), labels.log_probs.amax(-1)
        fits = [of_tokens(labels, token) for token in tokens]
        kept = np.stack([(fit > -torch.inf).numpy() for fit in fits])
        first = np.stack([(fit == best).numpy() for fit in fits])
        log_probs = np.stack(
            [torch.where(fit > -torch.inf, fit.double(), others).numpy() for fit in fits]
        )
        self._count += len(labels)
        self._sums += [log_probs.sum(1), kept.sum(1), first.sum(1)]
        pairs = log_probs[:, None] - log_probs[None]
        self._differences += [pairs.sum(-1), (pairs * pairs).sum(-1)]
        if labels.hard_log_probs is not None and not labels.sampled:
            stored = labels.hard_log_probs.double().exp().numpy()
            both = kept[1] & ~np.isnan(stored)
            same = np.abs(np.exp(log_probs[1]) - stored) <= _SAME_PROB
            self._hard += [(same & both).sum(), both.sum()]

    def found(self) -> Alignment | None:
        """What came out; None where there was nothing to compare."""
        if not self._count:
            return None
        log_probs, kept, first = (tuple(row.tolist()) for row in self._sums / self._count)
        agrees = float(self._hard[0] / self._hard[1]) if self._hard[1] else None
        return Alignment(
            self._count, log_probs, kept, first, agrees, self._verdict(log_probs, agrees)
        )

    def _verdict(self, log_probs: Sequence[float], agrees: float | None) -> Verdict:
        best = max(range(len(SHIFTS)), key=lambda place: log_probs[place])
        for other in range(len(SHIFTS)):
            if other != best and not self._clearly(best, other):
                return "cannot tell"
        if SHIFTS[best]:
            return "token before" if SHIFTS[best] < 0 else "token after"
        return "hard labels differ" if agrees is not None and agrees < _SAME_SHARE else "aligned"

    def _clearly(self, one: int, other: int) -> bool:
        mean, square = self._differences[:, one, other] / self._count
        spread = math.sqrt(max(0.0, square - mean * mean) / self._count)
        return bool(mean >= _LEAST_GAIN and mean >= _LEAST_Z * spread)


def of_tokens(labels: SoftLabels, tokens: Tensor) -> Tensor:
    """The log-prob of each token, (n,); −∞ where it is not a kept class."""
    is_it = labels.ids == tokens.unsqueeze(-1)
    return labels.log_probs.masked_fill(~is_it, -torch.inf).amax(-1)


def _of_others(labels: SoftLabels) -> Tensor:
    """Log-prob of a class that was not kept, (n,): an equal share of the tail, at least e⁻³⁰."""
    try:
        tail = labels.log_tail(1.0).double()
    except MissingTailError:
        tail = torch.zeros(len(labels), dtype=torch.float64)
    classes = labels.classes or labels.k + 1
    left_out = (classes - (labels.log_probs > -torch.inf).sum(-1)).clamp(min=1)
    return (tail - left_out.double().log()).clamp(min=-30.0)

"""How values of labels that are no distributions over classes are spread."""

from __future__ import annotations

import math
from typing import Any

import torch

from softlabels.errors import KindError
from softlabels.format.plan import Plan
from softlabels.labels import BinaryLabels, Embeddings, Labels
from softlabels.looking.histogram import Histogram

# Powers of ten between which sums, floors and lengths are drawn.
_LEAST, _MOST = -4.0, 4.0
# Of a block's vectors, pairs of neighbours in this many steps: of all pairs there are too many.
_STEPS = 8


class Odds:
    """Histograms of independent classes.

    Args:
        classes: V.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.expected = Histogram(_LEAST, math.log10(max(10, classes)))
        self.first, self.floors = Histogram(0.0, 1.0), Histogram(2 * _LEAST, 0.0)
        self.positions = 0

    def add(self, labels: BinaryLabels) -> None:
        """Count some positions, (N,)."""
        self.positions += len(labels)
        probs = labels.log_odds.double().sigmoid()
        total = probs.sum(-1)
        if labels.floors is not None and 1.0 in labels.temperatures:
            floor = labels.floor(1.0).double().sigmoid()
            total = total + (self._classes - labels.k) * floor
            self.floors.add(floor.clamp(min=10 ** (2 * _LEAST)).log10().numpy())
        self.expected.add(total.clamp(min=10**_LEAST).log10().numpy())
        self.first.add(probs.amax(-1).numpy())

    def to_json(self) -> dict[str, Any]:
        """All of it; None for what the set does not tell."""
        return {
            "positions": self.positions,
            "log10_expected_labels": self.expected.to_json(),
            "first_probability": self.first.to_json(),
            "log10_floor": self.floors.to_json() if self.floors.count else None,
        }


class Lengths:
    """Histograms of vectors: their lengths, and how alike they are."""

    def __init__(self) -> None:
        self.lengths, self.cosines = Histogram(_LEAST, _MOST), Histogram(-1.0, 1.0)
        self.positions = 0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, labels: Embeddings) -> None:
        """Count some positions, (N,)."""
        self.positions += len(labels)
        vectors = labels.vectors.double()
        sums = vectors.sum(0), vectors.square().sum(0)
        held = self._sums
        self._sums = sums if held is None else (held[0] + sums[0], held[1] + sums[1])
        length = vectors.norm(dim=-1)
        self.lengths.add(length.clamp(min=10**_LEAST).log10().numpy())
        unit = vectors / length.clamp(min=1e-30).unsqueeze(-1)
        for step in range(1, min(_STEPS, len(unit) - 1) + 1):
            self.cosines.add((unit[step:] * unit[:-step]).sum(-1).clamp(-1, 1).numpy())

    def to_json(self) -> dict[str, Any]:
        """All of it; `constant_numbers` are those that no vector differs in."""
        constant = 0
        if self._sums is not None and self.positions:
            mean, squares = (each / self.positions for each in self._sums)
            constant = int((squares - mean.square() <= 1e-12 * squares).sum())
        return {
            "positions": self.positions,
            "log10_length": self.lengths.to_json(),
            "cosine": self.cosines.to_json() if self.cosines.count else None,
            "constant_numbers": constant,
        }


class Spreads:
    """Of one of these kinds, by a set's plan."""

    def __init__(self, plan: Plan) -> None:
        self._of = Odds(plan.teacher.classes) if plan.kind == "binary" else Lengths()

    @property
    def positions(self) -> int:
        """That were counted."""
        return self._of.positions

    def add(self, labels: Labels) -> None:
        """Count some positions, (N,)."""
        match self._of, labels:
            case (Odds() as odds, BinaryLabels()):
                odds.add(labels)
            case (Lengths() as lengths, Embeddings()):
                lengths.add(labels)
            case _:
                raise KindError(f"labels are {type(labels).__name__}, and their plan says another")

    def to_json(self) -> dict[str, Any]:
        """What was found."""
        return {"hard_positions": 0, "perplexity": None, "mean_surprise": None} | self._of.to_json()

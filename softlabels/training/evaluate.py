"""How good a student is on held-out labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from softlabels.errors import MissingTailError
from softlabels.labels import NO_LABEL, SoftLabels
from softlabels.losses import kl_divergence, soft_cross_entropy
from softlabels.training.forward import Student
from softlabels.training.objective import targets

BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Means over the labelled positions of held-out records; None where it cannot be known.

    Attributes:
        positions: labelled.
        hard_positions: those of them with a hard label.
        cross_entropy: of the student on the hard labels, nats.
        perplexity: its exponential.
        teacher_cross_entropy: the teacher's own on the same labels, as it was stored.
        kl: KL(teacher ‖ student) at T = 1, the classes not kept as one, nats. None for sampled
            labels, and where the tail at T = 1 was neither stored nor can be interpolated.
        kl_at: the same of both tempered distributions, by temperature (not multiplied by T²).
            Empty for sampled labels.
        top1_agreement: share of positions where both think the same class likeliest. None for
            sampled labels.
        soft_cross_entropy: of sampled labels alone: the unbiased estimate of −Σ p log q.
        calibration_error: of the student on the hard labels: mean distance of its confidence in
            its first guess from how often that is right, over 15 bins of confidence, 0 to 1. (Guo
            et al., "On calibration of modern neural networks", ICML 2017.)
    """

    positions: int
    hard_positions: int
    cross_entropy: float | None
    perplexity: float | None
    teacher_cross_entropy: float | None
    kl: float | None
    kl_at: Mapping[str, float]
    top1_agreement: float | None
    soft_cross_entropy: float | None
    calibration_error: float | None

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From a line of metrics.jsonl; what else it holds is left out."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


@torch.no_grad()
def evaluate(
    student: Student, batches: Iterable[Mapping[str, Any]], *, temperatures: Sequence[float] = ()
) -> Evaluation:
    """Run a student over held-out batches, a few rows of logits at a time.

    Args:
        batches: of a loader, on the student's device.
        temperatures: at which the KL is taken too.
    """
    model, was_training = student.model, student.model.training
    model.eval()
    sums = _Sums(temperatures, student.device)
    try:
        for batch in batches:
            found = targets(batch)
            mask = found.mask
            soft, hard = found.soft[mask], found.hard[mask]
            for rows, logits in student.rows(batch, mask):
                sums.add(logits, soft[rows], hard[rows])
    finally:
        model.train(was_training)
    return sums.means()


class _Sums:
    """Running sums, in float64, on the device until the end."""

    def __init__(self, temperatures: Sequence[float], device: torch.device) -> None:
        self._temperatures = [t for t in temperatures if t != 1.0]
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, soft: SoftLabels, hard: Tensor) -> None:
        """Logits (n, V), labels (n,) and hard labels (n,)."""
        known = hard != NO_LABEL
        first, guess = logits.max(-1)
        normaliser = logits.logsumexp(-1)
        chosen = logits.gather(-1, hard.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        self._sum("positions", torch.ones_like(known))
        self._sum("hard", known)
        self._sum("ce", torch.where(known, normaliser - chosen, 0))
        if soft.hard_log_probs is not None:
            told = known & ~soft.hard_log_probs.isnan()
            self._sum("told", told)
            self._sum("teacher", torch.where(told, -soft.hard_log_probs, 0))
        self._calibrate((first - normaliser).exp()[known], (guess == hard)[known])
        if soft.sampled:
            self._sum("soft_ce", soft_cross_entropy(logits, soft))
            return
        with suppress(MissingTailError):  # the set was made for other temperatures
            self._sum("kl", kl_divergence(logits, soft))
        self._sum("agreed", guess == likeliest(soft))
        for t in self._temperatures:
            self._sum(f"kl {t}", kl_divergence(logits, soft, temperature=t) / t**2)

    def _sum(self, name: str, values: Tensor) -> None:
        total = values.sum(dtype=torch.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def _calibrate(self, confidence: Tensor, right: Tensor) -> None:
        place = (confidence * BINS).long().clamp(0, BINS - 1)
        ones = torch.ones_like(confidence)
        values = torch.stack([ones, confidence, right.to(confidence.dtype)]).double()
        # By a matrix of places: adding at indices on a GPU would sum in any order.
        member = torch.nn.functional.one_hot(place, BINS).double()
        self._bins += values @ member

    def means(self) -> Evaluation:
        """The means."""
        sums = {name: float(total) for name, total in self._sums.items()}
        count, hard = int(sums.get("positions", 0)), int(sums.get("hard", 0))

        def mean(name: str, of: float) -> float | None:
            return sums[name] / of if name in sums and of else None

        ce = mean("ce", hard)
        size, confidence, right = self._bins.tolist()
        gaps = [abs(c - r) for c, r in zip(confidence, right, strict=True)]
        kl_at = {f"{t:g}": sums[f"kl {t}"] / count for t in self._temperatures if f"kl {t}" in sums}
        return Evaluation(
            positions=count,
            hard_positions=hard,
            cross_entropy=ce,
            perplexity=None if ce is None or ce > 700 else math.exp(ce),
            teacher_cross_entropy=mean("teacher", sums.get("told", 0)),
            kl=mean("kl", count),
            kl_at=kl_at,
            top1_agreement=mean("agreed", count),
            soft_cross_entropy=mean("soft_ce", count),
            calibration_error=sum(gaps) / sum(size) if sum(size) else None,
        )


def likeliest(labels: SoftLabels) -> Tensor:
    """The teacher's first guess, int64 (...): of equal ones the smallest id."""
    value = labels.log_probs if labels.logits is None else labels.logits
    value = value.masked_fill(labels.log_probs == -torch.inf, -torch.inf)
    best = value == value.amax(-1, keepdim=True)
    return labels.ids.masked_fill(~best, torch.iinfo(torch.int64).max).amin(-1)

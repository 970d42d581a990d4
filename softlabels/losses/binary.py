"""Losses on classes that are independent of each other: a sigmoid each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.labels import BinaryLabels
from softlabels.losses.buckets import checked_ids, result_dtype


def binary_kl_divergence(
    logits: Tensor, labels: BinaryLabels, *, temperature: float = 1.0
) -> Tensor:
    r"""Σ over the classes of KL(teacher ‖ student) in nats, each class a coin of its own.

        T² · Σ_j ( p_j log(p_j / q_j) + (1 − p_j) log((1 − p_j) / (1 − q_j)) ),  q_j = σ(z_j / T)

    with p_j = σ(log-odds_j / T) of a kept class, and of every other one the floor: their mean
    probability. So the sum of targets is the teacher's, and where it thinks little of the classes
    that were not kept, so does the student. The gradient is T (q_j − p_j).

    Args:
        logits: student, float, shape (..., V). Columns beyond `labels.classes` take no part.
        labels: teacher, batch shape (...).
        temperature: applied to both sides; one of `labels.temperatures`, or any where every class
            is kept.

    Returns:
        shape (...), float64 for float64 logits, else float32; 0 where `labels.mask` is false. Not
        averaged, because only the caller knows what to divide by: see `reduce`.

    Raises:
        MissingTailError: classes were left out, and their floor was not stored at this temperature.
        VocabularyMismatchError: a kept class is outside the student's V.
        InputError: shapes differ.
    """
    made = _Terms.of(logits, labels, temperature)
    return made.finished(made.cross_entropy() - made.entropy())


def binary_cross_entropy(
    logits: Tensor, labels: BinaryLabels, *, temperature: float = 1.0
) -> Tensor:
    r"""Σ over the classes of the cross-entropy with the teacher's probabilities, in nats.

        −T² · Σ_j ( p_j log q_j + (1 − p_j) log(1 − q_j) )

    `binary_kl_divergence` and the teacher's entropy, which has no gradient. Arguments, result and
    errors are those of it.
    """
    made = _Terms.of(logits, labels, temperature)
    return made.finished(made.cross_entropy())


class _Terms:
    """Both sides at a temperature, in the dtype of the result; masked positions are 0.

    Args:
        student: z / T, (..., V).
        kept: of these the kept classes', (..., k).
        teacher: log-odds / T of the kept classes, (..., k).
        floor: log-odds of each other one, (...); None where there is none.
        mask: see `BinaryLabels`.
        scale: T².
    """

    def __init__(
        self,
        student: Tensor,
        kept: Tensor,
        teacher: Tensor,
        *,
        floor: Tensor | None,
        mask: Tensor | None,
        scale: float,
    ) -> None:
        self._student, self._kept, self._teacher = student, kept, teacher
        self._floor, self._mask, self._scale = floor, mask, scale

    @classmethod
    def of(cls, logits: Tensor, labels: BinaryLabels, temperature: float) -> _Terms:
        if not 0 < temperature < torch.inf:
            raise InputError(f"temperature is {temperature:g}; it must be positive and finite")
        dtype, mask = result_dtype(logits), labels.mask
        classes = logits.shape[-1] if labels.classes is None else labels.classes
        ids = checked_ids(logits, labels.ids, mask)
        if logits.shape[-1] < classes:
            raise VocabularyMismatchError(
                f"the teacher has {classes} classes, the student's logits {logits.shape[-1]}; the "
                "student needs the teacher's classes"
            )
        student, odds = logits[..., :classes].to(dtype), labels.log_odds.to(dtype)
        floor = labels.floor(temperature).to(dtype) if labels.k < classes else None
        if mask is not None:
            student = torch.where(mask.unsqueeze(-1), student, 0)
            odds = torch.where(mask.unsqueeze(-1), odds, 0)
            floor = None if floor is None else torch.where(mask, floor, 0)
        student = student / temperature
        return cls(
            student,
            student.gather(-1, ids),
            odds / temperature,
            floor=floor,
            mask=mask,
            scale=temperature**2,
        )

    def cross_entropy(self) -> Tensor:
        """Σ softplus(z) − p z, (...), float64: of thousands of classes rounding would add up."""
        wide = torch.float64
        found = softplus(self._student).sum(-1, dtype=wide)
        found = found - (self._teacher.sigmoid() * self._kept).sum(-1, dtype=wide)
        if self._floor is None:
            return found
        others = self._student.sum(-1, dtype=wide) - self._kept.sum(-1, dtype=wide)
        return found - self._floor.sigmoid() * others

    def entropy(self) -> Tensor:
        """Σ softplus(a) − p a over the teacher's log-odds a, (...), float64."""
        found = _entropy(self._teacher).sum(-1, dtype=torch.float64)
        if self._floor is None:
            return found
        others = self._student.shape[-1] - self._kept.shape[-1]
        return found + others * _entropy(self._floor).double()

    def finished(self, nats: Tensor) -> Tensor:
        """The loss of each position."""
        found = (self._scale * nats).to(self._student.dtype)
        return found if self._mask is None else torch.where(self._mask, found, 0)


def _entropy(log_odds: Tensor) -> Tensor:
    return softplus(log_odds) - log_odds.sigmoid() * log_odds

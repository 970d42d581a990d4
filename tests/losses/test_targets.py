"""What every loss makes of a teacher's labels, the odd ones too."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from dense import label, normal
from torch import Tensor

from softlabels import SoftLabels, losses
from softlabels.errors import InputError

HARD = torch.zeros(2, 3, dtype=torch.long)


def head_loss(logits: Tensor, labels: SoftLabels) -> Tensor:
    return losses.linear_kl_divergence(logits, torch.eye(9, dtype=logits.dtype), labels)


LOSSES: dict[str, Any] = {
    "kl": losses.kl_divergence,
    "reverse": losses.reverse_kl_divergence,
    "js": losses.js_divergence,
    "variation": losses.total_variation,
    "cross": losses.soft_cross_entropy,
    "renormalised": lambda z, y: losses.kl_divergence(z, y, tail="renormalised"),
    "mse": losses.logit_mse,
    "decoupled": lambda z, y: losses.decoupled_kl_divergence(z, y, HARD[: len(z)]),
    "linear": head_loss,
    "sampled": lambda z, y: losses.soft_cross_entropy(
        z, SoftLabels(ids=y.ids, log_probs=y.log_probs, mask=y.mask, sampled=True)
    ),
}


def both(loss: Any, logits: Tensor, labels: SoftLabels) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient."""
    logits = logits.detach().requires_grad_()
    found = loss(logits, labels)
    return found.detach(), torch.autograd.grad(found.sum(), logits)[0]


def known_hard(labels: SoftLabels) -> SoftLabels:
    return dataclasses.replace(labels, hard_log_probs=torch.full((2, 3), -3.0))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("elsewhere", [-1, 10**9])
def test_the_class_of_an_unused_entry_is_not_read(name: str, elsewhere: int) -> None:
    logits, labels = normal(2, 3, 9, seed=1), known_hard(label(normal(2, 3, 9), 3))
    # Where an unread class stands in for it, nothing need be finite.
    logits[..., 0] = -math.inf if name == "sampled" else 0.0
    labels.ids[labels.ids == 0] = 8
    more = torch.full((2, 3, 1), -math.inf, dtype=torch.float64)
    wider = dataclasses.replace(
        labels,
        ids=torch.cat([labels.ids, torch.full((2, 3, 1), elsewhere)], -1),
        log_probs=torch.cat([labels.log_probs, more], -1),
    )
    for found, expected in zip(
        both(LOSSES[name], logits, wider), both(LOSSES[name], logits, labels), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_position_without_a_class_is_refused_with_its_place_unless_it_is_masked(
    name: str,
) -> None:
    logits, labels = normal(2, 3, 9, seed=1), known_hard(label(normal(2, 3, 9), 3))
    labels.log_probs[1, 2] = -math.inf
    with pytest.raises(InputError, match=r"position \[1, 2\] have no class.* labels.mask"):
        LOSSES[name](logits, labels)
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    loss, gradient = both(LOSSES[name], logits, dataclasses.replace(labels, mask=mask))
    assert loss.isfinite().all()
    assert not loss[1, 2]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("tail", ["rest", "renormalised", "uniform"])
def test_a_temperature_that_is_none_is_refused(temperature: float, tail: Any) -> None:
    with pytest.raises(ValueError, match=f"temperature.* {temperature:g}"):
        losses.kl_divergence(
            normal(2, 3, 9), label(normal(2, 3, 9), 3), temperature=temperature, tail=tail
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes", [None, 9])
def test_labels_made_by_hand_whose_rounded_mass_is_1_leave_the_student_a_rest(
    dtype: torch.dtype, classes: int | None
) -> None:
    teacher = torch.zeros(2, 3, 9, dtype=torch.float64)
    teacher[..., 0] = 60.0
    values, ids = torch.log_softmax(teacher, -1).topk(2)
    labels = SoftLabels(ids=ids, log_probs=values.to(dtype), classes=classes)
    assert (labels.log_probs.double().exp().sum(-1) == 1).all()
    logits = normal(2, 3, 9, seed=1).to(dtype)
    loss, gradient = both(losses.reverse_kl_divergence, logits, labels)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    # The logits of the rest are to fall, as the teacher has next to nothing there.
    assert (gradient[..., 2:].sum(-1) > 0).all()


def test_a_student_with_classes_that_no_teacher_has_is_refused_where_it_is_infinitely_far() -> None:
    teacher, logits = normal(2, 3, 6), normal(2, 3, 9, seed=1)
    whole = label(teacher, 6)
    for labels, tail in [(whole, "rest"), (label(teacher, 3), "uniform")]:
        with pytest.raises(InputError, match=r"teacher has 6 classes, the student 9.* :6\]"):
            losses.reverse_kl_divergence(logits, labels, tail=tail)  # type: ignore[arg-type]
        same = losses.reverse_kl_divergence(logits[..., :6], labels, tail=tail)  # type: ignore[arg-type]
        assert same.isfinite().all()
    # Six entries of which some are unused are not all classes.
    loss, gradient = both(losses.reverse_kl_divergence, logits, whole.top_p(0.6))
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    nowhere = dataclasses.replace(whole, mask=torch.zeros(2, 3, dtype=torch.bool))
    assert not losses.reverse_kl_divergence(logits, nowhere).any()

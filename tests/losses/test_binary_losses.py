"""Losses on independent classes, held to a dense float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import softlabels as sl
from softlabels.errors import InputError, MissingTailError, VocabularyMismatchError
from softlabels.labels import BinaryLabels
from softlabels.losses import binary_cross_entropy, binary_kl_divergence
from softlabels.selection import TopOdds

TEMPERATURES = (1.0, 2.0)


def made(logits: Tensor, k: int) -> BinaryLabels:
    return TopOdds(k)(logits, torch.full((len(logits),), -1), temperatures=TEMPERATURES)


def targets(labels: BinaryLabels, classes: int, temperature: float) -> Tensor:
    """The probability of every class, float64 (N, V), kept or by its floor."""
    if labels.floors is None:
        dense = torch.zeros(len(labels), classes, dtype=torch.float64)
    else:
        floor = labels.floors[:, labels.temperatures.index(temperature)].double()
        dense = floor.sigmoid().unsqueeze(-1).repeat(1, classes)
    kept = (labels.log_odds.double() / temperature).sigmoid()
    return dense.scatter(-1, labels.ids, kept)


def oracle(student: Tensor, p: Tensor, temperature: float) -> Tensor:
    z = student.double() / temperature
    log_q, log_no = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    yes, no = torch.xlogy(p, p) - p * log_q, torch.xlogy(1 - p, 1 - p) - (1 - p) * log_no
    return temperature**2 * (yes + no).sum(-1)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 2, 7, 64]),
    st.sampled_from([0.0, 1.0, 8.0, 60.0]),
    st.sampled_from(TEMPERATURES),
    st.integers(0, 1000),
)
def test_the_kl_and_its_gradient_are_the_dense_oracles(
    classes: int, scale: float, temperature: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(5, classes, generator=random)
    student = (scale * torch.randn(5, classes, generator=random)).double().requires_grad_()
    labels = made(teacher, max(1, classes // 2))
    p = targets(labels, classes, temperature)
    found = binary_kl_divergence(student, labels, temperature=temperature)
    expected = oracle(student, p, temperature)
    # Labels are float32: their probabilities are, too, and far out p log p of them is noise.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * classes)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    q = (student / temperature).sigmoid()
    torch.testing.assert_close(gradient, temperature * (q - p), rtol=1e-5, atol=1e-6)


def test_all_classes_kept_is_the_dense_loss_of_torch() -> None:
    teacher, student = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    labels = made(teacher.float(), 9)
    assert labels.floors is None
    p = teacher.float().double().sigmoid()
    dense = torch.nn.functional.binary_cross_entropy_with_logits(student, p, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(student, labels), dense.sum(-1))


def test_the_floor_is_the_mean_of_what_was_not_kept() -> None:
    logits = torch.tensor([[5.0, 1.0, -1.0, -3.0], [90.0, 60.0, 60.0, 60.0]])
    labels = made(logits, 2)
    assert labels.ids.tolist() == [[0, 1], [0, 1]]
    for place, temperature in enumerate(TEMPERATURES):
        mean = (logits[:, 2:].double() / temperature).sigmoid().mean(-1)
        assert labels.floors is not None
        floor = labels.floors[:, place].double()
        torch.testing.assert_close(floor[:1].sigmoid(), mean[:1])
        # Where all others are all but certain their complement is what is to be kept.
        assert float(floor[1]) == pytest.approx(60 / temperature, abs=1e-3)


def test_a_student_that_is_the_teacher_loses_nothing_and_one_that_is_not_something() -> None:
    logits = 5 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    labels = made(logits, 30)
    assert float(binary_kl_divergence(logits, labels).abs().max()) < 1e-4
    assert float(binary_kl_divergence(logits + 0.1, labels).min()) > 0


def test_masked_positions_are_nothing_whatever_they_hold() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    labels = made(logits, 4)
    mask = torch.tensor([True, False, True])
    nan = torch.where(mask.unsqueeze(-1), labels.log_odds, torch.nan)
    assert labels.floors is not None
    floors = torch.where(mask.unsqueeze(-1), labels.floors, torch.nan)
    masked = labels.with_tensors({"log_odds": nan, "floors": floors, "mask": mask})
    student = torch.where(mask.unsqueeze(-1), torch.zeros(3, 8), torch.inf).requires_grad_()
    found = binary_kl_divergence(student, masked)
    assert float(found[1].detach()) == 0
    found.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert not bool(student.grad[1].any())
    assert binary_kl_divergence(torch.zeros(0, 8), labels[:0]).shape == (0,)


def test_columns_that_the_teacher_lacks_take_no_part() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    labels = made(logits, 3)
    wide = torch.cat([torch.zeros(4, 6), torch.full((4, 2), 50.0)], -1)
    torch.testing.assert_close(
        binary_kl_divergence(wide, labels), binary_kl_divergence(wide[:, :6], labels)
    )
    with pytest.raises(VocabularyMismatchError, match="6 classes, the student's logits 5"):
        binary_kl_divergence(torch.zeros(4, 5), labels.with_tensors({"ids": labels.ids * 0}))


def test_half_precision_is_no_worse_than_the_naive_loss_in_it() -> None:
    teacher, student = 3 * torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0))
    labels, narrow = made(teacher, 64), student.bfloat16()
    exact = oracle(student, targets(labels, 64, 1.0), 1.0)
    own = (binary_kl_divergence(narrow, labels).double() - exact).abs()
    assert binary_kl_divergence(narrow, labels).dtype == torch.float32
    p = teacher.bfloat16().sigmoid()
    z = narrow
    terms = p * (teacher.bfloat16() - z) + torch.nn.functional.softplus(z)
    naive = (terms - torch.nn.functional.softplus(teacher.bfloat16())).sum(-1)
    assert float(own.mean()) <= float((naive.double() - exact).abs().mean()) + 1e-6


def test_what_was_not_stored_and_what_does_not_fit_is_refused() -> None:
    labels = made(torch.zeros(2, 6), 3)
    with pytest.raises(MissingTailError, match=r"temperature 3; stored: 1, 2\."):
        binary_kl_divergence(torch.zeros(2, 6), labels, temperature=3.0)
    whole = made(torch.zeros(2, 6), 6)
    assert float(binary_kl_divergence(torch.zeros(2, 6), whole, temperature=3.0).sum()) == 0
    with pytest.raises(InputError, match="positive and finite"):
        binary_kl_divergence(torch.zeros(2, 6), labels, temperature=0.0)
    with pytest.raises(InputError, match="batch shape"):
        binary_kl_divergence(torch.zeros(3, 6), labels)


def test_labels_of_independent_classes_are_checked_when_they_are_made() -> None:
    ids, odds = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)
    with pytest.raises(InputError, match="floors hold 1 temperatures but 0"):
        BinaryLabels(ids, odds, torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"both must be \(\.\.\., k\)"):
        BinaryLabels(ids, odds[:, :2])
    with pytest.raises(InputError, match="floors has batch shape"):
        BinaryLabels(ids, odds, torch.zeros(1, 1), (1.0,))
    with pytest.raises(InputError, match=r"ids is of torch\.float32"):
        BinaryLabels(odds, odds)
    labels = BinaryLabels(torch.tensor([[2, 0, 1]]), torch.tensor([[0.0, 1.0, 0.0]]))
    assert labels.sorted().ids.tolist() == [[0, 1, 2]]
    assert sl.BinaryLabels is BinaryLabels
    assert math.isclose(float(labels.sorted().log_odds[0, 0]), 1.0)

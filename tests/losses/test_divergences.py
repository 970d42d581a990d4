"""Every divergence against the dense float64 oracle, with each stand-in for the tail."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from dense import (
    TEMPERATURES,
    Formula,
    buckets,
    check,
    cross,
    forward,
    js,
    kept_of,
    label,
    normal,
    reverse,
    variation,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import softlabels as sl
from softlabels import SoftLabels, losses
from softlabels.errors import InputError, MissingTailError, VocabularyMismatchError

Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[Loss, Formula]] = {
    "forward": (losses.kl_divergence, forward),
    "reverse": (losses.reverse_kl_divergence, reverse),
    "js": (losses.js_divergence, partial(js, beta=0.5)),
    "js .1": (partial(losses.js_divergence, beta=0.1), partial(js, beta=0.1)),
    "variation": (losses.total_variation, variation),
    "cross": (losses.soft_cross_entropy, cross),
}


@given(
    name=st.sampled_from(list(LOSSES)),
    shape=st.sampled_from([(), (4,), (2, 3)]),
    classes=st.integers(1, 12),
    k=st.integers(1, 12),
    temperature=st.sampled_from(TEMPERATURES),
    scale=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    tail=st.sampled_from(["rest", "renormalised", "uniform"]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=300)
def test_loss_and_gradient_are_those_of_the_dense_oracle(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    k: int,
    temperature: float,
    scale: float,
    tail: str,
    seed: int,
) -> None:
    loss, formula = LOSSES[name]
    k = min(k, classes)
    if tail == "renormalised" and name == "reverse":
        return
    teacher = normal(*shape, classes, scale=scale, seed=seed)
    student = normal(*shape, classes, seed=seed + 1).requires_grad_()
    labels = label(teacher, k)
    kept = kept_of(labels, classes)
    if tail == "rest":
        log_p, log_q = (buckets(z, kept, temperature) for z in (teacher, student))
    elif tail == "renormalised":
        log_p = torch.log_softmax((teacher / temperature).masked_fill(~kept, -math.inf), -1)
        log_p = torch.cat([log_p, torch.full_like(log_p[..., :1], -math.inf)], -1)
        log_q = buckets(student, kept, temperature)
    else:
        dense = buckets(teacher, kept, temperature)
        share = dense[..., -1:] - math.log(max(1, classes - k))
        log_p = torch.where(kept, dense[..., :-1], share)
        log_q = torch.log_softmax(student / temperature, -1)
    found = loss(student, labels, temperature=temperature, tail=tail)
    check(found, temperature**2 * formula(log_p, log_q), student)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_gradient_is_that_of_finite_differences(name: str, k: int) -> None:
    loss, labels = LOSSES[name][0], label(normal(2, 3, 6), k)
    student = normal(2, 3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, temperature=2.0), student)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "cross"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_a_student_that_is_the_teacher_has_no_loss(name: str, k: int) -> None:
    teacher = normal(4, 20)
    student = teacher.clone().requires_grad_()
    loss = LOSSES[name][0](student, label(teacher, k))
    torch.testing.assert_close(loss.detach(), torch.zeros(4).double(), rtol=0, atol=1e-12)
    if name != "variation":  # which has a kink there
        (slope,) = torch.autograd.grad(loss.sum(), student)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_unused_entries_and_masked_positions_count_for_nothing(name: str) -> None:
    loss = LOSSES[name][0]
    teacher, classes = normal(3, 9), 9
    exact = label(teacher, 4)
    pad = (0, 3)
    wider = dataclasses.replace(
        exact,
        ids=torch.nn.functional.pad(exact.ids, pad),
        log_probs=torch.nn.functional.pad(exact.log_probs, pad, value=-math.inf),
        mask=torch.tensor([True, False, True]),
    )
    wider.ids[1] = -5
    wider.log_probs[1] = math.nan
    student = normal(3, classes, seed=1).requires_grad_()
    with torch.no_grad():
        student[1] = math.inf
    found = loss(student, wider)
    expected = loss(student[[0, 2]], exact[[0, 2]])
    torch.testing.assert_close(found[[0, 2]], expected)
    assert found[1] == 0
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert not slope[1].any()
    (other,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(slope[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_adds_no_error_of_its_own(name: str, dtype: torch.dtype) -> None:
    loss, formula = LOSSES[name]
    teacher, student = normal(64, 500), normal(64, 500, seed=1).to(dtype)
    labels = label(teacher, 16)
    narrow = labels.map(lambda t: t.float() if t.is_floating_point() else t)
    found = loss(student, narrow)
    assert found.dtype == torch.float32
    kept = kept_of(labels, 500)

    def oracle(z: Tensor) -> Tensor:
        return formula(buckets(teacher.to(z.dtype), kept, 1.0), buckets(z, kept, 1.0))

    exact = oracle(student.double())
    # The same formula in float32 is the naive version; in low precision it is worse.
    naive = (oracle(student.float()).double() - exact).abs().max()
    assert (found.double() - exact).abs().max() <= 2 * naive + 1e-6


def test_js_tends_to_the_kls() -> None:
    teacher, student = normal(5, 12), normal(5, 12, seed=1)
    labels = label(teacher, 4)
    small = losses.js_divergence(student, labels, beta=1e-6) / 1e-6
    torch.testing.assert_close(small, losses.kl_divergence(student, labels), rtol=1e-4, atol=1e-6)
    large = losses.js_divergence(student, labels, beta=1 - 1e-6) / 1e-6
    reverse_kl = losses.reverse_kl_divergence(student, labels)
    torch.testing.assert_close(large, reverse_kl, rtol=1e-4, atol=1e-6)
    half = losses.js_divergence(student, labels)
    assert bool((half <= math.log(2)).all())


def sampled(teacher: Tensor, draws: int, generator: torch.Generator) -> SoftLabels:
    """Counts of independent draws, as weights."""
    p = teacher.softmax(-1)
    ids = torch.multinomial(p, draws, replacement=True, generator=generator)
    weights = torch.zeros_like(p).scatter_add_(
        -1, ids, torch.full_like(p[..., :1], 1 / draws).expand(ids.shape)
    )
    values, kept = weights.topk(min(draws, p.shape[-1]))
    return SoftLabels(ids=kept, log_probs=values.log(), sampled=True)


def test_masked_positions_of_a_sampled_set_count_for_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = sampled(normal(6, 9), 4, generator)
    shape = (2, 3, flat.k)
    labels = dataclasses.replace(
        flat, ids=flat.ids.view(shape), log_probs=flat.log_probs.view(shape)
    )
    mask = torch.tensor([[True, False, True], [False, True, True]])
    student = normal(2, 3, 9, seed=1)
    expected = losses.soft_cross_entropy(student, labels).masked_fill(~mask, 0)
    student = student.masked_fill(~mask.unsqueeze(-1), math.inf).requires_grad_()
    loss = losses.soft_cross_entropy(student, dataclasses.replace(labels, mask=mask))
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad[mask].ne(0).any(-1).all()
    assert not student.grad[~mask].any()


def test_a_sampled_set_gives_the_dense_cross_entropy_and_its_gradient_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = normal(1, 12).expand(4000, 12)
    student = normal(1, 12, seed=1).expand(4000, 12).clone().requires_grad_()
    loss = losses.soft_cross_entropy(student, sampled(teacher, 8, generator))
    (slope,) = torch.autograd.grad(loss.sum(), student)
    p, q = teacher[0].softmax(-1), student[0].detach().softmax(-1)
    # A mean of 4,000 means of 8 draws: a standard deviation is √(p (1 − p) / 32,000).
    spread = (p * (1 - p) / 32_000).sqrt()
    assert bool(((slope.mean(0) - (q - p)).abs() < 6 * spread + 1e-12).all())
    log_q = student[0].detach().log_softmax(-1)
    exact = -(p * log_q).sum()
    variance = (p * log_q.square()).sum() - exact.square()
    assert abs(loss.mean().item() - exact.item()) < 6 * (variance / 32_000).sqrt().item()


def test_weights_that_do_not_sum_to_one_leave_coefficient_one_on_the_student() -> None:
    ids, weights = torch.tensor([[3, 1]]), torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    labels = SoftLabels(ids=ids, log_probs=weights.log(), sampled=True)
    student = normal(1, 6).requires_grad_()
    (slope,) = torch.autograd.grad(losses.soft_cross_entropy(student, labels).sum(), student)
    expected = student.detach().softmax(-1)
    expected[0, 3] -= 0.9
    expected[0, 1] -= 0.4
    torch.testing.assert_close(slope, expected)


def test_pairs_that_mean_nothing_are_refused_with_the_reason() -> None:
    student, labels = normal(2, 9), label(normal(2, 9), 3)
    weights = SoftLabels(ids=labels.ids, log_probs=labels.log_probs, sampled=True)
    unknown = dataclasses.replace(labels, classes=None)
    kl, reverse_kl, cross_entropy = (LOSSES[n][0] for n in ("forward", "reverse", "cross"))
    cases: list[tuple[Callable[[], Tensor], type[Exception], str]] = [
        (lambda: reverse_kl(student, labels, tail="renormalised"), InputError, "infinite"),
        (lambda: kl(student, labels, tail="flat"), InputError, "'flat'"),
        (lambda: losses.js_divergence(student, labels, beta=0.0), InputError, "beta is 0"),
        (lambda: losses.js_divergence(student, labels, beta=1.0), InputError, "beta is 1"),
        (lambda: kl(student, weights), MissingTailError, "weights"),
        (lambda: kl(student, weights, tail="renormalised"), InputError, "biased"),
        (lambda: cross_entropy(student, weights, temperature=2.0), InputError, "temperature 1"),
        (lambda: losses.logit_mse(student, weights), InputError, "no logits"),
        (lambda: kl(student, unknown, tail="uniform"), InputError, "classes=V"),
        (lambda: losses.total_variation(student[:, :2], labels), VocabularyMismatchError, "class"),
        (lambda: reverse_kl(student[:1], labels), InputError, "shape"),
    ]
    for call, error, said in cases:
        with pytest.raises(error, match=said):
            call()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_same_where_no_gradient_is_wanted(name: str, temperature: float) -> None:
    loss, labels, student = LOSSES[name][0], label(normal(4, 9), 3), normal(4, 9, seed=1)
    found = loss(student, labels, temperature=temperature)
    expected = loss(student.requires_grad_(), labels, temperature=temperature)
    torch.testing.assert_close(found, expected.detach())


def test_logit_mse_of_unused_entries_and_masked_positions_is_of_the_others() -> None:
    exact = label(normal(3, 9), 4)
    pad = (0, 2)
    wider = dataclasses.replace(
        exact,
        ids=torch.nn.functional.pad(exact.ids, pad, value=8),
        log_probs=torch.nn.functional.pad(exact.log_probs, pad, value=-math.inf),
        mask=torch.tensor([True, False, True]),
    )
    student = normal(3, 9, seed=1)
    expected = losses.logit_mse(student, exact).masked_fill(~wider.mask, 0)
    torch.testing.assert_close(losses.logit_mse(student, wider), expected)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("known", ["logits", "logsumexp"])
def test_logit_mse_is_the_mean_square_over_kept_classes(centred: bool, known: str) -> None:
    teacher = normal(4, 12)
    labels = label(teacher, 5)
    if known == "logits":
        labels = dataclasses.replace(labels, logits=teacher.gather(-1, labels.ids))
    student = normal(4, 12, seed=1).requires_grad_()
    difference = (student - teacher).gather(-1, labels.ids)
    if centred:
        difference = difference - difference.mean(-1, keepdim=True)
        shifted = losses.logit_mse(student + 3, labels, centred=True)
        torch.testing.assert_close(shifted, losses.logit_mse(student, labels, centred=True))
    check(losses.logit_mse(student, labels, centred=centred), difference.square().mean(-1), student)
    bare = SoftLabels(ids=labels.ids, log_probs=labels.log_probs)
    if centred:
        torch.testing.assert_close(
            losses.logit_mse(student, bare), losses.logit_mse(student, labels)
        )
    else:
        with pytest.raises(InputError, match="centred=True"):
            losses.logit_mse(student, bare, centred=False)


@given(
    classes=st.integers(2, 12),
    k=st.integers(1, 12),
    temperature=st.sampled_from(TEMPERATURES),
    alpha=st.sampled_from([0.0, 1.0, 0.5]),
    beta=st.sampled_from([0.0, 1.0, 8.0]),
    scale=st.sampled_from([0.1, 2.0, 6.0]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=150)
def test_the_decoupled_kl_is_that_of_its_paper_on_kept_classes_and_a_rest(
    classes: int, k: int, temperature: float, alpha: float, beta: float, scale: float, seed: int
) -> None:
    k = min(k, classes)
    teacher = normal(5, classes, scale=scale, seed=seed)
    student = normal(5, classes, seed=seed + 1).requires_grad_()
    hard = torch.randint(classes, (5,), generator=torch.Generator().manual_seed(seed))
    hard[0] = -100
    labels = label(teacher, k, hard.clamp(min=0))
    found = losses.decoupled_kl_divergence(
        student, labels, hard, alpha=alpha, beta=beta, temperature=temperature
    )
    at = hard.clamp(min=0).unsqueeze(-1)
    kept = kept_of(labels, classes).scatter(-1, at, True)
    log_p, log_q = (buckets(z, kept, temperature) for z in (teacher, student))

    def parts(values: Tensor) -> tuple[Tensor, Tensor]:
        others = values.scatter(-1, at, -math.inf)
        every = others.logsumexp(-1, keepdim=True)
        return torch.cat([values.gather(-1, at), every], -1), others - every

    (b_p, p), (b_q, q) = parts(log_p), parts(log_q)
    expected = temperature**2 * (alpha * forward(b_p, b_q) + beta * forward(p, q))
    expected = expected.masked_fill(hard == -100, 0)
    # A hard label that was not kept is taken from the rest by its log-prob: where hardly anything
    # is left there, what is left is rounded.
    weights = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    one, other = (torch.autograd.grad((y * weights).sum(), student)[0] for y in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_decoupled_kl_needs_the_hard_label_s_log_prob() -> None:
    teacher, student = normal(3, 9), normal(3, 9, seed=1)
    hard = teacher.argmin(-1)
    with pytest.raises(InputError, match="hard_log_probs"):
        losses.decoupled_kl_divergence(student, label(teacher, 3), hard)
    losses.decoupled_kl_divergence(student, label(teacher, 3), teacher.argmax(-1))
    with pytest.raises(InputError, match="shape"):
        losses.decoupled_kl_divergence(student, label(teacher, 3), hard[:2])


def test_all_losses_are_public() -> None:
    assert {f.__name__ for f in (losses.kl_divergence, losses.logit_mse)} <= set(sl.losses.__all__)

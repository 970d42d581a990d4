"""kl_divergence against a dense float64 oracle, whose gradient autograd makes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from dense import TEMPERATURES, buckets, kept_of, label, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from makes import Makes
from torch import Tensor
from torch.nn import functional

from softlabels import SoftLabels, TopK
from softlabels.errors import InputError, MissingTailError, VocabularyMismatchError
from softlabels.losses import kl_divergence


def oracle(student: Tensor, teacher: Tensor, kept: Tensor, temperature: float = 1.0) -> Tensor:
    """Both dense distributions, the classes outside `kept` (bool, (..., V)) summed into one."""
    width = student.shape[-1] - teacher.shape[-1]
    teacher = functional.pad(teacher, (0, width), value=-math.inf)
    kept = functional.pad(kept, (0, width), value=False)

    log_p, log_q = (buckets(logits, kept, temperature) for logits in (teacher, student))
    some = log_p > -math.inf
    terms = log_p.exp() * (log_p - log_q.masked_fill(~some, 0)).masked_fill(~some, 0)
    return temperature**2 * terms.sum(-1)


def with_gradient(loss: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    return torch.autograd.grad((loss * weights).sum(), logits)[0]


def check(
    student: Tensor, teacher: Tensor, labels: SoftLabels, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Loss and gradient, under weights that differ from position to position."""
    student = student.detach().requires_grad_()
    weights = torch.linspace(0.5, 2, labels.shape.numel()).view(labels.shape).to(student.dtype)
    loss = kl_divergence(student, labels, temperature=temperature)
    expected = oracle(student, teacher, kept_of(labels, teacher.shape[-1]), temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    gradient = with_gradient(loss, student, weights)
    torch.testing.assert_close(
        gradient, with_gradient(expected, student, weights), rtol=1e-9, atol=1e-12
    )
    return loss.detach(), gradient


@given(
    shape=st.sampled_from([(), (1,), (4,), (2, 3)]),
    classes=st.integers(1, 12),
    wider=st.sampled_from([0, 0, 1, 5]),
    k=st.integers(1, 12),
    temperature=st.sampled_from(TEMPERATURES),
    scale=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=150)
def test_loss_and_gradient_are_those_of_a_dense_oracle_with_one_rest_bucket(
    shape: tuple[int, ...],
    classes: int,
    wider: int,
    k: int,
    temperature: float,
    scale: float,
    seed: int,
) -> None:
    teacher = normal(*shape, classes, scale=scale, seed=seed)
    student = normal(*shape, classes + wider, seed=seed + 1)
    labels = label(teacher, min(k, classes))
    loss, _ = check(student, teacher, labels, temperature)
    if not wider:
        dense = temperature**2 * functional.kl_div(
            torch.log_softmax(student / temperature, -1),
            torch.log_softmax(teacher / temperature, -1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        assert (loss <= dense + 1e-9).all()
        if k >= classes:
            torch.testing.assert_close(loss, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_finite_differences(k: int, temperature: float) -> None:
    labels = label(normal(2, 3, 6), k)
    student = normal(2, 3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: kl_divergence(z, labels, temperature=temperature), student
    )


def test_t_squared_multiplies_the_loss_and_so_its_gradient() -> None:
    teacher, student = normal(3, 9), normal(3, 9, seed=1)
    cold = label(teacher / 2, 4)
    loss, gradient = check(student, teacher, label(teacher, 4), 2.0)
    expected, slope = check(student / 2, teacher / 2, cold, 1.0)
    torch.testing.assert_close(loss, 4 * expected)
    torch.testing.assert_close(gradient, 2 * slope)


def test_the_loss_is_zero_where_the_student_is_the_teacher() -> None:
    teacher = normal(4, 20)
    loss, gradient = check(teacher, teacher, label(teacher, 5))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [20.0, 40.0])
def test_a_mass_within_1e_7_of_one_leaves_a_tail_that_still_counts(gap: float) -> None:
    teacher, student = normal(3, 50, scale=0.1), normal(3, 50, scale=0.1, seed=1)
    teacher[:, :2] += gap
    student[:, :2] += gap
    exact, slope = check(student, teacher, label(teacher, 2))

    # In float32 the student's rest mass would be 0 or 1.2e-7 as 1 − Σ q.
    narrow = student.float().requires_grad_()
    labels = TopK(2)(teacher.float(), torch.full((3,), -1), temperatures=(1.0,))
    loss = kl_divergence(narrow, labels)
    assert torch.isfinite(loss).all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-6)
    gradient = with_gradient(loss, narrow, torch.linspace(0.5, 2, 3))[:, 2:].double()
    # Beside p_r itself, whose rounding in the kept entries is 1e-7 of 1, the tail's slope is known.
    torch.testing.assert_close(gradient, slope[:, 2:], rtol=1e-3, atol=math.exp(-gap) * 1e-3)


def test_equal_logits_in_teacher_and_student_are_nothing_special() -> None:
    even = torch.zeros(2, 8, dtype=torch.float64)
    check(even, even, label(even, 3))
    check(normal(2, 8), even, label(even, 3))
    check(even, normal(2, 8), label(normal(2, 8), 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_masked_position_has_neither_loss_nor_gradient_whatever_it_holds(
    dtype: torch.dtype,
) -> None:
    labels = label(normal(2, 3, 9), 4)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    garbage = {
        "ids": labels.ids.masked_fill(~mask.unsqueeze(-1), 10**12),
        "log_probs": labels.log_probs.masked_fill(~mask.unsqueeze(-1), math.nan),
        "log_tails": labels.log_tails,
    }
    garbage["ids"][0, 1] = -7
    garbage["log_probs"][1, 0] = math.inf
    garbage["log_tails"] = torch.where(mask.unsqueeze(-1), labels.log_tails, math.nan)
    spoiled = dataclasses.replace(labels, **garbage, mask=mask)
    student = normal(2, 3, 9, seed=1).to(dtype)
    clean = student.clone().requires_grad_()
    student[0, 1], student[1, 0], student[1, 2] = math.nan, math.inf, -math.inf
    student.requires_grad_()

    loss = kl_divergence(student, spoiled)
    assert loss[~mask].tolist() == [0, 0, 0]
    assert torch.equal(loss[mask], kl_divergence(clean, labels)[mask])
    loss.sum().backward()
    (kl_divergence(clean, labels) * mask).sum().backward()
    assert student.grad is not None
    assert clean.grad is not None
    assert (student.grad[~mask] == 0).all()
    assert torch.equal(student.grad, clean.grad)


@pytest.mark.parametrize("unused", [[0], [1, 3], [0, 1, 2]])
def test_an_unused_entry_counts_for_nothing_wherever_it_points(unused: list[int]) -> None:
    teacher, student = normal(2, 9), normal(2, 9, seed=1)
    full = label(teacher, 4 - len(unused))
    used = [place for place in range(4) if place not in unused]
    ids = torch.full((2, 4), 10**9)
    ids[:, unused[0]] = full.ids[:, 0] + 1 if unused[0] else -5
    log_probs = torch.full((2, 4), -math.inf, dtype=torch.float64)
    ids[:, used], log_probs[:, used] = full.ids, full.log_probs
    labels = dataclasses.replace(full, ids=ids, log_probs=log_probs)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss, expected = kl_divergence(a, labels), kl_divergence(b, full)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *(with_gradient(x, y, torch.ones(2)) for x, y in ((loss, a), (expected, b)))
    )


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_positions_have_no_loss(shape: tuple[int, ...]) -> None:
    student = normal(*shape, 9).requires_grad_()
    loss = kl_divergence(student, label(normal(*shape, 9), 3))
    assert loss.shape == shape
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.shape == student.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_low_precision_logits_err_no_more_than_the_naive_loss_in_that_precision(
    dtype: torch.dtype, temperature: float
) -> None:
    teacher, student = normal(16, 500), normal(16, 500, seed=1).to(dtype)
    labels = label(teacher, 20)
    kept = kept_of(labels, 500)
    exact = student.double().requires_grad_()
    naive, ours = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = {
        "exact": (oracle(exact, teacher, kept, temperature), exact),
        "naive": (oracle(naive, teacher.to(dtype), kept, temperature), naive),
        "ours": (kl_divergence(ours, labels, temperature=temperature), ours),
    }
    assert found["ours"][0].dtype == torch.float32
    losses = {name: loss.double() for name, (loss, _) in found.items()}
    slopes = {
        name: with_gradient(loss, logits, torch.ones(16, dtype=loss.dtype)).double()
        for name, (loss, logits) in found.items()
    }
    assert ours.requires_grad
    for values in (losses, slopes):
        error = {name: (values[name] - values["exact"]).abs().max() for name in values}
        assert error["ours"] <= error["naive"] + 1e-6


def test_the_gradient_is_made_once_and_never_copied() -> None:
    logits = normal(15, 12).float().requires_grad_()
    labels = label(normal(15, 12, seed=1), 3)
    with Makes(logits.shape) as makes:
        kl_divergence(logits, labels).mean().backward()
    assert logits.grad is not None
    assert makes.ops == ["aten.empty_like.default"]


def test_each_backward_pass_through_a_graph_gives_the_same_gradient() -> None:
    logits = normal(15, 12).float().requires_grad_()
    loss = kl_divergence(logits, label(normal(15, 12, seed=1), 3))
    upstream = torch.linspace(0.5, 2, 15)
    first, again, last = (
        torch.autograd.grad(loss, logits, upstream, retain_graph=n < 2)[0] for n in range(3)
    )
    for other in (again, last):
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits, upstream)


def test_the_loss_is_float32_at_least_and_the_gradient_is_as_the_logits_are() -> None:
    labels = label(normal(2, 9), 3).map(lambda t: t if t.dtype == torch.int64 else t.float())
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        student = normal(2, 9).to(dtype).requires_grad_()
        loss = kl_divergence(student, labels)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert with_gradient(loss, student, torch.ones(2)).dtype == dtype


def test_the_logits_are_left_as_they_were_and_may_share_memory() -> None:
    labels = label(normal(1, 9), 3)[[0, 0, 0]]
    shared = normal(1, 9, seed=1).requires_grad_()
    before = shared.detach().clone()
    loss = kl_divergence(shared.expand(3, 9), labels)
    loss.sum().backward()
    assert torch.equal(shared, before)
    alone = before.clone().requires_grad_()
    kl_divergence(alone, labels[:1]).sum().backward()
    assert shared.grad is not None
    torch.testing.assert_close(shared.grad, 3 * alone.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wider", [0, 3])
def test_labels_made_by_hand_of_every_class_are_the_dense_kl(
    dtype: torch.dtype, wider: int
) -> None:
    teacher, student = normal(50, 8), normal(50, 8 + wider, seed=1)
    dense = torch.log_softmax(teacher, -1)
    labels = SoftLabels(ids=torch.arange(8).expand(50, 8), log_probs=dense.to(dtype))
    loss = kl_divergence(student, labels)
    expected = oracle(student, teacher, torch.ones(50, 8, dtype=torch.bool))
    # −log p of three nats is rounded by half of 2^-7 · 2 in bfloat16, and what is left of 1 too.
    atol = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(loss, expected, rtol=0, atol=atol)


def test_a_student_without_a_class_for_the_teachers_rest_is_infinitely_far() -> None:
    labels = SoftLabels(ids=torch.tensor([[0, 1]]), log_probs=torch.tensor([[0.4, 0.3]]).log())
    assert kl_divergence(torch.zeros(1, 2), labels).tolist() == [math.inf]
    assert kl_divergence(torch.zeros(1, 3), labels).isfinite().all()


@pytest.mark.parametrize(("shape", "words"), [((3,), r"\(3,\).*\(2,\)"), ((1, 2), r"\(1, 2\)")])
def test_logits_of_other_positions_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kl_divergence(normal(*shape, 9), label(normal(2, 9), 3))


@pytest.mark.parametrize("bad", [9, -1])
def test_a_class_that_the_student_has_not_is_refused(bad: int) -> None:
    labels = label(normal(2, 9), 3)
    labels.ids[1, 2] = bad
    with pytest.raises(VocabularyMismatchError, match=f"class {bad}, .* classes 0 … 8"):
        kl_divergence(normal(2, 9), labels)


def test_a_temperature_without_a_tail_is_refused() -> None:
    labels = dataclasses.replace(label(normal(2, 9), 3), classes=None)  # so nothing interpolates
    with pytest.raises(MissingTailError, match="temperature 3"):
        kl_divergence(normal(2, 9), labels, temperature=3.0)


@pytest.mark.parametrize("block_bytes", [1, 3 * 8 * 4])
def test_rows_are_taken_in_blocks_of_any_size(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, student = label(normal(7, 8), 3), normal(7, 8, seed=1)
    together = kl_divergence(student, labels)
    monkeypatch.setattr("softlabels.losses.buckets.BLOCK_BYTES", block_bytes)
    torch.testing.assert_close(kl_divergence(student, labels), together, rtol=0, atol=0)

"""The loss from hidden states and a head: that of the logits, whatever the chunks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from dense import TEMPERATURES, label, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from makes import Makes
from torch import Tensor

from softlabels import SoftLabels, losses
from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.losses import linear_kl_divergence

D = 6


def parts(
    classes: int, *, bias: bool, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    hidden = normal(3, 5, D, seed=seed).to(dtype).requires_grad_()
    weight = normal(classes, D, seed=seed + 1).to(dtype).requires_grad_()
    return (
        hidden,
        weight,
        normal(classes, seed=seed + 2).to(dtype).requires_grad_() if bias else None,
    )


def gradients(loss: Tensor, inputs: Any, weights: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((loss * weights).sum(), [x for x in inputs if x is not None]))


@given(
    classes=st.integers(2, 14),
    k=st.integers(1, 14),
    temperature=st.sampled_from(TEMPERATURES),
    chunk=st.integers(1, 20),
    bias=st.booleans(),
    masked=st.booleans(),
    hard_weight=st.sampled_from([0.0, 0.3]),
    soft_weight=st.sampled_from([1.0, 0.0, 0.7]),
    uniform=st.booleans(),
    tail=st.sampled_from(["rest", "renormalised", "uniform"]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_it_is_the_loss_of_the_logits(
    classes: int,
    k: int,
    temperature: float,
    chunk: int,
    bias: bool,
    masked: bool,
    hard_weight: float,
    soft_weight: float,
    uniform: bool,
    tail: Any,
    seed: int,
) -> None:
    inputs = parts(classes, bias=bias, seed=seed)
    hidden, weight, head_bias = inputs
    generator = torch.Generator().manual_seed(seed)
    labels = label(normal(3, 5, classes, seed=seed + 3), min(k, classes))
    hard = torch.randint(classes, (3, 5), generator=generator)
    hard[torch.rand(3, 5, generator=generator) < 0.3] = -100
    if masked:
        mask = torch.rand(3, 5, generator=generator) < 0.6
        labels = dataclasses.replace(labels, mask=mask)
    found = linear_kl_divergence(
        hidden, weight, labels, bias=head_bias, hard_labels=hard, soft_weight=soft_weight,
        hard_weight=hard_weight, temperature=temperature, tail=tail, chunk_rows=chunk,
    )  # fmt: skip
    logits = hidden @ weight.T + (0 if head_bias is None else head_bias)
    kl = losses.kl_divergence(logits, labels, temperature=temperature, tail=tail)
    expected = soft_weight * kl + hard_weight * losses.cross_entropy(logits, hard)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weights = torch.full((3, 5), 0.25) if uniform else torch.linspace(0.5, 2, 15).view(3, 5)
    weights = weights.double()
    for one, other in zip(
        gradients(found, inputs, weights), gradients(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_finite_differences_agree() -> None:
    hidden, weight, bias = parts(7, bias=True)
    labels = label(normal(3, 5, 7, seed=9), 3)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_kl_divergence(h, w, labels, bias=b, chunk_rows=4),
        (hidden, weight, bias),
    )


def test_each_backward_pass_through_a_graph_gives_the_same_gradients() -> None:
    hidden, weight, bias = parts(7, bias=True, dtype=torch.float32)
    labels = label(normal(3, 5, 7, seed=9), 3)
    loss = linear_kl_divergence(hidden, weight, labels, bias=bias, chunk_rows=4)
    for upstream in (torch.full((3, 5), 0.25), torch.linspace(0.5, 2, 15).view(3, 5)):
        first, *others = (
            torch.autograd.grad(loss, (hidden, weight, bias), upstream, retain_graph=True)
            for _ in range(3)
        )
        kept = [slope.clone() for slope in first]
        for slope in first:
            slope.fill_(torch.nan)
        for other in others:
            for one, again in zip(kept, other, strict=True):
                torch.testing.assert_close(again, one, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [None, 9])
def test_the_heads_gradient_is_made_once_and_never_copied(classes: int | None) -> None:
    hidden, weight, _ = parts(12, bias=False, dtype=torch.float32)
    labels = label(normal(3, 5, 9, seed=9), 3)
    with Makes(weight.shape) as makes:
        linear_kl_divergence(hidden, weight, labels, classes=classes).mean().backward()
    assert weight.grad is not None
    assert makes.ops == ["aten.zeros_like.default"]


def test_padding_of_the_head_is_no_class() -> None:
    hidden, weight, bias = parts(12, bias=True)
    labels = label(normal(3, 5, 9, seed=9), 3)
    found = linear_kl_divergence(hidden, weight, labels, bias=bias, classes=9)
    logits = hidden @ weight.T + bias
    logits[..., 9:] = -torch.inf
    torch.testing.assert_close(found, losses.kl_divergence(logits, labels))
    for slope in gradients(found, (weight, bias), torch.ones(3, 5).double()):
        assert not slope[9:].any()
        assert slope[:9].any()


def test_a_head_may_say_that_nothing_of_it_is_padding() -> None:
    hidden, weight, _ = parts(12, bias=False)
    labels = label(normal(3, 5, 12, seed=9), 3)
    found = linear_kl_divergence(hidden, weight, labels, classes=12)
    torch.testing.assert_close(found, linear_kl_divergence(hidden, weight, labels))


def test_one_class_is_a_class() -> None:
    labels = label(torch.zeros(5, 1, dtype=torch.float64), 1)
    loss = linear_kl_divergence(normal(5, 4), normal(3, 4, seed=1), labels, classes=1)
    assert torch.equal(loss, torch.zeros_like(loss))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_what_needs_no_gradient_gets_none(needs: tuple[bool, bool]) -> None:
    hidden, weight, _ = parts(7, bias=False)
    hidden.requires_grad_(needs[0])
    weight.requires_grad_(needs[1])
    labels = label(normal(3, 5, 7, seed=9), 3)
    loss = linear_kl_divergence(hidden, weight, labels)
    assert loss.requires_grad == any(needs)
    if any(needs):
        loss.mean().backward()
    assert (hidden.grad is not None) == needs[0]
    assert (weight.grad is not None) == needs[1]


def test_nothing_labelled_is_no_loss() -> None:
    hidden, weight, _ = parts(7, bias=False)
    labels = dataclasses.replace(
        label(normal(3, 5, 7), 3), mask=torch.zeros(3, 5, dtype=torch.bool)
    )
    loss = linear_kl_divergence(hidden, weight, labels)
    loss.sum().backward()
    assert not loss.any()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_no_worse_than_its_logits_are(dtype: torch.dtype) -> None:
    hidden, weight, _ = parts(200, bias=False, dtype=dtype)
    labels = label(normal(3, 5, 200, seed=9), 8)
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = losses.kl_divergence(exact_inputs[0] @ exact_inputs[1].T, labels)
    weights = torch.full((3, 5), 1 / 15)
    naive = losses.kl_divergence(hidden @ weight.T, labels)
    found = linear_kl_divergence(hidden, weight, labels, chunk_rows=4)
    assert found.dtype == torch.float32

    def errors(loss: Tensor) -> list[float]:
        slopes = gradients(loss, (hidden, weight), weights)
        truth = gradients(exact, exact_inputs, weights.double())
        pairs = [(loss, exact), *zip(slopes, truth, strict=True)]
        return [float((a.double() - b).detach().abs().max()) for a, b in pairs]

    truth_kept = errors(naive)
    exact = losses.kl_divergence(exact_inputs[0] @ exact_inputs[1].T, labels)
    for ours, theirs in zip(errors(found), truth_kept, strict=True):
        assert ours <= 1.5 * theirs + 1e-6


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, _ = parts(7, bias=False)
    labels = label(normal(3, 5, 7), 3)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"labels": label(normal(3, 4, 7), 3)}, InputError, "shape"),
        ({"weight": weight[:, :3]}, InputError, "shape"),
        ({"hard_weight": 0.5}, InputError, "hard_labels|hard_weight"),
        ({"hard_labels": torch.zeros(3, dtype=torch.long)}, InputError, "shape"),
        ({"classes": 2}, VocabularyMismatchError, "class"),
        (
            {"hard_labels": torch.full((3, 5), 7), "hard_weight": 1.0},
            VocabularyMismatchError,
            "class 7",
        ),
        ({"bias": weight[:1, 0]}, InputError, r"bias has shape \(1,\)"),
        ({"weight": weight.float()}, InputError, r"float64, .*float32; convert"),
        ({"classes": 8}, InputError, "classes is 8"),
        ({"classes": -1}, InputError, "classes is -1"),
        ({"chunk_rows": 0}, InputError, "chunk_rows is 0"),
        ({"chunk_rows": -1}, InputError, "chunk_rows is -1"),
    ]
    for changed, error, said in cases:
        given = {"hidden": hidden, "weight": weight, "labels": labels} | changed
        with pytest.raises(error, match=said):
            linear_kl_divergence(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("hard", [-1, -101])
def test_only_the_one_number_says_that_there_is_no_hard_label(
    temperature: float, hard: int
) -> None:
    hidden, weight, _ = parts(7, bias=False)
    labels, hard_labels = label(normal(3, 5, 7), 3), torch.full((3, 5), -100)
    options: dict[str, Any] = {"hard_weight": 0.5, "temperature": temperature}
    found = linear_kl_divergence(hidden, weight, labels, hard_labels=hard_labels, **options)
    torch.testing.assert_close(
        found, linear_kl_divergence(hidden, weight, labels, temperature=temperature)
    )
    hard_labels[1, 2] = hard
    with pytest.raises(VocabularyMismatchError, match=f"class {hard},"):
        linear_kl_divergence(hidden, weight, labels, hard_labels=hard_labels, **options)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("hard_weight", [0.0, 0.5])
def test_no_positions_have_no_loss_and_no_gradient(
    shape: tuple[int, ...], hard_weight: float
) -> None:
    _, weight, _ = parts(7, bias=False)
    hidden = normal(*shape, D).requires_grad_()
    loss = linear_kl_divergence(
        hidden, weight, label(normal(*shape, 7), 3),
        hard_labels=torch.zeros(shape, dtype=torch.long), hard_weight=hard_weight,
    )  # fmt: skip
    assert loss.shape == shape
    by_hidden, by_weight = torch.autograd.grad(loss.sum(), (hidden, weight))
    assert by_hidden.shape == hidden.shape
    assert not by_weight.any()


def test_a_sum_over_positions_that_float16_cannot_hold_is_a_mean_that_it_can() -> None:
    rows = 3000
    hidden = torch.full((rows, 1), 60.0, dtype=torch.float16)
    weight = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    certain = SoftLabels(ids=torch.zeros(rows, 1, dtype=torch.long), log_probs=torch.zeros(rows, 1))
    linear_kl_divergence(hidden, weight, certain).mean().backward()
    assert weight.grad is not None
    # Half of all mass is on the wrong class: 60 · ½ each, and 90,000 as a sum.
    assert weight.grad.flatten().tolist() == [-30.0, 30.0]


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_under_autocast_hidden_states_and_head_may_differ(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    hidden, weight, _ = parts(50, bias=False)
    hidden, weight = (
        x.detach().bfloat16().to(dtype).requires_grad_()
        for x, dtype in zip((hidden, weight), dtypes, strict=True)
    )
    labels = label(normal(3, 5, 50, seed=9), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_kl_divergence(hidden, weight, labels)
        expected = losses.kl_divergence(torch.nn.functional.linear(hidden, weight), labels)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    ones = torch.full((3, 5), 1 / 15)
    for one, other in zip(
        gradients(found, (hidden, weight), ones),
        gradients(expected, (hidden, weight), ones),
        strict=True,
    ):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_under_autocast_all_products_are_narrow_and_the_heads_gradient_is_not_rounded() -> None:
    wide = parts(50, bias=True)
    wide = [x.detach().float().requires_grad_() for x in wide if x is not None]
    narrow = [x.detach().bfloat16().requires_grad_() for x in wide]
    labels = label(normal(3, 5, 50, seed=9), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_kl_divergence(wide[0], wide[1], labels, bias=wide[2], chunk_rows=4)
    bias = wide[2].detach().requires_grad_()
    expected = linear_kl_divergence(narrow[0], narrow[1], labels, bias=bias, chunk_rows=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ones = torch.full((3, 5), 1 / 15)
    rounded = gradients(expected, (*narrow[:2], bias), ones)
    slopes = gradients(found, wide, ones)
    assert not torch.equal(slopes[1], slopes[1].bfloat16().float())
    for one, other in zip(slopes, rounded, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=0)


def test_sampled_labels_are_refused() -> None:
    hidden, weight, _ = parts(7, bias=False)
    exact = label(normal(3, 5, 7), 3)
    weights = SoftLabels(ids=exact.ids, log_probs=exact.log_probs, sampled=True)
    with pytest.raises(ValueError, match="weights"):
        linear_kl_divergence(hidden, weight, weights)

"""Tail masses between stored temperatures, against dense logits."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import softlabels as sl
from softlabels.errors import InputError, MissingTailError
from softlabels.labels import SoftLabels

STORED = (1.0, 2.0, 4.0)


def teacher(classes: int, spread: float, rows: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, classes, generator=generator) * spread


def zipf(classes: int, power: float) -> torch.Tensor:
    ranks = torch.arange(1, classes + 1).float()
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(1))
    return (-power * ranks.log())[order].expand(4, -1).contiguous()


def kept(logits: torch.Tensor, k: int, temperatures: tuple[float, ...] = STORED) -> SoftLabels:
    nothing = torch.full((len(logits),), -1)
    return sl.TopK(k)(logits, nothing, temperatures=temperatures)


def dense(logits: torch.Tensor, labels: SoftLabels, temperature: float) -> torch.Tensor:
    others = logits.double().scatter(-1, labels.ids, -torch.inf) / temperature
    return (others.logsumexp(-1) - (logits.double() / temperature).logsumexp(-1)).exp()


TEACHERS = {
    "narrow": teacher(1000, 1.0),
    "wide": teacher(50_000, 4.0, rows=8),
    "few classes": teacher(40, 3.0),
    "zipf": zipf(50_000, 1.2),
}


@pytest.mark.parametrize("temperature", [1.25, 1.5, 2.5, 3.0, 6.0, 20.0])
@pytest.mark.parametrize("name", TEACHERS)
def test_between_stored_temperatures_the_tail_is_near_the_dense_one(
    name: str, temperature: float
) -> None:
    logits = TEACHERS[name]
    for k in (8, 32):
        labels = kept(logits, k)
        found, wanted = labels.log_tail(temperature).exp(), dense(logits, labels, temperature)
        assert (found - wanted).abs().max() < 0.03
        whole = labels.log_probs_at(temperature).double().exp().sum(-1) + found
        assert torch.allclose(whole, torch.ones_like(whole), atol=1e-5)


def test_stored_ones_are_as_they_were_stored() -> None:
    labels = kept(TEACHERS["narrow"], 8)
    assert labels.log_tails is not None
    for place, temperature in enumerate(STORED):
        assert torch.equal(labels.log_tail(temperature), labels.log_tails[:, place])


def test_at_a_stored_temperature_the_curve_goes_through_the_stored_tail() -> None:
    labels = kept(TEACHERS["narrow"], 8)
    for temperature in (2.0, 4.0):
        near = labels.log_tail(math.nextafter(temperature, 9))
        assert torch.allclose(near, labels.log_tail(temperature), atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "temperature"), [(STORED, 0.5), ((1.0,), 2.0), ((), 2.0), (STORED, math.inf)]
)
def test_below_the_lowest_and_with_one_alone_it_refuses(
    stored: tuple[float, ...], temperature: float
) -> None:
    labels = kept(TEACHERS["narrow"], 8, stored)
    with pytest.raises(MissingTailError, match="use a stored temperature"):
        labels.log_tail(temperature)


def test_where_every_class_is_kept_there_is_no_tail_at_any_temperature() -> None:
    labels = kept(TEACHERS["few classes"], 40)
    assert bool(labels.log_tail(1.5).isneginf().all())
    assert torch.allclose(labels.log_probs_at(3.0).exp().sum(-1), torch.ones(64))


def test_unused_entries_count_as_not_kept() -> None:
    logits = TEACHERS["few classes"]
    whole, half = kept(logits, 8), kept(logits, 4)
    unused = torch.full((64, 4), -torch.inf)
    padded = SoftLabels(
        ids=torch.cat([half.ids, torch.zeros(64, 4, dtype=torch.int64)], -1),
        log_probs=torch.cat([half.log_probs, unused], -1),
        log_tails=half.log_tails,
        temperatures=STORED,
        classes=40,
    )
    assert torch.allclose(padded.log_tail(1.5), half.log_tail(1.5))
    assert not torch.allclose(padded.log_tail(1.5), whole.log_tail(1.5))


def test_a_loss_may_take_a_temperature_in_between() -> None:
    logits = TEACHERS["few classes"]
    labels = kept(logits, 8)
    assert sl.losses.kl_divergence(logits, labels, temperature=1.5).abs().max() < 0.01


ESTIMATED = (1.25, 2.0, 4.0, 50.0)


def rest(logits: torch.Tensor, labels: SoftLabels) -> torch.Tensor:
    """Dense log-probs of the classes that were not kept, −∞ at the others, float64."""
    return logits.double().log_softmax(-1).scatter(-1, labels.ids, -torch.inf)


@given(
    classes=st.sampled_from([2, 3, 9, 300, 5000]),
    k=st.sampled_from([1, 2, 8, 64]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]),
    by_hand=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_an_estimate_is_within_what_convexity_proves_and_grows_with_the_temperature(
    classes: int, k: int, spread: float, by_hand: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * spread
    k = min(k, classes - 1)
    log_probs, ids = logits.log_softmax(-1).topk(k)
    labels = SoftLabels(ids=ids, log_probs=log_probs, classes=classes)
    others = rest(logits, labels)
    mass = others.logsumexp(-1)
    if not by_hand or bool((mass < math.log(1e-6)).any()):
        labels = replace(labels, log_tails=mass.unsqueeze(-1), temperatures=(1.0,))
    found = labels.with_estimated_tails(ESTIMATED)
    before = mass
    for temperature in ESTIMATED:
        b, tail = 1 / temperature, found.log_tail(temperature)
        kept = (b * log_probs).logsumexp(-1)
        most = (1 - b) * math.log(classes - k) + b * mass
        # A float64 complement of 1e-6 is right to 1e-10 of itself.
        assert (tail - torch.nn.functional.logsigmoid(most - kept) < 1e-8).all()
        least = mass - (1 - b) * log_probs[:, -1]
        assert (tail - torch.nn.functional.logsigmoid(least - kept) > -1e-8).all()
        assert (tail - before > -1e-8).all()
        true = (b * others).logsumexp(-1) - (b * logits.log_softmax(-1)).logsumexp(-1)
        if k == classes - 1 or spread == 0:  # one class is left out; all are as likely
            torch.testing.assert_close(tail, true, rtol=1e-8, atol=1e-8)
        before = tail


@pytest.mark.parametrize("steepness", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("classes", [300, 20_000])
def test_of_a_teacher_that_obeys_the_assumed_law_the_estimate_is_the_tail(
    classes: int, steepness: float
) -> None:
    ranks = torch.arange(1, classes + 1).double()
    logits = (steepness * torch.log((classes - ranks + 0.5) / (ranks - 0.5))).expand(2, -1)
    for k in (4, 16, 64):
        labels = kept(logits.float(), k, (1.0,)).with_estimated_tails(ESTIMATED)
        for temperature in ESTIMATED:
            off = labels.log_tail(temperature).exp() - dense(logits, labels, temperature)
            # 64 ranks stand for all of them: for few of many classes the sum is off by this.
            assert off.abs().max() < 2e-3


@pytest.mark.parametrize("power", [0.8, 1.2, 2.0])
def test_of_zipfs_law_the_estimate_is_off_by_a_twenty_fifth_at_most(power: float) -> None:
    # Zipf's law ends at V with a step and the assumed one bends down to it, which is .037 at
    # worst here. An even spread, which is the most that is possible, is off by up to .3.
    logits = zipf(50_000, power)
    for k in (8, 64, 256):
        labels = kept(logits, k, (1.0,)).with_estimated_tails((1.5, 2.0, 4.0))
        for temperature in (1.5, 2.0, 4.0):
            off = labels.log_tail(temperature).exp() - dense(logits, labels, temperature)
            assert off.abs().max() < 0.04


def test_an_estimate_may_start_from_any_one_stored_temperature() -> None:
    logits = TEACHERS["few classes"]
    soft = kept(logits / 2, 8, (1.0,)).with_estimated_tails((1.5,))
    hard = kept(logits, 8, (2.0,)).with_estimated_tails((3.0,))
    torch.testing.assert_close(hard.log_tail(3.0), soft.log_tail(1.5), rtol=0, atol=1e-5)


def test_what_was_stored_stays_and_between_two_stored_ones_it_is_interpolated() -> None:
    labels = kept(TEACHERS["narrow"], 8)
    assert labels.with_estimated_tails(STORED) is labels
    found = labels.with_estimated_tails((2, 3.0, 1.0, 3.0))
    assert found.temperatures == (1.0, 2.0, 4.0, 3.0)
    assert found.log_tails is not None
    assert labels.log_tails is not None
    assert torch.equal(found.log_tails[:, :3], labels.log_tails)
    assert torch.equal(found.log_tail(3.0), labels.log_tail(3.0))


def test_a_tail_that_rounding_took_from_labels_made_by_hand_is_not_taken_for_none() -> None:
    peaked = torch.tensor([[0.0, -18.0]])  # in float32 nothing is left of 1
    labels = SoftLabels(ids=torch.tensor([[0, 1]]), log_probs=peaked, classes=1000)
    assert bool(labels.log_tail(1.0).isneginf().all())
    found = labels.with_estimated_tails((2.0,))
    assert found.temperatures == (1.0, 2.0)
    assert 2.0**-25 < float(found.log_tail(1.0).exp()) < 2.0**-23
    assert 1e-5 < float(found.log_tail(2.0).exp()) < 998 * math.exp(-9)


def test_where_every_class_is_kept_no_tail_is_estimated() -> None:
    labels = kept(TEACHERS["few classes"], 40)
    bare = replace(labels, log_tails=None, temperatures=())
    found = bare.with_estimated_tails((2.0,))
    assert found.log_tails is not None
    assert bool(found.log_tails.isneginf().all())


def test_masked_positions_may_hold_anything() -> None:
    logits = TEACHERS["few classes"][:3]
    labels = kept(logits, 8, (1.0,))
    assert labels.log_tails is not None
    mask = torch.tensor([True, False, True])
    # As `records.scatter` fills what has no label.
    filled = replace(
        labels,
        mask=mask,
        ids=labels.ids.masked_fill(~mask[:, None], 0),
        log_probs=labels.log_probs.masked_fill(~mask[:, None], 0),
        log_tails=labels.log_tails.masked_fill(~mask[:, None], -math.inf),
    ).with_estimated_tails((2.0,))
    wanted = labels.with_estimated_tails((2.0,))
    assert torch.equal(filled.log_tail(2.0)[mask], wanted.log_tail(2.0)[mask])
    student = logits.clone().requires_grad_()
    loss = sl.losses.kl_divergence(student, filled, temperature=2.0)
    loss.sum().backward()
    assert student.grad is not None
    assert bool(loss.isfinite().all())
    assert bool(student.grad.isfinite().all())
    assert loss.tolist()[1] == 0
    assert bool((student.grad[1] == 0).all())
    assert loss.max() < 0.05


def test_labels_with_estimates_go_wherever_labels_go() -> None:
    labels = kept(TEACHERS["narrow"], 8, (1.0,)).with_estimated_tails((2.0,))
    file = io.BytesIO()
    with torch.serialization.safe_globals([SoftLabels]):
        torch.save(labels, file)
        file.seek(0)
        again = torch.load(file, weights_only=True)
    leaves, spec = pytree.tree_flatten(labels)
    for same in (again, pytree.tree_unflatten(leaves, spec), labels.to("cpu"), labels[:]):
        assert torch.equal(same.log_tail(2.0), labels.log_tail(2.0))
    assert torch.equal(labels[3:5].log_tail(2.0), labels.log_tail(2.0)[3:5])
    one = kept(TEACHERS["narrow"], 8, (1.0,))[3].with_estimated_tails((2.0,))
    torch.testing.assert_close(one.log_tail(2.0), labels.log_tail(2.0)[3])
    fewer = labels.first(4)
    moved = labels.log_probs_at(2.0)[:, 4:].exp().sum(-1) + labels.log_tail(2.0).exp()
    torch.testing.assert_close(fewer.log_tail(2.0).exp(), moved)
    assert torch.equal(labels.top(4).log_tail(2.0), fewer.log_tail(2.0))


@pytest.mark.parametrize("temperature", [0.5, 0.0, -1.0, math.inf, math.nan])
def test_at_other_temperatures_than_higher_ones_nothing_is_estimated(temperature: float) -> None:
    labels = kept(TEACHERS["narrow"], 8, (1.0,))
    for one in (labels, replace(labels, log_tails=None, temperatures=())):
        with pytest.raises(InputError, match="only at finite ones from 1 on"):
            one.with_estimated_tails((2.0, temperature))
    with pytest.raises(MissingTailError) as caught:
        labels.log_tail(temperature)
    assert "estimate" not in str(caught.value)


def test_without_the_number_of_classes_and_of_weights_nothing_is_estimated() -> None:
    labels = replace(kept(TEACHERS["narrow"], 8), log_tails=None, temperatures=())
    with pytest.raises(InputError, match=r"classes=V"):
        replace(labels, classes=None).with_estimated_tails((2.0,))
    with pytest.raises(InputError, match="no tail is missing"):
        replace(labels, sampled=True).with_estimated_tails((2.0,))


def test_the_refusal_of_a_temperature_names_the_estimate() -> None:
    labels = kept(TEACHERS["narrow"], 8, (1.0,))
    with pytest.raises(MissingTailError, match=r"with_estimated_tails\(\(2,\)\)"):
        sl.losses.kl_divergence(TEACHERS["narrow"], labels, temperature=2.0)

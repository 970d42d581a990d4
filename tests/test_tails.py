"""Tail masses between stored temperatures, against dense logits."""

from __future__ import annotations

import math

import pytest
import torch

import softlabels as sl
from softlabels.errors import MissingTailError
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

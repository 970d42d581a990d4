"""What a loss takes from SoftLabels: the teacher's kept classes and what stands for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels, sum_tolerance

Tail = Literal["rest", "renormalised", "uniform"]
TAILS = ("rest", "renormalised", "uniform")


@dataclass(frozen=True)
class Target:
    """A teacher's distribution over kept classes and one rest bucket, normalised.

    Attributes:
        ids: int64, (..., k); an unused entry points where another one points.
        log_p: (..., k); −∞ where unused.
        log_p_rest: (...); −∞ where there is no rest.
    """

    ids: Tensor
    log_p: Tensor
    log_p_rest: Tensor

    @property
    def used(self) -> Tensor:
        """Which entries stand for a class, bool, (..., k)."""
        return self.log_p != -torch.inf


def target(labels: SoftLabels, *, temperature: float, tail: Tail, classes: int) -> Target:
    """The teacher's side of a loss.

    Args:
        tail: what stands for the classes that were not kept: "rest", one bucket of their stored
            mass; "renormalised", nothing: the kept ones are made to sum to 1, which drives the
            student's mass elsewhere to 0; "uniform", each has an equal share of that mass, in
            memory for all V classes.
        classes: the student's V.

    Raises:
        InputError: an unknown tail; "uniform" without knowing the teacher's V; a temperature that
            is none; or a position without a class.
        MissingTailError: no tail mass was stored at this temperature.
    """
    if tail not in TAILS:
        raise InputError(f"tail is {tail!r}; it is one of {', '.join(TAILS)}")
    check_some_used(labels)
    if tail == "renormalised":
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature:g}; it must be positive and finite")
        if labels.sampled:
            raise InputError(
                "sampled labels have weights, which renormalised would be biased; use "
                "soft_cross_entropy with tail='rest'"
            )
        log_p = torch.log_softmax(_wide(labels.log_probs) / temperature, -1)
        nothing = torch.full_like(log_p[..., 0], -torch.inf)
        return Target(_pointing(labels.ids, log_p), log_p, nothing)
    log_p, log_p_rest = labels.log_probs_at(temperature), labels.log_tail(temperature)
    if labels.log_tails is None:
        # What rounded log-probs leave of 1 is noise, but no proof that nothing is left.
        least = math.log(torch.finfo(log_p_rest.dtype).eps / 2)
        # Where every class is kept, it is no mass beside them.
        every = (labels.log_probs > -torch.inf).sum(-1) >= classes
        nothing = every & (log_p_rest < math.log(sum_tolerance(labels.log_probs.dtype)))
        log_p_rest = log_p_rest.clamp(min=least).masked_fill(nothing, -torch.inf)
    found = Target(_pointing(labels.ids, log_p), log_p, log_p_rest)
    return found if tail == "rest" else _uniform(found, labels.classes, classes)


def check_some_used(labels: SoftLabels) -> None:
    """Refuse a position without a class, which would be NaN in all that it is averaged with."""
    # As for ids out of range: on an accelerator this test would wait for the device.
    if labels.ids.device.type != "cpu":
        return
    unused = (labels.log_probs == -torch.inf).all(-1)
    unused = unused if labels.mask is None else unused & labels.mask
    if bool(unused.any()):
        raise InputError(
            f"labels at position {unused.nonzero()[0].tolist()} have no class: every log-prob is "
            "−inf; set labels.mask to False where there are no labels"
        )


def _uniform(found: Target, known: int | None, classes: int) -> Target:
    """Every class of the teacher, those that were not kept with equal shares of the rest."""
    if known is None:
        raise InputError(
            "tail='uniform' shares the rest among the classes that were not kept, and how many "
            "they are is not known; say so: dataclasses.replace(labels, classes=V)"
        )
    left_out = (known - found.used.sum(-1)).clamp(min=1)
    share = (found.log_p_rest - left_out.to(found.log_p.dtype).log()).unsqueeze(-1)
    dense = share.repeat_interleave(max(classes, known), -1)
    dense[..., known:] = -torch.inf
    dense.scatter_(-1, found.ids, found.log_p.gather(-1, _first(found)))
    ids = torch.arange(dense.shape[-1], device=dense.device).expand(dense.shape)
    return Target(ids, dense, torch.full_like(found.log_p_rest, -torch.inf))


def _first(found: Target) -> Tensor:
    """For each entry itself, and for an unused one the entry that it points to, (..., k)."""
    places = torch.arange(found.ids.shape[-1], device=found.ids.device).expand(found.ids.shape)
    likeliest = found.log_p.argmax(-1, keepdim=True)
    return torch.where(found.used, places, likeliest)


def _pointing(ids: Tensor, log_p: Tensor) -> Tensor:
    """Unused entries exclude no class: they point where the likeliest one points."""
    likeliest = ids.gather(-1, log_p.argmax(-1, keepdim=True))
    return torch.where(log_p == -torch.inf, likeliest, ids)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()

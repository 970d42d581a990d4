"""The slow, obvious version: dense float64 distributions, and autograd for the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softlabels import SoftLabels

TEMPERATURES = (1.0, 2.0, 4.0)


def normal(*shape: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def label(teacher: Tensor, k: int, hard: Tensor | None = None) -> SoftLabels:
    """Exact labels in float64 of logits (..., V)."""
    values, ids = teacher.topk(k)
    rest = teacher.scatter(-1, ids, -math.inf)
    lse = teacher.logsumexp(-1)
    tails = [(rest / t).logsumexp(-1) - (teacher / t).logsumexp(-1) for t in TEMPERATURES]
    chosen = None if hard is None else teacher.gather(-1, hard.unsqueeze(-1)).squeeze(-1) - lse
    return SoftLabels(
        ids=ids,
        log_probs=values - lse.unsqueeze(-1),
        logsumexp=lse,
        log_tails=torch.stack(tails, -1),
        temperatures=TEMPERATURES,
        hard_log_probs=chosen,
        classes=teacher.shape[-1],
    )


def kept_of(labels: SoftLabels, classes: int) -> Tensor:
    """Which classes are kept, bool, (..., V)."""
    kept = torch.zeros(*labels.shape, classes, dtype=torch.bool)
    return kept.scatter(-1, labels.ids, labels.log_probs > -math.inf)


def buckets(logits: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """Log-probs of the kept classes, −∞ elsewhere, and of all others as one, (..., V + 1)."""
    dense = torch.log_softmax(logits / temperature, -1)
    rest = dense.masked_fill(kept, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([dense.masked_fill(~kept, -math.inf), rest], -1)


Formula = Callable[[Tensor, Tensor], Tensor]


def some(log_weight: Tensor, value: Tensor) -> Tensor:
    known = log_weight > -math.inf
    return torch.where(known, log_weight.exp() * torch.where(known, value, 0), 0).sum(-1)


def forward(log_p: Tensor, log_q: Tensor) -> Tensor:
    return some(log_p, log_p - log_q)


def reverse(log_p: Tensor, log_q: Tensor) -> Tensor:
    return some(log_q, log_q - log_p)


def js(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    m = beta * log_p.exp() + (1 - beta) * log_q.exp()
    log_m = torch.where(m > 0, m, 1).log()
    return beta * some(log_p, log_p - log_m) + (1 - beta) * some(log_q, log_q - log_m)


def variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def cross(log_p: Tensor, log_q: Tensor) -> Tensor:
    return -some(log_p, log_q)


def check(found: Tensor, expected: Tensor, student: Tensor) -> None:
    """Loss and gradient, under weights that differ from position to position."""
    weights = torch.linspace(0.5, 2, found.numel(), dtype=found.dtype).view(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    one, other = (torch.autograd.grad((y * weights).sum(), student)[0] for y in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)

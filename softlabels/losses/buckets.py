"""The one pass over a student's logits that every loss on kept classes and a rest bucket takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError, VocabularyMismatchError

# From the student's log q of the kept classes (..., k) and of the rest (...), the loss (...).
# Differentiable by autograd; the rest is −∞ where every class is kept.
Pointwise = Callable[[Tensor, Tensor], Tensor]


def bucketed(
    logits: Tensor,
    ids: Tensor,
    used: Tensor,
    pointwise: Pointwise,
    *,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    r"""temperature² times a loss of the student's kept log-probs and of its log rest mass.

    With u_j and u_r the pointwise derivatives by log q_j and log q_r, and S = Σ u_j + u_r, the
    gradient by a logit is T (u_j − q_j S) where it is kept, and T q_j (u_r / q_r − S) elsewhere:
    the exponentials that the rest mass needs are the gradient there, times one number a row. So
    loss and gradient take one exponential over the classes.

    Args:
        logits: student, float, (..., V).
        ids: kept classes, int64, (..., k); an unused entry points where another one points.
        used: bool, (..., k).
        mask: bool, (...): elsewhere loss and gradient are 0, whatever the rest holds.

    Returns:
        (...), float64 for float64 logits, else float32.

    Raises:
        VocabularyMismatchError: a kept class is outside V.
        InputError: shapes differ.
    """
    ids = checked_ids(logits, ids, mask)
    loss: Tensor = _Bucketed.apply(  # type: ignore[no-untyped-call]
        logits, ids, used, pointwise, mask, temperature
    )
    return loss


def result_dtype(logits: Tensor) -> torch.dtype:
    """Losses are float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def checked_ids(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The ids, 0 where masked; refused where they do not fit the logits."""
    if logits.shape[:-1] != ids.shape[:-1]:
        raise InputError(
            f"logits have batch shape {tuple(logits.shape[:-1])}, labels {tuple(ids.shape[:-1])}; "
            "both cover the same positions, nothing is shifted (entry t belongs to logits[t])"
        )
    if mask is not None:
        ids = ids.masked_fill(~mask.unsqueeze(-1), 0)
    check_classes(ids, logits.shape[-1])
    return ids


def check_classes(ids: Tensor, classes: int) -> None:
    """Refuse ids that are none of so many classes."""
    # On an accelerator this test would wait for the device; there, gather itself refuses.
    if ids.device.type == "cpu" and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= classes:
            raise VocabularyMismatchError(
                f"the labels name class {low if low < 0 else high}, the student's logits have "
                f"classes 0 … {classes - 1}; the student needs the teacher's classes"
            )


def loss_and_gradient(
    logits: Tensor,
    ids: Tensor,
    used: Tensor,
    pointwise: Pointwise,
    *,
    temperature: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `bucketed` describes, without a mask.

    Args:
        logits: (..., V) of the result's dtype; overwritten.

    Returns:
        loss (...), and its gradient by the logits (..., V), in their place, if it is wanted.
    """
    kept = torch.gather(logits, -1, ids) / temperature
    rest = logits.div_(temperature).scatter_(-1, ids, -torch.inf)
    peak = rest.amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    rest_sum = rest.sub_(peak).exp_().sum(-1)
    log_rest = rest_sum.log() + peak.squeeze(-1)
    log_kept = torch.logsumexp(kept.masked_fill(~used, -torch.inf), -1)
    total = torch.logaddexp(log_rest, log_kept)
    log_q, log_q_rest = kept - total.unsqueeze(-1), log_rest - total
    if not gradient:
        return temperature**2 * pointwise(log_q, log_q_rest), None
    with torch.enable_grad():
        log_q, log_q_rest = log_q.requires_grad_(), log_q_rest.requires_grad_()
        loss = pointwise(log_q, log_q_rest)
        u, u_rest = torch.autograd.grad(
            loss.sum(), (log_q, log_q_rest), allow_unused=True, materialize_grads=True
        )
    u, log_q, log_q_rest = u.masked_fill(~used, 0), log_q.detach(), log_q_rest.detach()
    every = u.sum(-1) + u_rest
    # Elsewhere T q_j (u_r / q_r − S), where q_j / q_r = rest_j / rest_sum.
    scale = temperature * (u_rest - every * log_q_rest.exp()) / rest_sum
    rest.mul_(torch.where(rest_sum > 0, scale, 0).unsqueeze(-1))
    at_kept = temperature * (u - log_q.exp() * every.unsqueeze(-1))
    rest.scatter_add_(-1, ids, torch.where(used, at_kept, 0))
    return temperature**2 * loss.detach(), rest


class _Bucketed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        used: Tensor,
        pointwise: Pointwise,
        mask: Tensor | None,
        temperature: float,
    ) -> Tensor:
        loss, gradient = loss_and_gradient(
            logits.to(result_dtype(logits), copy=True), ids, used, pointwise,
            temperature=temperature, gradient=ctx.needs_input_grad[0],
        )  # fmt: skip
        if gradient is not None:
            if mask is not None:
                gradient.masked_fill_(~mask.unsqueeze(-1), 0)
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return loss if mask is None else torch.where(mask, loss, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream.unsqueeze(-1)).to(ctx.dtype), None, None, None, None, None

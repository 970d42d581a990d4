"""The one pass over a student's logits that every loss on kept classes and a rest bucket takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.losses.products import graph_is_kept, scaled

# From the student's log q of the kept classes (..., k) and of the rest (...), the loss (...).
# Differentiable by autograd; the rest is −∞ where every class is kept.
Pointwise = Callable[[Tensor, Tensor], Tensor]

# Smaller blocks are up to a twentieth faster on an idle machine, and slower on a busy one.
BLOCK_BYTES = 32 << 20


def bucketed(
    logits: Tensor,
    ids: Tensor,
    used: Tensor,
    divergence: Callable[..., Tensor],
    teacher: Sequence[Tensor],
    *,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    r"""temperature² times a loss of the student's kept log-probs and of its log rest mass.

    With u_j and u_r the derivatives of the loss by log q_j and log q_r, and S = Σ u_j + u_r, the
    gradient by a logit is T (u_j − q_j S) where it is kept, and T q_j (u_r / q_r − S) elsewhere:
    the exponentials that the rest mass needs are the gradient there, times one number a row. So
    loss and gradient take one exponential over the classes.

    Args:
        logits: student, float, (..., V).
        ids: kept classes, int64, (..., k); an unused entry points where another one points.
        used: bool, (..., k).
        divergence: of the teacher's tensors, then log q of the kept classes (n, k) and of the rest
            (n,), the loss (n,), differentiable by autograd; the rest is −∞ where every class is
            kept.
        teacher: tensors with the batch axes (...) first.
        mask: bool, (...): elsewhere loss and gradient are 0, whatever the rest holds.

    Returns:
        (...), float64 for float64 logits, else float32.

    Raises:
        VocabularyMismatchError: a kept class is outside V.
        InputError: shapes differ.
    """
    ids = checked_ids(logits, ids, mask)
    shape = logits.shape[:-1]
    rows = [t.reshape(-1, *t.shape[len(shape) :]) for t in (logits, ids, used, *teacher)]
    flat_mask = None if mask is None else mask.reshape(-1)
    loss: Tensor = _Bucketed.apply(  # type: ignore[no-untyped-call]
        rows[0], rows[1], rows[2], divergence, tuple(rows[3:]), flat_mask, temperature
    )
    return loss.view(shape)


def blocks(rows: int, classes: int, device: torch.device) -> Iterator[slice]:
    """Rows whose float32 logits are worked on together, on an accelerator all at once.

    On a CPU the passes over them find some in its cache, and without a gradient they are all the
    memory that is needed.
    """
    size = max(1, BLOCK_BYTES // (4 * max(1, classes))) if device.type == "cpu" else max(1, rows)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


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


@cache
def on_cuda() -> ModuleType | None:
    """What takes two passes where torch takes eight; None where it is not installed."""
    try:
        from softlabels.losses import buckets_triton

        buckets_triton.rest_of(torch.zeros(1, 1, device="cuda"), 1.0)
    except (ImportError, RuntimeError):  # no triton, or no compiler for what launches it
        return None
    return buckets_triton


def engine_for(logits: Tensor) -> ModuleType | None:
    """What works on such logits, however narrow; None for torch, which widens them."""
    return on_cuda() if logits.is_cuda and logits.dtype != torch.float64 else None


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
        logits: (n, V) of the result's dtype, or a narrower one where there is an `engine_for` it;
            overwritten.

    Returns:
        loss (...), and its gradient by the logits (..., V), in their place, if it is wanted.
    """
    kept = torch.gather(logits, -1, ids).to(result_dtype(logits)) / temperature
    engine = engine_for(logits)
    if engine is not None:
        rest = logits.scatter_(-1, ids, -torch.inf)
        peak, rest_sum = engine.rest_of(rest, temperature)
    else:
        rest = (logits if temperature == 1.0 else logits.div_(temperature)).scatter_(
            -1, ids, -torch.inf
        )
        peak = rest.amax(-1)
        peak = peak.masked_fill(peak == -torch.inf, 0)
        rest_sum = rest.sub_(peak.unsqueeze(-1)).exp_().sum(-1)
    log_rest = rest_sum.log() + peak
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
    scale = torch.where(rest_sum > 0, scale, 0)
    if engine is not None:
        engine.spread_(rest, peak, scale, temperature)
    else:
        rest.mul_(scale.unsqueeze(-1))
    at_kept = temperature * (u - log_q.exp() * every.unsqueeze(-1))
    rest.scatter_add_(-1, ids, torch.where(used, at_kept, 0).to(rest.dtype))
    return temperature**2 * loss.detach(), rest


class _Bucketed(torch.autograd.Function):
    """Of logits (N, V), ids and used (N, k), the teacher's tensors (N, …) and a mask (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        used: Tensor,
        divergence: Callable[..., Tensor],
        teacher: tuple[Tensor, ...],
        mask: Tensor | None,
        temperature: float,
    ) -> Tensor:
        dtype, needs = result_dtype(logits), ctx.needs_input_grad[0]
        loss = logits.new_empty(len(logits), dtype=dtype)
        gradient = torch.empty_like(logits, dtype=dtype) if needs else None
        for rows in blocks(len(logits), logits.shape[1], logits.device):
            work = logits[rows].to(dtype, copy=True) if gradient is None else gradient[rows]
            if gradient is not None:
                work.copy_(logits[rows])
            found, _ = loss_and_gradient(
                work,
                ids[rows],
                used[rows],
                partial(divergence, *(tensor[rows] for tensor in teacher)),
                temperature=temperature,
                gradient=needs,
            )
            loss[rows] = found
            if mask is not None:
                work.masked_fill_(~mask[rows].unsqueeze(-1), 0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return loss if mask is None else torch.where(mask, loss, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scale = upstream.unsqueeze(-1)
        slope = scaled(gradient, scale, dtype=ctx.dtype, keep=graph_is_kept())
        return slope, None, None, None, None, None, None

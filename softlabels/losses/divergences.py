"""Divergences between a teacher's kept classes plus one rest bucket, and a student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.labels import SoftLabels, sum_tolerance


def kl_divergence(logits: Tensor, labels: SoftLabels, *, temperature: float = 1.0) -> Tensor:
    r"""KL(teacher ‖ student) in nats, the classes that were not kept taken as one.

        T² · ( Σ_{j∈K} p_j log(p_j / q_j) + p_r log(p_r / q_r) )

    with p, q at temperature T, p_r the stored tail mass and q_r the student's mass outside K. The
    gradient is T (q_j − p_j) on kept logits and T q_j (1 − p_r / q_r) elsewhere: the student's
    total tail mass is trained, its shape there is left to the student. A lower bound of the dense
    KL (merging classes never raises a KL), tight when k = V.

    Args:
        logits: student, float, shape (..., V). Not normalised.
        labels: teacher, batch shape (...).
        temperature: applied to both sides; one of `labels.temperatures`.

    Returns:
        shape (...), float64 for float64 logits, else float32; 0 where `labels.mask` is false. Not
        averaged, because only the caller knows what to divide by: see `reduce`.

    Raises:
        MissingTailError: no tail mass was stored at this temperature.
        VocabularyMismatchError: a kept class is outside the student's V.
        InputError: shapes differ.
    """
    log_p, log_p_rest = labels.log_probs_at(temperature), labels.log_tail(temperature)
    if labels.log_tails is None and labels.k == logits.shape[-1]:
        # Every class is kept: what their rounded sum leaves of 1 is no mass beside them.
        nothing = log_p_rest < math.log(sum_tolerance(labels.log_probs.dtype))
        log_p_rest = log_p_rest.masked_fill(nothing, -torch.inf)
    likeliest = labels.ids.gather(-1, log_p.argmax(-1, keepdim=True))
    # An unused entry excludes no class, so it points where another entry points already.
    ids = torch.where(log_p == -torch.inf, likeliest, labels.ids)
    return rest_bucket_kl(logits, ids, log_p, log_p_rest, mask=labels.mask, temperature=temperature)


def rest_bucket_kl(
    logits: Tensor,
    ids: Tensor,
    log_p: Tensor,
    log_p_rest: Tensor,
    *,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    """`kl_divergence` from the target's parts, normalised: log_p (..., k), log_p_rest (...)."""
    if logits.shape[:-1] != ids.shape[:-1]:
        raise InputError(
            f"logits have batch shape {tuple(logits.shape[:-1])}, labels {tuple(ids.shape[:-1])}; "
            "both cover the same positions, nothing is shifted (entry t belongs to logits[t])"
        )
    if mask is not None:
        ids = ids.masked_fill(~mask.unsqueeze(-1), 0)
    # On an accelerator this test would wait for the device; there, gather itself refuses.
    if ids.device.type == "cpu" and ids.numel():
        low, high, classes = int(ids.min()), int(ids.max()), logits.shape[-1]
        if low < 0 or high >= classes:
            raise VocabularyMismatchError(
                f"the labels name class {low if low < 0 else high}, the student's logits have "
                f"classes 0 … {classes - 1}; the student needs the teacher's classes"
            )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss: Tensor = _RestBucketKL.apply(  # type: ignore[no-untyped-call]
        logits, ids, log_p.to(dtype), log_p_rest.to(dtype), mask, temperature
    )
    return loss


class _RestBucketKL(torch.autograd.Function):
    """Loss and gradient from one exponential over the classes.

    The student's rest mass is summed over the classes not kept, never taken as 1 − Σ q_K, which is
    noise once the tail is small. The exponentials that this needs are, times one number a row,
    the gradient there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        log_p: Tensor,
        log_p_rest: Tensor,
        mask: Tensor | None,
        temperature: float,
    ) -> Tensor:
        used, has_rest = log_p != -torch.inf, log_p_rest != -torch.inf
        kept = torch.gather(logits, -1, ids).to(log_p.dtype) / temperature
        rest = logits.to(log_p.dtype, copy=True).div_(temperature).scatter_(-1, ids, -torch.inf)
        peak = rest.amax(-1, keepdim=True)
        peak = peak.masked_fill(peak == -torch.inf, 0)
        rest_sum = rest.sub_(peak).exp_().sum(-1)
        log_rest = rest_sum.log() + peak.squeeze(-1)
        log_kept = torch.logsumexp(kept.masked_fill(~used, -torch.inf), -1)
        total = torch.logaddexp(log_rest, log_kept)

        log_q, p, p_rest = kept - total.unsqueeze(-1), log_p.exp(), log_p_rest.exp()
        terms = torch.where(used, p * (log_p - log_q), 0)
        tail = torch.where(has_rest, p_rest * (log_p_rest - (log_rest - total)), 0)
        loss = temperature**2 * (terms.sum(-1) + tail)

        if ctx.needs_input_grad[0]:
            # elsewhere T q_j (1 − p_r / q_r), where q_j / q_r = exp(rest_j) / rest_sum
            scale = (log_rest - total).exp() - p_rest
            scale = torch.where(rest_sum > 0, temperature * scale / rest_sum, 0)
            gradient = rest.mul_(scale.unsqueeze(-1))
            at_kept = torch.where(used, temperature * (log_q.exp() - p), 0)
            gradient.scatter_add_(-1, ids, at_kept)
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

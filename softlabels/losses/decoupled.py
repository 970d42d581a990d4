"""Decoupled distillation: the hard label's class, and what is left without it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import NO_LABEL, SoftLabels
from softlabels.losses.buckets import bucketed, check_classes, result_dtype
from softlabels.losses.targets import target


def decoupled_kl_divergence(
    logits: Tensor,
    labels: SoftLabels,
    hard_labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""The KL in two parts with weights of their own, in nats.

        T² · ( α KL(b_p ‖ b_q) + β KL(p̂ ‖ q̂) )

    with t the hard label, b = (p_t, 1 − p_t), and p̂ the distribution of all other classes, those
    that were not kept in one bucket. The KL itself is α = 1, β = 1 − p_t: it hides what is known of
    the other classes where the teacher is sure. (Zhao et al., "Decoupled knowledge distillation",
    CVPR 2022.) A hard label that was not kept is taken out of the rest by its stored log-prob.

    Args:
        logits: student, float, (..., V).
        labels: teacher, batch shape (...).
        hard_labels: int64, (...), from `next_tokens`; −100 where there is none.

    Returns:
        (...), float64 for float64 logits, else float32; 0 where masked or without a hard label.

    Raises:
        InputError: shapes differ; or a hard label was not kept, and its log-prob is not known.
        MissingTailError: as in `kl_divergence`.
    """
    if hard_labels.shape != labels.shape:
        raise InputError(
            f"hard labels have shape {tuple(hard_labels.shape)}, labels {tuple(labels.shape)}"
        )
    mask = hard_labels != NO_LABEL
    if labels.mask is not None:
        mask = mask & labels.mask
    hard = hard_labels.masked_fill(~mask, 0).unsqueeze(-1)
    check_classes(hard, logits.shape[-1])
    dtype = result_dtype(logits)
    teacher = target(labels, temperature=temperature, tail="rest", classes=logits.shape[-1])
    log_p, log_rest = teacher.log_p.to(dtype), teacher.log_p_rest.to(dtype)
    is_hard = teacher.used & (teacher.ids == hard)
    kept = is_hard.any(-1)
    log_hard = log_p.masked_fill(~is_hard, -torch.inf).amax(-1)
    if not bool((kept | ~mask).all()):
        found = _not_kept(labels, log_p, log_rest, mask & ~kept, temperature).to(dtype)
        log_hard = torch.where(kept, log_hard, torch.minimum(found, log_rest))
        log_rest = torch.where(kept, log_rest, _without(log_rest, log_hard))
        # What rounding leaves beside all classes is no mass.
        all_named = teacher.used.sum(-1) + ~kept >= logits.shape[-1]
        log_rest = log_rest.masked_fill(all_named, -torch.inf)
    # The hard label is an entry of its own, after the others without it.
    others = log_p.masked_fill(is_hard, -torch.inf)
    ids = torch.cat([torch.where(is_hard | ~teacher.used, hard, teacher.ids), hard], -1)
    used = torch.cat([others > -torch.inf, torch.ones_like(kept).unsqueeze(-1)], -1)
    weighed = partial(_decoupled, alpha=alpha, beta=beta)
    parts = (log_hard, others, log_rest)
    return bucketed(logits, ids, used, weighed, parts, mask=mask, temperature=temperature)


def _decoupled(
    log_hard: Tensor,
    log_p: Tensor,
    log_p_rest: Tensor,
    log_q: Tensor,
    log_q_rest: Tensor,
    *,
    alpha: float,
    beta: float,
) -> Tensor:
    """log_q holds the other kept classes, then the hard label."""
    q_hard, log_q = log_q[..., -1], log_q[..., :-1].masked_fill(log_p == -torch.inf, -torch.inf)
    # The mass of the others, summed: 1 − p_t is noise where p_t is near 1.
    all_p = torch.logaddexp(log_p.logsumexp(-1), log_p_rest)
    finite = torch.cat([log_q, log_q_rest.unsqueeze(-1)], -1)
    nothing = (finite == -torch.inf).all(-1, keepdim=True)
    all_q = finite.masked_fill(nothing, 0).logsumexp(-1)
    binary = _term(log_hard, log_hard - q_hard) + _term(all_p, all_p - all_q)
    kept = _term(log_p - all_p.unsqueeze(-1), log_p - log_q - (all_p - all_q).unsqueeze(-1))
    rest = _term(log_p_rest - all_p, log_p_rest - log_q_rest - (all_p - all_q))
    return alpha * binary + beta * (kept.sum(-1) + rest)


def _term(log_weight: Tensor, value: Tensor) -> Tensor:
    some = log_weight > -torch.inf
    return torch.where(some, log_weight, -torch.inf).exp() * torch.where(some, value, 0)


def _not_kept(
    labels: SoftLabels, log_p: Tensor, log_rest: Tensor, wanted: Tensor, temperature: float
) -> Tensor:
    """Log-probs at a temperature of hard labels that were not kept, from those at T = 1."""
    known = labels.hard_log_probs
    if known is None or bool(known[wanted].isnan().any()):
        raise InputError(
            "a hard label is none of the kept classes, and its log-prob is not in the labels "
            "(hard_log_probs): label again with hard labels, or mask such positions"
        )
    # log p_T = log p / T − A, with the same A for every class; the likeliest kept one tells it.
    first = labels.log_probs.argmax(-1, keepdim=True)
    at_one = labels.log_probs.gather(-1, first).to(log_p.dtype).squeeze(-1)
    shift = log_p.gather(-1, first).squeeze(-1) - at_one / temperature
    return known.to(log_p.dtype) / temperature + shift


def _without(log_all: Tensor, log_part: Tensor) -> Tensor:
    """log(exp(log_all) − exp(log_part)), −∞ where nothing is left."""
    difference = (log_part - log_all).clamp(max=0)
    left = torch.log(-torch.expm1(difference))
    return torch.where(log_all == -torch.inf, -torch.inf, log_all + left)

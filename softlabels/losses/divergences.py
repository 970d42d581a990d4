"""Divergences between a teacher's kept classes plus their rest, and a student."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.losses.buckets import Pointwise, bucketed, checked_ids, result_dtype
from softlabels.losses.targets import Tail, Target, check_some_used, target

# Of the teacher's log-probs of kept classes (..., k) and of the rest (...), then the student's.
Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def kl_divergence(
    logits: Tensor, labels: SoftLabels, *, temperature: float = 1.0, tail: Tail = "rest"
) -> Tensor:
    r"""KL(teacher ‖ student) in nats, the classes that were not kept taken as one.

        T² · ( Σ_{j∈K} p_j log(p_j / q_j) + p_r log(p_r / q_r) )

    with p, q at temperature T, p_r the stored tail mass and q_r the student's mass outside K. The
    gradient is T (q_j − p_j) on kept logits and T q_j (1 − p_r / q_r) elsewhere: the student's
    total tail mass is trained, its shape there is left to the student. A lower bound of the dense
    KL (merging classes never raises a KL), tight when k = V.

    Args:
        logits: student, float, shape (..., V). Not normalised.
        labels: teacher, batch shape (...).
        temperature: applied to both sides; one of `labels.temperatures`, or between them. Labels
            whose tail is known at T = 1 alone, as those of a server, take others after
            `labels.with_estimated_tails((2.0,))`, which approximates.
        tail: what stands for the classes not kept, see `softlabels.losses.targets.target`.
            "renormalised" is biased: the student's mass elsewhere is driven to 0.

    Returns:
        shape (...), float64 for float64 logits, else float32; 0 where `labels.mask` is false. Not
        averaged, because only the caller knows what to divide by: see `reduce`.

    Raises:
        MissingTailError: no tail mass was stored at this temperature, nor around it; or the labels
            are sampled: see `soft_cross_entropy`, whose gradient is the same.
        VocabularyMismatchError: a kept class is outside the student's V.
        InputError: shapes differ.
    """
    return _divergence(logits, labels, forward_kl, temperature, tail)


def reverse_kl_divergence(
    logits: Tensor, labels: SoftLabels, *, temperature: float = 1.0, tail: Tail = "rest"
) -> Tensor:
    r"""KL(student ‖ teacher) in nats: mode-seeking, it punishes mass where the teacher has none.

        T² · ( Σ_{j∈K} q_j log(q_j / p_j) + q_r log(q_r / p_r) )

    Gu et al., "MiniLLM: knowledge distillation of large language models", ICLR 2024. Arguments,
    result and errors are those of `kl_divergence`.

    Raises:
        InputError: this is infinite: with "renormalised" the teacher has no mass outside K; where
            all of its classes are kept, or with "uniform", none on what only the student has.
    """
    if tail == "renormalised":
        raise InputError(
            "the reverse KL of a renormalised teacher is infinite: it has no mass outside the kept "
            "classes, and the student always has some; use tail='rest'"
        )
    known, classes = labels.classes, logits.shape[-1]
    if known is not None and known < classes and (tail == "uniform" or _any_whole(labels, known)):
        raise InputError(
            f"the teacher has {known} classes, the student {classes}, and so mass where the "
            f"teacher has none: this is infinite; pass logits[..., :{known}]"
        )
    return _divergence(logits, labels, _reverse_kl, temperature, tail)


def js_divergence(
    logits: Tensor,
    labels: SoftLabels,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    tail: Tail = "rest",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence in nats, between forward and reverse KL; bounded.

        T² · ( β KL(p ‖ m) + (1 − β) KL(q ‖ m) ),  m = β p + (1 − β) q

    Agarwal et al., "On-policy distillation of language models", ICLR 2024. Arguments, result and
    errors are those of `kl_divergence`.

    Args:
        beta: in (0, 1); divided by β it tends to the forward KL for β → 0, divided by 1 − β to the
            reverse one for β → 1.
    """
    if not 0 < beta < 1:
        raise InputError(
            f"beta is {beta}; it lies between 0 and 1, at which this is 0: use kl_divergence or "
            "reverse_kl_divergence there"
        )
    return _divergence(logits, labels, partial(_js, beta=beta), temperature, tail)


def total_variation(
    logits: Tensor, labels: SoftLabels, *, temperature: float = 1.0, tail: Tail = "rest"
) -> Tensor:
    r"""Total variation distance: the largest difference in the probability of any set of buckets.

        T² · ½ ( Σ_{j∈K} |p_j − q_j| + |p_r − q_r| )

    Wen et al., "f-divergence minimization for sequence-level knowledge distillation", ACL 2023.
    Arguments, result and errors are those of `kl_divergence`.
    """
    return _divergence(logits, labels, _total_variation, temperature, tail)


def soft_cross_entropy(
    logits: Tensor, labels: SoftLabels, *, temperature: float = 1.0, tail: Tail = "rest"
) -> Tensor:
    r"""Cross-entropy with soft targets in nats: the KL, and the teacher's own entropy.

        T² · ( −Σ_{j∈K} p_j log q_j − p_r log q_r )

    Of a sampled set, the unbiased estimate of the dense cross-entropy from its weights:

        logsumexp(z) − Σ_j w_j z_j

    whose gradient is q_j − w_j, with coefficient 1 on q even where the weights do not sum to 1.
    (Anshumann et al., "Sparse logit sampling", ACL 2025.) The gradient is that of the KL.
    Arguments, result and errors are otherwise those of `kl_divergence`.

    Raises:
        InputError: sampled labels at another temperature than 1, or with another tail.
    """
    if labels.sampled:
        return _of_weights(logits, labels, temperature, tail)
    return _divergence(logits, labels, _cross_entropy, temperature, tail)


def of_target(
    logits: Tensor,
    teacher: Target,
    divergence: Callable[..., Tensor],
    *,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    """temperature² times a divergence between a target and a student, (...)."""
    dtype = result_dtype(logits)
    return bucketed(
        logits,
        teacher.ids,
        teacher.used,
        divergence,
        (teacher.log_p.to(dtype), teacher.log_p_rest.to(dtype)),
        mask=mask,
        temperature=temperature,
    )


def against(teacher: Target, divergence: Divergence, dtype: torch.dtype) -> Pointwise:
    """The divergence as a function of the student alone."""
    return partial(divergence, teacher.log_p.to(dtype), teacher.log_p_rest.to(dtype))


def _divergence(
    logits: Tensor, labels: SoftLabels, divergence: Divergence, temperature: float, tail: Tail
) -> Tensor:
    teacher = target(labels, temperature=temperature, tail=tail, classes=logits.shape[-1])
    return of_target(logits, teacher, divergence, mask=labels.mask, temperature=temperature)


def forward_kl(log_p: Tensor, log_p_rest: Tensor, log_q: Tensor, log_q_rest: Tensor) -> Tensor:
    """Of log-probs of kept classes, (..., k), −∞ where the teacher's is unused, and of the rest."""
    kept = _expected(log_p, log_p - log_q).sum(-1)
    return kept + _expected(log_p_rest, log_p_rest - log_q_rest)


def _reverse_kl(log_p: Tensor, log_p_rest: Tensor, log_q: Tensor, log_q_rest: Tensor) -> Tensor:
    log_q = log_q.masked_fill(log_p == -torch.inf, -torch.inf)
    kept = _expected(log_q, log_q - log_p).sum(-1)
    return kept + _expected(log_q_rest, log_q_rest - log_p_rest)


def _any_whole(labels: SoftLabels, known: int) -> bool:
    """Whether all of so many classes are kept at a position."""
    # Only here are the values looked at, for which an accelerator is waited for.
    if labels.k < known:
        return False
    whole = (labels.log_probs > -torch.inf).sum(-1) >= known
    return bool((whole if labels.mask is None else whole & labels.mask).any())


def _js(
    log_p: Tensor, log_p_rest: Tensor, log_q: Tensor, log_q_rest: Tensor, *, beta: float
) -> Tensor:
    log_q = log_q.masked_fill(log_p == -torch.inf, -torch.inf)

    def terms(p: Tensor, q: Tensor) -> Tensor:
        # Of two infinities logaddexp has no gradient.
        some = (p > -torch.inf) | (q > -torch.inf)
        log_m = torch.logaddexp(
            torch.where(some, p, 0) + math.log(beta), torch.where(some, q, 0) + math.log1p(-beta)
        )
        return beta * _expected(p, p - log_m) + (1 - beta) * _expected(q, q - log_m)

    return terms(log_p, log_q).sum(-1) + terms(log_p_rest, log_q_rest)


def _total_variation(
    log_p: Tensor, log_p_rest: Tensor, log_q: Tensor, log_q_rest: Tensor
) -> Tensor:
    log_q = log_q.masked_fill(log_p == -torch.inf, -torch.inf)
    kept = (log_p.exp() - log_q.exp()).abs().sum(-1)
    return (kept + (log_p_rest.exp() - log_q_rest.exp()).abs()) / 2


def _cross_entropy(log_p: Tensor, log_p_rest: Tensor, log_q: Tensor, log_q_rest: Tensor) -> Tensor:
    return -_expected(log_p, log_q).sum(-1) - _expected(log_p_rest, log_q_rest)


def _expected(log_weight: Tensor, value: Tensor) -> Tensor:
    """exp(log_weight) · value, 0 where the weight is, whatever stands in value."""
    some = log_weight > -torch.inf
    return log_weight.exp() * torch.where(some, value, 0)


def _of_weights(logits: Tensor, labels: SoftLabels, temperature: float, tail: Tail) -> Tensor:
    if temperature != 1.0 or tail != "rest":
        raise InputError(
            f"sampled labels at temperature {temperature:g} with tail={tail!r}: their weights are "
            "unbiased for all classes at temperature 1, and for nothing else"
        )
    check_some_used(labels)
    mask = labels.mask
    used = labels.log_probs != -torch.inf
    ids = checked_ids(logits, labels.ids.masked_fill(~used, 0), mask)
    z, weights = logits.to(result_dtype(logits)), labels.log_probs.to(result_dtype(logits)).exp()
    if mask is not None:
        # What stands at a masked position may not even be finite.
        z = torch.where(mask.unsqueeze(-1), z, 0)
        weights = weights.masked_fill(~mask.unsqueeze(-1), 0)
    named = torch.where(used, z.gather(-1, ids), 0)
    loss = z.logsumexp(-1) - (weights * named).sum(-1)
    return loss if mask is None else loss.masked_fill(~mask, 0)

"""Divergences between a teacher's kept classes plus one rest bucket, and a student."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.labels import SoftLabels


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
    _check(logits, labels)
    z = (logits.double() if logits.dtype == torch.float64 else logits.float()) / temperature
    log_p = labels.log_probs_at(temperature).to(z.dtype)
    log_p_rest = labels.log_tail(temperature).to(z.dtype)
    ids, used = labels.ids, log_p != -torch.inf
    total = torch.logsumexp(z, -1)

    log_q = torch.gather(z, -1, ids) - total.unsqueeze(-1)
    p = log_p.exp()
    kept = torch.where(used, p * (log_p.masked_fill(~used, 0) - log_q), 0)

    # q_r by a logsumexp over the classes not kept: 1 − Σ q_K is noise once the tail is small.
    # An unused entry excludes nothing, so it points where another entry points already.
    hidden = torch.where(used, ids, ids[..., :1])
    rest = z.scatter(-1, hidden, -torch.inf)
    has_rest = log_p_rest != -torch.inf
    rest = torch.where(has_rest.unsqueeze(-1), rest, 0)  # all −inf would make NaN gradients
    log_q_rest = torch.logsumexp(rest, -1) - total
    p_rest = log_p_rest.exp()
    tail = torch.where(has_rest, p_rest * (log_p_rest.masked_fill(~has_rest, 0) - log_q_rest), 0)

    loss = temperature**2 * (kept.sum(-1) + tail)
    return loss if labels.mask is None else torch.where(labels.mask, loss, 0)


def _check(logits: Tensor, labels: SoftLabels) -> None:
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"logits have batch shape {tuple(logits.shape[:-1])}, labels {tuple(labels.shape)}; "
            "both cover the same positions, nothing is shifted (entry t belongs to logits[t])"
        )
    classes = logits.shape[-1]
    # On an accelerator this test would wait for the device; there, gather itself refuses.
    if labels.ids.device.type == "cpu" and labels.ids.numel() and int(labels.ids.max()) >= classes:
        raise VocabularyMismatchError(
            f"the labels name class {int(labels.ids.max())}, the student's logits have only "
            f"{classes}; the student needs the teacher's classes"
        )

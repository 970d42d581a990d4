"""Logits against logits, of the kept classes."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.losses.buckets import checked_ids, result_dtype
from softlabels.losses.targets import check_some_used


def logit_mse(logits: Tensor, labels: SoftLabels, *, centred: bool = True) -> Tensor:
    r"""Mean squared error of the kept classes' logits.

        1/|K| Σ_{j∈K} (z_j − v_j)²

    with the teacher's logits v. Logits that differ by a constant are the same distribution;
    centred, the mean over the kept classes is taken from both sides first: no constant is learnt.
    (Ba and Caruana, "Do deep nets really need to be deep?", NeurIPS 2014; Kim et al., "Comparing
    Kullback-Leibler divergence and mean squared error loss in knowledge distillation", IJCAI 2021.)
    Nothing is said of the other classes.

    Args:
        logits: student, float, (..., V).
        labels: teacher, batch shape (...).
        centred: as above.

    Returns:
        (...), float64 for float64 logits, else float32; 0 where masked.

    Raises:
        InputError: the teacher's logits are not known and it is not centred; labels are sampled;
            a position has no class.
    """
    if labels.sampled:
        raise InputError("sampled labels have weights, no logits")
    if labels.logits is None and labels.logsumexp is None and not centred:
        raise InputError(
            "the teacher told log-probs and no logits, which are unknown by a constant: pass "
            "centred=True"
        )
    check_some_used(labels)
    dtype, mask = result_dtype(logits), labels.mask
    used = labels.log_probs != -torch.inf
    ids = checked_ids(logits, labels.ids.masked_fill(~used, 0), mask)
    if mask is not None:
        used = used & mask.unsqueeze(-1)
    student = logits.gather(-1, ids).to(dtype)
    difference = torch.where(used, student - _teacher(labels).to(dtype), 0)
    count = used.sum(-1).clamp(min=1)
    if centred:
        mean = difference.sum(-1, keepdim=True) / count.unsqueeze(-1)
        difference = torch.where(used, difference - mean, 0)
    return difference.square().sum(-1) / count


def _teacher(labels: SoftLabels) -> Tensor:
    if labels.logits is not None:
        return labels.logits
    if labels.logsumexp is None:
        return labels.log_probs
    return labels.log_probs + labels.logsumexp.unsqueeze(-1)

"""Two teachers' labels of the same positions: where they are equal, and how far they are apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softlabels.errors import MissingTailError
from softlabels.labels import SoftLabels

# No mass is believed to be less than e to this: codecs write less as none, which would be infinite.
_LEAST_LOG_REST = -30.0
# After every class id, and exact in float64, through which torch pads.
_BEYOND = 1 << 40


def _by_id(labels: SoftLabels, k: int) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and log-probs in float64, both (n, k); unused ones come last."""
    ids = labels.ids.masked_fill(labels.log_probs == -torch.inf, _BEYOND)
    ids, order = ids.sort(-1)
    log_probs = labels.log_probs.double().gather(-1, order)
    more = (0, k - labels.k)
    pad = torch.nn.functional.pad
    return pad(ids, more, value=_BEYOND), pad(log_probs, more, value=-math.inf)


def equal(ours: SoftLabels, theirs: SoftLabels) -> Tensor:
    """Where labels are the same to the bit, bool, (n,)."""
    k = max(ours.k, theirs.k)
    pairs = list(zip(_by_id(ours, k), _by_id(theirs, k), strict=True))
    same = torch.ones(len(ours), dtype=torch.bool)
    if ours.temperatures != theirs.temperatures or ours.sampled != theirs.sampled:
        return ~same
    for name in ("logsumexp", "log_tails", "hard_log_probs"):
        left, right = getattr(ours, name), getattr(theirs, name)
        if (left is None) != (right is None):
            return ~same
        if left is not None:
            pairs.append((left, right))
    for left, right in pairs:
        alike = (left == right) | (left.isnan() & right.isnan())
        same &= alike.flatten(1).all(-1) if alike.ndim > 1 else alike
    return same


def kl_between(ours: SoftLabels, theirs: SoftLabels) -> Tensor | None:
    """KL(ours ‖ theirs) in nats at T = 1, (n,), over the classes that both keep and one rest.

    A lower bound of the dense one. None where labels are sampled, or have no tail at T = 1.
    """
    if ours.sampled or theirs.sampled:
        return None
    k = max(ours.k, theirs.k)
    try:
        tails = [labels.log_tail(1.0).double() for labels in (ours, theirs)]
    except MissingTailError:
        return None
    (ids, log_p), (other_ids, log_q) = _by_id(ours, k), _by_id(theirs, k)
    at = torch.searchsorted(other_ids, ids).clamp(max=k - 1)
    common = (other_ids.gather(-1, at) == ids) & (log_p > -torch.inf)
    taken = torch.zeros(log_q.shape, dtype=torch.int32).scatter_add_(-1, at, common.int()) > 0
    rests = [
        torch.logaddexp(tail, values.masked_fill(matched, -torch.inf).logsumexp(-1)).clamp(
            min=_LEAST_LOG_REST, max=0
        )
        for tail, values, matched in zip(tails, (log_p, log_q), (common, taken), strict=True)
    ]
    matched_q = log_q.gather(-1, at)
    terms = (log_p.exp() * (log_p - matched_q)).masked_fill(~common, 0).sum(-1)
    # Rounded masses do not sum to 1 exactly, so that a sum of terms may lie below 0.
    return (terms + rests[0].exp() * (rests[0] - rests[1])).clamp(min=0)

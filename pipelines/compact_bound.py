"""By how much may the codec compact change a KL? From its bounds alone, whatever the set holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import softlabels as sl

# In docs/FORMAT.md, "Error bounds": of the angle θ of a tail mass sin²θ, and of small log-probs.
ANGLE, LOG_STEP, LEAST_LOG = 0.0047, 0.5, -34.0


def most_change(exact: sl.SoftLabels, logits: Tensor, *, scale: int) -> Tensor:
    """How far `kl_divergence` of stored labels may be from that of the exact ones, (N,), float64.

        Σ_b max { |x log(x / q_b) − p_b log(p_b / q_b)| : x between the least and the most of p_b }

    over kept classes and the rest b: what is lost if all rounding errors conspire.

    Args:
        exact: labels of batch shape (N,) with a tail at T = 1, no entry unused.
        logits: student, (N, V).
        scale: of the codec.
    """
    log_q = torch.log_softmax(logits.double(), -1)
    q = log_q.gather(-1, exact.ids).exp()
    p, tail = exact.log_probs_at(1.0).double().exp(), exact.log_tail(1.0).double().exp()
    rest = log_q.scatter(-1, exact.ids, -torch.inf).logsumexp(-1).exp()
    angle = tail.sqrt().clamp(max=1).asin()
    # Code 0 is no mass, and stands for nothing else.
    least_tail = torch.where(tail > 0, (angle - ANGLE).clamp(min=0).sin() ** 2, 0)
    most_tail = torch.where(tail > 0, (angle + ANGLE).clamp(max=math.pi / 2).sin() ** 2, 0)
    least, most = _values(p, scale)
    # Kept values are rescaled to 1 − tail.
    least_sum, most_sum = least.sum(-1, keepdim=True), most.sum(-1, keepdim=True)
    lowest = least * (1 - most_tail).unsqueeze(-1) / (most_sum - most + least)
    highest = most * (1 - least_tail).unsqueeze(-1) / (least_sum - least + most)
    return _worst(p, q, lowest, highest).sum(-1) + _worst(tail, rest, least_tail, most_tail)


def _values(p: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The least and the most that a probability is written as, before the rescaling."""
    roots = scale * p ** (1 / 3)
    floor = (3 / scale) ** 3 * math.exp(LEAST_LOG)
    small = roots < 2.5
    least = torch.where(small, p * math.exp(-LOG_STEP), ((roots - 0.5) / scale) ** 3)
    most = torch.where(
        small, (p * math.exp(LOG_STEP)).clamp(min=floor), ((roots + 0.5) / scale) ** 3
    )
    return least, most


def _worst(p: Tensor, q: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """The largest |x log(x / q) − p log(p / q)| of any x between: at an end, or where x = q / e."""
    here = torch.special.xlogy(p, p / q)
    ends = [least, most, torch.clamp(q / math.e, least, most)]
    # Where the student has no mass either, there is nothing to change.
    changes = [(torch.special.xlogy(x, x / q) - here).abs() for x in ends]
    return torch.stack(changes).amax(0).nan_to_num(nan=0.0)

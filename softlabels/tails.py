"""The mass of the classes not kept at temperatures that it was not stored at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Nodes of the polynomial. With six stored temperatures one through all of them would amplify what
# storing rounds away fivefold (benchmarks/bench_storage.py).
_NODES = 4
_LEAST_SLOPE = 1e-9
# Of the ranks that `estimated` sums over. With 32 or 1,024 of them the mass moves by .0005 at most
# in the mean, a hundredth of what the estimate is off.
_RANKS = 64
# From where it starts, Newton's method has converged to 1e-12 by then for tails from 1 to 1e-40.
_STEPS = 8


def interpolated(
    log_probs: Tensor, log_tails: Mapping[float, Tensor], temperature: float, *, classes: int
) -> Tensor:
    r"""Log of the mass of the classes not kept, (...), float64.

    With b = 1/T, A(b) = log Σ_{not kept} exp(b z) is convex. A(0) = log(number not kept) is free,
    and each stored tail gives A(b) = log Σ_{kept} exp(b z) + log(tail / (1 − tail)). A is
    interpolated by Newton's polynomial through the four nearest of these b. Where the largest b is
    among them, so is the slope there: between the last chord c and the least kept log-prob, which
    no other class exceeds, it is c + P·Z / (P + Z), with Z the distance to that bound and P to
    the slope of the parabola through the last three points.

    Of the mass, with T = 1, 2, 4 stored, it is off by .001 at T = 3 and .004 at T = 1.5 in the
    mean (docs/RESULTS.md).

    Args:
        log_probs: of the kept classes at T = 1, (..., k); −∞ where unused.
        log_tails: by stored temperature, each (...); at least two.
        temperature: above the lowest stored one.
        classes: V.
    """
    log_probs = log_probs.double()
    nodes = [0.0, *sorted(1 / stored for stored in log_tails)]
    left_out = classes - (log_probs > -torch.inf).sum(-1)
    rest = [left_out.clamp(min=1).double().log()]
    for stored in sorted(log_tails, reverse=True):
        rest.append(_log_rest(log_probs / stored, log_tails[stored].double()))
    b = 1 / temperature
    first = max(0, min(sum(node <= b for node in nodes) - 2, len(nodes) - _NODES))
    xs, ys = nodes[first : first + _NODES], rest[first : first + _NODES]
    if xs[-1] == nodes[-1]:
        least = log_probs.masked_fill(log_probs == -torch.inf, torch.inf).amin(-1)
        slope = _last_slope(nodes[-3:], rest[-3:], bound=least)
        found = _newton(b, [*xs, xs[-1]], [*ys, ys[-1]], slope=slope)
    else:
        found = _newton(b, xs, ys, slope=None)
    tail = torch.nn.functional.logsigmoid(found - (b * log_probs).logsumexp(-1))
    everything_kept = (left_out == 0) | torch.stack(list(log_tails.values())).isneginf().any(0)
    return tail.masked_fill(everything_kept, -math.inf)


def estimated(
    log_probs: Tensor, log_tail: Tensor, temperature: float, *, stored: float, classes: int
) -> Tensor:
    r"""Log of the mass of the classes not kept, from its value at one temperature, (...), float64.

    An estimate: what was not kept at T is not a function of what was. The classes not kept are
    given the beta-rank law p_r ∝ ((V − r + ½) / (r − ½))^s, r = k + 1 … V, Zipf's with an end at V
    (Martínez-Mekler et al., PLoS ONE 4(3), 2009), with s and a factor such that the law goes
    through the least kept class at r = k and the rest has its stored mass. No constant is fitted
    to a teacher.

    As interpolated does, it gives A(b) = log Σ_{not kept} exp(b z) at b = 1/T, here relative to
    the stored temperature. A is that of classes of which none exceeds the least kept one, z_k, so
    that it is within what convexity proves,

        A(1) − (1 − b) z_k  ≤  A(b)  ≤  (1 − b) log(V − k) + b A(1),

    and the mass grows with T. Exact where one class is left out, or all others are as likely as
    the least one kept. How far it is off elsewhere: docs/RESULTS.md.

    Args:
        log_probs: of the kept classes at T = 1, (..., k); −∞ where unused. They must be the
            likeliest of all.
        log_tail: at `stored`, (...).
        temperature: at least `stored`, finite.
        stored: the temperature of log_tail.
        classes: V.
    """
    log_probs, log_tail = log_probs.double() / stored, log_tail.double()
    used = log_probs > -torch.inf
    kept = used.sum(-1)
    left_out = (classes - kept).clamp(min=1).double()
    everything, nothing = (classes <= kept) | log_tail.isneginf(), (log_tail == 0) | (kept == 0)
    # Whatever stands where there is no rest or nothing but rest is replaced in the end.
    rest = _log_rest(log_probs, log_tail).masked_fill(everything | nothing, 0)
    least = log_probs.masked_fill(~used, torch.inf).amin(-1).masked_fill(kept == 0, 0)
    # Rounded, the rest may have more than its classes can have; it is spread evenly then.
    least = torch.maximum(least, rest - left_out.log())
    weights, fall = _ranks(kept, classes)
    steepness = _steepness(weights, fall, rest - least)
    b = stored / temperature
    found = b * least + (weights - b * steepness.unsqueeze(-1) * fall).logsumexp(-1)
    tail = torch.nn.functional.logsigmoid(found - (b * log_probs).logsumexp(-1))
    return tail.masked_fill(nothing, 0).masked_fill(everything, -math.inf)


def _ranks(kept: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Ranks r from k + 1 to V, in equal steps of log r, in place of all of them.

    Returns:
        log of how many classes each stands for, and log((V − k + ½) / (k − ½)) less the same at r,
        ascending: both (..., _RANKS), float64.
    """
    kept = kept.clamp(1, max(1, classes - 1)).double().unsqueeze(-1)
    parts = torch.linspace(0, 1, _RANKS + 1, dtype=torch.float64, device=kept.device)
    low, high = kept + 0.5, classes + 0.5
    edges = low * (high / low) ** parts
    ranks = torch.maximum((edges[..., 1:] + edges[..., :-1]) / 2, kept + 1).clamp(max=classes)
    fall = _log_odds(kept, classes) - _log_odds(ranks, classes)
    return edges.diff(dim=-1).log(), fall


def _log_odds(ranks: Tensor, classes: int) -> Tensor:
    return torch.log((classes - ranks + 0.5) / (ranks - 0.5))


def _steepness(weights: Tensor, fall: Tensor, target: Tensor) -> Tensor:
    """The s at which F(s) = log Σ exp(weights − s fall) is target, at most F(0), (...).

    F is convex and falls, so that Newton's method goes up to s and never beyond it from any
    smaller start. The start is the largest that Jensen's inequality gives for the first j terms.
    """
    sums = weights.logcumsumexp(-1)
    means = (weights.exp() * fall).cumsum(-1) / sums.exp()
    found = ((sums - target.unsqueeze(-1)) / means).amax(-1).clamp(min=0)
    for _ in range(_STEPS):
        terms = weights - found.unsqueeze(-1) * fall
        slope = (terms.softmax(-1) * fall).sum(-1)
        found = (found + (terms.logsumexp(-1) - target) / slope).clamp(min=0)
    return found


def _log_rest(log_probs: Tensor, log_tail: Tensor) -> Tensor:
    """log Σ exp over the classes not kept, from that over the kept ones and the tail."""
    return log_probs.logsumexp(-1) + log_tail - torch.log(-torch.expm1(log_tail))


def _last_slope(xs: Sequence[float], ys: Sequence[Tensor], *, bound: Tensor) -> Tensor:
    """The slope at the last of three points of a convex function whose slope stays below bound."""
    before, chord = ((ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i]) for i in range(2))
    parabola = ((chord - before) * (xs[2] - xs[1]) / (xs[2] - xs[0])).clamp(min=_LEAST_SLOPE)
    room = (bound - chord).clamp(min=_LEAST_SLOPE)
    return chord + parabola * room / (parabola + room)


def _newton(x: float, xs: Sequence[float], ys: Sequence[Tensor], *, slope: Tensor | None) -> Tensor:
    """Newton's polynomial; a node that stands twice has this slope."""
    terms = list(ys)
    for order in range(1, len(xs)):
        for i in range(len(xs) - 1, order - 1, -1):
            if xs[i] == xs[i - order]:
                assert slope is not None
                terms[i] = slope
            else:
                terms[i] = (terms[i] - terms[i - 1]) / (xs[i] - xs[i - order])
    found = terms[-1]
    for node, term in zip(xs[-2::-1], terms[-2::-1], strict=True):
        found = found * (x - node) + term
    return found

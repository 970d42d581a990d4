"""The mass of the classes not kept at temperatures between those it was stored at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Nodes of the polynomial. With six stored temperatures one through all of them would amplify what
# storing rounds away fivefold (benchmarks/bench_storage.py).
_NODES = 4
_LEAST_SLOPE = 1e-9


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
        tail = log_tails[stored].double()
        rest.append((log_probs / stored).logsumexp(-1) + tail - torch.log(-torch.expm1(tail)))
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

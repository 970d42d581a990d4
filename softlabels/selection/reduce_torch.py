"""A block of logits to its largest ones and the sums over the others, in torch, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from softlabels.memory import empty


def reduce(
    logits: Tensor, k: int, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a selection needs of each row.

    Args:
        logits: float, (N, V), k ≤ V; in float32 whatever their dtype. −inf forbids a class.
        temperatures: at least one, descending.

    Returns:
        the k largest values in descending order, equal ones by ascending id, (N, k); their ids,
        int64; the largest value not kept, (N,), −inf at k = V; and for each temperature Σ over the
        classes not kept of exp((z − that value) / T), (N, len(temperatures)). NaN or infinite
        where the row holds NaN or +inf.
    """
    logits = logits.float()
    if len(logits) == 1:
        # The sum of a single row is split among threads, so its last bits would differ from those
        # of the same row among others.
        values, ids, rest_max, sums = reduce(logits.expand(2, -1), k, temperatures)
        return values[:1], ids[:1], rest_max[:1], sums[:1]
    values, ids, rest_max = top_k(logits, k)
    return values, ids, rest_max, rest_sums(logits, ids, rest_max, temperatures=temperatures)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row, descending, equal ones by ascending id.

    Args:
        logits: float32, shape (N, V), k ≤ V.

    Returns:
        values (N, k), ids (N, k) int64, and the largest value *not* kept (N,), −inf at k = V.
    """
    classes = logits.shape[-1]
    wanted = min(k + 1, classes)
    values, ids = block_top(logits, wanted)
    if wanted > k:
        # Where the k-th equals the next one, which of the equals were taken is chance.
        tied = values[:, -2] == values[:, -1]
        if bool(tied.any()):
            rows = logits[tied]
            ids[tied] = _earliest(rows, values[tied, -1:], wanted)
            values[tied] = rows.gather(-1, ids[tied])
    # topk leaves the order of equal values open: by id first, then stably by value.
    ids, by_id = torch.sort(ids, dim=-1)
    values, by_value = torch.sort(values.gather(-1, by_id), dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    if wanted == k:
        return values, ids, logits.new_full((len(logits),), -math.inf)
    return values[:, :k], ids[:, :k], values[:, k]


def block_top(logits: Tensor, k: int, *, blocks_per_row: int = 16) -> tuple[Tensor, Tensor]:
    """`torch.topk`, exact, 2.5 to 3 times as fast on a CPU for k ≪ V.

    A row is seen as (16, V / 16). No element outside the k columns with the largest maxima can be
    among the k largest, so only 16·k candidates are sorted.
    """
    rows, classes = logits.shape
    width = classes // blocks_per_row
    if k * 4 > width:
        return torch.topk(logits, k, dim=-1)
    blocks = logits[:, : width * blocks_per_row].view(rows, blocks_per_row, width)
    columns = torch.topk(blocks.amax(1), k, dim=-1, sorted=False).indices
    step = torch.arange(blocks_per_row, device=logits.device) * width
    candidates = (columns.unsqueeze(1) + step.view(1, -1, 1)).flatten(1)
    left_over = torch.arange(width * blocks_per_row, classes, device=logits.device)
    candidates = torch.cat([candidates, left_over.expand(rows, -1)], -1)
    values, where = torch.topk(logits.gather(-1, candidates), k, dim=-1)
    return values, candidates.gather(-1, where)


def _earliest(logits: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Ids of k classes a row, in no order: those above the threshold, then the first equal to it.

    Selecting once more, by id, takes a twentieth of the time of a stable sort, and two rows in
    three tie in bfloat16 (benchmarks/bench_selection.py).
    """
    # float32 holds ids exactly to 2²⁴.
    order = -torch.arange(logits.shape[-1], dtype=torch.float32, device=logits.device)
    priority = order.where(logits == threshold, -math.inf).masked_fill_(logits > threshold, 1)
    return block_top(priority, k)[1]


def rest_sums(
    logits: Tensor, ids: Tensor, rest_max: Tensor, *, temperatures: Sequence[float]
) -> Tensor:
    """Σ over classes not in `ids` of exp((z − rest_max) / T), (N, len(temperatures))."""
    shift = rest_max.masked_fill(rest_max == -math.inf, 0.0).unsqueeze(-1)
    steps = squarings(temperatures)
    rest = torch.sub(logits, shift, out=_like(logits)).scatter_(-1, ids, -math.inf)
    # Where one exponential is enough, it takes the place of what it is of.
    power = rest if steps.count(0) == 1 else _like(rest)
    sums = logits.new_empty(len(logits), len(temperatures))
    for place, squares in enumerate(steps):
        for _ in range(squares):
            power.square_()
        if not squares:
            torch.div(rest, temperatures[place], out=power).exp_()
        sums[:, place] = power.sum(-1)
    return sums


def squarings(temperatures: Sequence[float]) -> list[int]:
    """How often the exponential at the temperature before is to be squared; 0 for a new one.

    The exponential at T, squared, is the one at T / 2: a third of the cost of another.
    """
    pairs = pairwise([math.inf, *temperatures])
    return [{2.0: 1, 4.0: 2}.get(above / below, 0) for above, below in pairs]


def _like(tensor: Tensor) -> Tensor:
    """Memory of the same shape, dtype and device."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        return torch.from_numpy(empty(tuple(tensor.shape), np.float32))
    return torch.empty_like(tensor)

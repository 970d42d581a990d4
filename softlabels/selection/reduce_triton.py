"""As `reduce_torch`, for a CUDA device; importing it fails where triton is not installed.

The logits are read once, as they are, and what is read a second time is one group in fifty of
them: a pass leaves of every group of neighbours its maximum and, measured from there, its sums.
No element outside the k + 1 groups with the largest maxima can be among the k + 1 largest, of equal
maxima the first; so the groups not among them have no kept class and give their sums whole, and of
those among them what is not kept is summed anew. Nothing is subtracted, so a rest of 1e-30 is as
exact as any.
"""

# What is compiled for a device has no types that mypy knows.
# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from softlabels.selection import reduce_torch

# Neighbours in a group, where fewer than so many classes are kept, else half of them. Fewer leave
# fewer candidates, and more maxima to select from.
_GROUP, _FEW = 32, 128
# Logits that a program of four warps reads.
_BLOCK = 4096
# Groups whose sums are added at a time.
_SUMMED = 2048
# Of a row one program holds so many maxima, and then so many candidates, in registers.
_MOST_HELD = 1 << 15
# How many of a float32's lowest bits say nothing.
_SPARE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


def reduce(
    logits: Tensor, k: int, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reduce_torch.reduce`; logits may also be float16 or bfloat16, and stay so."""
    size = _GROUP if k < _FEW else _GROUP // 2
    groups = triton.cdiv(logits.shape[1], size)
    candidates = triton.next_power_of_2(k + 1) * size
    held = max(candidates, triton.next_power_of_2(groups))
    if not len(logits) or k >= groups or held > _MOST_HELD or logits.dtype not in _SPARE_BITS:
        return reduce_torch.reduce(logits, k, temperatures)
    with torch.cuda.device_of(logits):
        z = logits if logits.stride(-1) == 1 else logits.contiguous()
        order, rest_max, totals = _launch(z, k, temperatures, size=size, groups=groups)
    # Descending value above, ascending id below.
    ids = torch.sort(order, dim=-1).values & 0xFFFFFFFF
    return z.gather(-1, ids).float(), ids, rest_max, totals


def _launch(
    z: Tensor, k: int, temperatures: Sequence[float], *, size: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of the k largest of each row, the largest value of the rest, and its sums."""
    rows, classes = z.shape
    maxima = torch.empty(rows, groups, device=z.device)
    sums = torch.empty(len(temperatures), rows, groups, device=z.device)
    steps: dict[str, Any] = {
        "SQUARES": tuple(reduce_torch.squarings(temperatures)),
        "FACTORS": tuple(1 / temperature for temperature in temperatures),
        "GROUP": size,
    }
    block = _BLOCK // size
    programs = rows * triton.cdiv(groups, block)
    _scan[(programs,)](
        z, maxima, sums, rows, classes, groups, z.stride(0), BLOCK=block, num_warps=4, **steps
    )
    spare, held = _SPARE_BITS[z.dtype], triton.next_power_of_2(groups)
    chosen = torch.empty(rows, k + 1, dtype=torch.int32, device=z.device)
    _choose[(rows,)](
        maxima, chosen, groups, k + 1, SPARE=spare, MAXIMA=held, num_warps=_warps(held)
    )
    order = torch.empty(rows, k, dtype=torch.int64, device=z.device)
    rest_max = torch.empty(rows, device=z.device)
    totals = torch.empty(rows, len(temperatures), device=z.device)
    held = triton.next_power_of_2(k + 1) * size
    _finish[(rows,)](
        z, chosen, order, rest_max, totals, classes, groups, z.stride(0), k,
        SPARE=spare, CANDIDATES=held, num_warps=_warps(held), **steps,
    )  # fmt: skip
    _add[(rows * len(temperatures),)](
        maxima, sums, rest_max, totals, rows, groups, FACTORS=steps["FACTORS"],
        BLOCK=_SUMMED, BLOCKS=triton.cdiv(groups, _SUMMED), num_warps=4,
    )  # fmt: skip
    return order, rest_max, totals


def _warps(held: int) -> int:
    return min(16, max(4, held // 1024))


@triton.jit
def _powers(rest, power, STEP: tl.constexpr, SQUARES: tl.constexpr, FACTORS: tl.constexpr):
    """exp(rest · factor) of a step, from the step before where squares are enough."""
    if SQUARES[STEP] == 0:
        power = tl.exp(rest * FACTORS[STEP])
    else:
        power = power * power
        if SQUARES[STEP] == 2:
            power = power * power
    return power


@triton.jit(do_not_specialize=["rows", "groups"])
def _scan(
    logits,
    maxima,
    sums,
    rows,
    classes,
    groups,
    stride,
    SQUARES: tl.constexpr,
    FACTORS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(groups, BLOCK)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    group = program % blocks * BLOCK + tl.arange(0, BLOCK)
    place = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    z = tl.load(logits + row * stride + place, mask=place < classes, other=-float("inf"))
    z = z.to(tl.float32)
    peak = tl.max(z, 1)
    tl.store(maxima + row * groups + group, peak, mask=group < groups)
    rest = z - tl.where(peak == -float("inf"), 0.0, peak)[:, None]
    power = rest
    for step in tl.static_range(len(SQUARES)):
        power = _powers(rest, power, step, SQUARES, FACTORS)
        out = sums + (step * rows + row) * groups + group
        tl.store(out, tl.sum(power, 1), mask=group < groups)


@triton.jit
def _keys(z):
    """Integers in the order of the values; both zeros are one."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _first(keys, wanted, SPARE: tl.constexpr):
    """Whether each is among the `wanted` largest, of equal ones the first; and its place there."""
    narrow = keys >> SPARE
    none_negative = tl.sum((narrow >= 0).to(tl.int32), 0) >= wanted
    least = tl.where(none_negative, 0, -(1 << (31 - SPARE)))
    for step in range(31 - SPARE):
        higher = least + (1 << (30 - SPARE - step))
        reached = tl.sum((narrow >= higher).to(tl.int32), 0)
        least = tl.where(reached >= wanted, higher, least)
    above = (narrow > least).to(tl.int32)
    equal = (narrow == least).to(tl.int32)
    missing = wanted - tl.sum(above, 0)
    # Both counts fit one integer: there are no more than 2¹⁵ of them.
    counts = tl.cumsum(above * 65536 + equal, 0)
    equals = counts & 65535
    is_first = (above > 0) | ((equal > 0) & (equals <= missing))
    return is_first, (counts >> 16) + tl.minimum(equals, missing) - 1


@triton.jit(do_not_specialize=["groups", "wanted"])
def _choose(maxima, chosen, groups, wanted, SPARE: tl.constexpr, MAXIMA: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, MAXIMA)
    maxima += row * groups + group
    peak = tl.load(maxima, mask=group < groups, other=-float("inf"))
    is_chosen, at = _first(_keys(peak), wanted, SPARE)
    tl.store(chosen + row * wanted + at, group, mask=is_chosen)
    # Their sums count for nothing.
    tl.store(maxima, -float("inf"), mask=is_chosen & (group < groups))


@triton.jit(do_not_specialize=["groups", "k"])
def _finish(
    logits,
    chosen,
    order,
    rest_max,
    totals,
    classes,
    groups,
    stride,
    k,
    SQUARES: tl.constexpr,
    FACTORS: tl.constexpr,
    GROUP: tl.constexpr,
    SPARE: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CANDIDATES)
    owner = place // GROUP
    owner = tl.load(chosen + row * (k + 1) + owner, mask=owner <= k, other=groups)
    place = owner * GROUP + place % GROUP
    z = tl.load(logits + row * stride + place, mask=place < classes, other=-float("inf"))
    z = z.to(tl.float32)
    keys = _keys(z)
    is_kept, at = _first(keys, k, SPARE)
    # A NaN may be below what stands for places after the last.
    place = tl.minimum(place, classes - 1)
    tl.store(order + row * k + at, ((~keys).to(tl.int64) << 32) | place, mask=is_kept)

    highest = tl.max(tl.where(is_kept, -float("inf"), z), 0)
    tl.store(rest_max + row, highest)
    shift = tl.where(highest == -float("inf"), 0.0, highest)
    rest = tl.where(is_kept, -float("inf"), z - shift)
    power = rest
    for step in tl.static_range(len(SQUARES)):
        power = _powers(rest, power, step, SQUARES, FACTORS)
        tl.store(totals + row * len(SQUARES) + step, tl.sum(power, 0))


@triton.jit(do_not_specialize=["rows", "groups"])
def _add(
    maxima,
    sums,
    rest_max,
    totals,
    rows,
    groups,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // len(FACTORS)).to(tl.int64)
    step = program % len(FACTORS)
    factor = FACTORS[0]
    for other in tl.static_range(1, len(FACTORS)):
        factor = tl.where(step == other, FACTORS[other], factor)
    highest = tl.load(rest_max + row)
    shift = tl.where(highest == -float("inf"), 0.0, highest)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(BLOCKS):
        group = part * BLOCK + tl.arange(0, BLOCK)
        there = group < groups
        peak = tl.load(maxima + row * groups + group, mask=there, other=-float("inf"))
        share = tl.load(sums + (step * rows + row) * groups + group, mask=there, other=0.0)
        total += tl.exp((peak - shift) * factor) * share
    tl.store(totals + program, tl.load(totals + program) + tl.sum(total, 0))

"""The two passes of `buckets.loss_and_gradient` over the logits, for a CUDA device.

Importing it fails where triton is not installed. In torch these passes are eight, and in float32
whatever the logits are.
"""

# What is compiled for a device has no types that mypy knows.
# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Classes that a program of eight warps reads at a time.
_BLOCK = 4096


def rest_of(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The largest of each row / temperature, 0 for −∞, and Σ exp(z / temperature − that).

    Args:
        logits: bfloat16, float16 or float32, (n, V), each row in one piece.

    Returns:
        two of float32, (n,).
    """
    rows, classes = logits.shape
    peak, total = (torch.empty(rows, device=logits.device) for _ in range(2))
    if rows:
        with torch.cuda.device_of(logits):
            _rest[(rows,)](
                logits, peak, total, classes, logits.stride(0), 1 / temperature,
                BLOCK=_BLOCK, BLOCKS=triton.cdiv(classes, _BLOCK), num_warps=8,
            )  # fmt: skip
    return peak, total


def spread_(logits: Tensor, peak: Tensor, scale: Tensor, temperature: float) -> Tensor:
    """exp(z / temperature − peak) · scale in place of the logits; see `rest_of`."""
    rows, classes = logits.shape
    if rows:
        blocks = triton.cdiv(classes, _BLOCK)
        with torch.cuda.device_of(logits):
            _spread[(rows * blocks,)](
                logits, peak, scale, classes, blocks, logits.stride(0), 1 / temperature,
                BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
    return logits


@triton.jit
def _rest(logits, peak, total, classes, stride, factor, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    sums = tl.zeros([BLOCK], tl.float32)
    for part in range(BLOCKS):
        place = part * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + place, mask=place < classes, other=-float("inf"))
        z = z.to(tl.float32) * factor
        higher = tl.maximum(highest, tl.max(z, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        sums = sums * tl.exp(highest - shift) + tl.exp(z - shift)
        highest = higher
    tl.store(peak + row, tl.where(highest == -float("inf"), 0.0, highest))
    tl.store(total + row, tl.sum(sums, 0))


@triton.jit
def _spread(logits, peak, scale, classes, blocks, stride, factor, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    place = program % blocks * BLOCK + tl.arange(0, BLOCK)
    at = logits + row * stride + place
    z = tl.load(at, mask=place < classes).to(tl.float32) * factor
    z = tl.exp(z - tl.load(peak + row)) * tl.load(scale + row)
    tl.store(at, z.to(logits.dtype.element_ty), mask=place < classes)

"""Gradients of a head, summed in float32 and given back in its own dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, of the same dtype or of a narrower one."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):
        # Summed as it is made: fewer bytes, and nothing is rounded in between.
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    elif left.dtype == torch.float16:
        # Not yet divided by how many positions there are, a sum over them overflows it.
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
    else:
        total += left @ right


def scaled(gradient: Tensor, scale: Tensor, *, dtype: torch.dtype) -> Tensor:
    """gradient · scale in the dtype of a parameter: in its own place, or without a wider copy."""
    if gradient.dtype == dtype:
        return gradient.mul_(scale)
    out = torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.mul(gradient, scale, out=out)

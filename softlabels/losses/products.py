"""Gradients: summed in float32, given back in the dtype of what they are of, rarely copied."""

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


def graph_is_kept() -> bool:
    """In a backward pass: may another one come through the same graph, and need what is saved?

    As AOTAutograd asks it. True where this torch does not tell.
    """
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


def scaled(gradient: Tensor, scale: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """gradient · scale in that dtype, in its own place if it need not be kept, never widened."""
    if gradient.dtype == dtype and not keep:
        return gradient.mul_(scale)
    out = torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.mul(gradient, scale, out=out)

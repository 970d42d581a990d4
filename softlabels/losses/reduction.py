"""From a loss at every position to one number."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.errors import InputError


def reduce(
    loss: Tensor, mask: Tensor | None = None, *, positions: Tensor | int | None = None
) -> Tensor:
    """Mean over the positions that count.

    Args:
        loss: shape (...), from a loss of this package.
        mask: bool, (...): which positions count; None for all.
        positions: divide by this instead of the number of true places, e.g. the positions of all
            micro-batches and ranks of a step, so that every position weighs the same. Where
            gradients are then averaged over ranks (DDP), divide that count by the ranks.

    Returns:
        scalar; 0 when nothing counts.

    Raises:
        InputError: shapes differ, or positions is negative.
    """
    if mask is not None and mask.shape != loss.shape:
        raise InputError(
            f"loss has shape {tuple(loss.shape)}, mask {tuple(mask.shape)}; they must be equal"
        )
    if positions is None:
        positions = loss.numel() if mask is None else mask.sum()
    total = (loss if mask is None else loss.masked_fill(~mask, 0)).sum()
    count = torch.as_tensor(positions)
    # On an accelerator this test would wait for the device.
    if count.device.type == "cpu" and not bool(count >= 0):
        raise InputError(f"positions is {count.item():g}; it counts positions: 0 or more")
    return total / (count + (count == 0))

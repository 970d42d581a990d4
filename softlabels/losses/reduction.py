"""From a loss at every position to one number."""

from __future__ import annotations

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
            micro-batches and ranks of a step, so that every position weighs the same.

    Returns:
        scalar; 0 when nothing counts.

    Raises:
        InputError: shapes differ.
    """
    if mask is None:
        return loss.sum() / (max(1, loss.numel()) if positions is None else positions)
    if mask.shape != loss.shape:
        raise InputError(
            f"loss has shape {tuple(loss.shape)}, mask {tuple(mask.shape)}; they must be equal"
        )
    total = loss.masked_fill(~mask, 0).sum()
    return total / (mask.sum().clamp(min=1) if positions is None else positions)

"""What a loss from hidden states and a head accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels


def check_head(
    hidden: Tensor,
    weight: Tensor,
    labels: SoftLabels,
    *,
    bias: Tensor | None,
    classes: int | None,
    chunk_rows: int | None,
) -> None:
    """Refuse what does not fit together, with `InputError`: shapes, dtypes and counts."""
    if hidden.shape[:-1] != labels.shape or hidden.shape[-1] != weight.shape[-1]:
        raise InputError(
            f"hidden states have shape {tuple(hidden.shape)}, the head {tuple(weight.shape)} and "
            f"labels {tuple(labels.shape)}; they must be (..., d), (V, d) and (...): the same "
            "positions, nothing is shifted"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"the bias has shape {tuple(bias.shape)}; it must be {tuple(weight.shape[:1])}: one "
            "number for each row of the head"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise InputError(
            f"hidden states are of {hidden.dtype}, the head of {weight.dtype}; convert one of "
            "them, or call this under torch.autocast"
        )
    if classes is not None and not 1 <= classes <= len(weight):
        raise InputError(
            f"classes is {classes}; it says how many of the head's {len(weight)} rows are "
            "classes: at least 1"
        )
    if chunk_rows is not None and chunk_rows < 1:
        raise InputError(f"chunk_rows is {chunk_rows}; it must be at least 1")


def check_hard_labels(
    labels: SoftLabels, hard_labels: Tensor | None, *, hard_weight: float
) -> None:
    """Refuse a weight without hard labels, and hard labels of other positions."""
    if hard_weight and hard_labels is None:
        raise InputError("hard_weight weighs the loss on hard_labels; pass them, or leave it 0")
    if hard_labels is not None and hard_labels.shape != labels.shape:
        raise InputError(
            f"hard labels have shape {tuple(hard_labels.shape)}, labels {tuple(labels.shape)}"
        )

"""Hard labels of a causal language model: shifted here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

NO_LABEL = -100


def next_tokens(
    input_ids: Tensor, attention_mask: Tensor, *, next_ids: Tensor | None = None
) -> Tensor:
    """The hard label at every position: the token that follows it.

    Args:
        input_ids: int64, shape (B, T), padded on the right.
        attention_mask: (B, T), nonzero for tokens.
        next_ids: (B,), the token after each row's last, −100 where it was not seen.

    Returns:
        int64, (B, T); −100 where no next token is known.
    """
    present = attention_mask.bool()
    labels = torch.full_like(input_ids, NO_LABEL)
    labels[:, :-1] = torch.where(present[:, 1:], input_ids[:, 1:], NO_LABEL)
    if next_ids is not None:
        last = present.sum(-1, keepdim=True) - 1
        labels.scatter_(-1, last, next_ids.to(labels).unsqueeze(-1))
    return labels


def cross_entropy(logits: Tensor, hard_labels: Tensor) -> Tensor:
    """−log q of the hard label, in nats.

    Args:
        logits: student, float, shape (..., V).
        hard_labels: int64, (...), from `next_tokens`; −100 where there is none.

    Returns:
        (...), float64 for float64 logits, else float32; 0 where there is no label. Reduce it with
        the mask `hard_labels != -100`.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    flat = torch.nn.functional.cross_entropy(
        z.flatten(0, -2), hard_labels.flatten(), ignore_index=NO_LABEL, reduction="none"
    )
    return flat.view(hard_labels.shape)

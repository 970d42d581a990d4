"""Hard labels of a causal language model: shifted here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.labels import NO_LABEL
from softlabels.losses.divergences import forward_kl, of_target
from softlabels.losses.targets import Target


def next_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    next_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """The hard label at every position: the token that follows it.

    Args:
        input_ids: int64, shape (B, T), padded on either side.
        attention_mask: (B, T), nonzero for tokens.
        next_ids: (B,), the token after each row's last, −100 where it was not seen; or (B, T),
            that after each record's last token, at that token.
        position_ids: (B, T), of rows with several records: they start again at each, and no token
            follows one of another record.

    Returns:
        int64, (B, T); −100 where no next token is known.
    """
    present = attention_mask.bool()
    followed = present[:, :-1] & present[:, 1:]
    if position_ids is not None:
        followed &= position_ids[:, 1:] == position_ids[:, :-1] + 1
    labels = torch.full_like(input_ids, NO_LABEL)
    labels[:, :-1] = torch.where(followed, input_ids[:, 1:], NO_LABEL)
    if next_ids is None:
        return labels
    last = present.clone()
    last[:, :-1] &= ~followed
    return torch.where(last, next_ids.to(labels).view(len(labels), -1), labels)


def cross_entropy(logits: Tensor, hard_labels: Tensor) -> Tensor:
    """−log q of the hard label, in nats.

    Args:
        logits: student, float, shape (..., V).
        hard_labels: int64, (...), from `next_tokens`; −100 where there is none.

    Returns:
        (...), float64 for float64 logits, else float32; 0 where there is no label. Reduce it with
        the mask `hard_labels != -100`.

    Raises:
        VocabularyMismatchError: a hard label is outside V.
        InputError: shapes differ.
    """
    labelled = hard_labels != NO_LABEL
    ids = hard_labels.unsqueeze(-1)
    # All the mass on one class, none on the rest; unlike torch's, its gradient is 0 where there is
    # no label even if the logits there are NaN.
    certain = torch.zeros_like(ids, dtype=torch.float32)
    none = torch.full_like(hard_labels, -torch.inf, dtype=torch.float32)
    target = Target(ids, certain, none)
    return of_target(logits, target, forward_kl, mask=labelled, temperature=1.0)

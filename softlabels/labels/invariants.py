"""What is true of every label and no checksum covers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from softlabels.labels.binary import BinaryLabels
from softlabels.labels.embeddings import Embeddings
from softlabels.labels.soft import SoftLabels

# Kept mass and tail are each a sum of float32 exponentials, correct to about 1e-6.
_MASS_TOLERANCE = 1e-4


def problems(
    labels: SoftLabels | BinaryLabels | Embeddings, *, classes: int, ordered: bool
) -> Iterator[str]:
    """What is wrong with labels, in words; nothing where all is well.

    Args:
        labels: batch shape (N,), without a mask.
        classes: V; of embeddings their width.
        ordered: whether entries should be in descending order of their values.
    """
    if not len(labels):
        return
    match labels:
        case SoftLabels():
            yield from _of_soft(labels, classes, ordered)
        case BinaryLabels():
            yield from _of_ids(labels.ids, classes, used=None)
            if not bool(labels.log_odds.isfinite().all()):
                yield "log-odds are infinite, or NaN"
            if ordered and bool((labels.log_odds[:, :-1] < labels.log_odds[:, 1:]).any()):
                yield "entries are not in descending log-odds"
            if labels.floors is not None and not bool(labels.floors.isfinite().all()):
                yield "floors are infinite, or NaN"
        case Embeddings():
            if labels.width != classes:
                yield f"vectors have {labels.width} numbers, not {classes}"
            if not bool(labels.vectors.isfinite().all()):
                yield "vectors hold numbers that are infinite, or NaN"


def _of_soft(labels: SoftLabels, classes: int, ordered: bool) -> Iterator[str]:
    log_probs = labels.log_probs
    # A weight of a sampled selection may be above 1.
    highest = torch.inf if labels.sampled else 1e-5
    if bool(torch.isnan(log_probs).any()) or bool((log_probs > highest).any()):
        yield "log-probs above 0, or NaN"
    # Equal log-probs may stand in any order of ids: their logits need not have been equal.
    if ordered and bool((log_probs[:, :-1] < log_probs[:, 1:]).any()):
        yield "entries are not in descending log-prob"
    yield from _of_ids(labels.ids, classes, used=log_probs > -torch.inf)
    for place, temperature in enumerate(labels.temperatures):
        if temperature == 1.0 and labels.log_tails is not None:
            mass = log_probs.double().exp().sum(-1) + labels.log_tails[:, place].double().exp()
            worst = float((mass - 1).abs().max())
            if not worst <= _MASS_TOLERANCE:
                yield f"kept and tail mass sum to 1 ± {worst:.1e}"


def _of_ids(ids: Tensor, classes: int, *, used: Tensor | None) -> Iterator[str]:
    """Args: used: which entries are, (N, k); None for all."""
    if int(ids.min()) < 0 or int(ids.max()) >= classes:
        yield f"class id {int(ids.max())} is not below {classes}"
    # Unused entries all name class 0. NumPy sorts narrow integers ten times as fast as torch.
    narrow = ids.numpy().astype(np.int32)
    if used is not None:
        nowhere = -1 - np.arange(ids.shape[-1], dtype=np.int32)
        narrow = np.where(used.numpy(), narrow, nowhere)
    in_order = np.sort(narrow, -1)
    if bool((in_order[:, :-1] == in_order[:, 1:]).any()):
        yield "a class is kept twice at one position"

"""Tried on a student before it trains: does it see no more than it should?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.errors import InputError
from softlabels.training.forward import Student

_LENGTH = 8


def check_causal(model: Any, classes: int) -> None:
    """Refuse a student that sees the tokens it is to predict.

    Raises:
        InputError: its logits at a token depend on a later one.
    """
    device = next(model.parameters()).device
    ids = torch.arange(_LENGTH, device=device).remainder(classes).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % classes
    with _judged(model):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    # Of rows side by side a causal model makes the same numbers, to rounding.
    if (logits[0] - logits[1]).abs().max() > 1e-5 * logits.abs().max():
        raise InputError(
            f"the student, a {type(model).__name__}, is not causal: its logits at a token depend "
            "on later tokens, which are what it is to predict. Choose a causal model (of "
            "transformers' encoders: is_decoder true in the config)"
        )


def check_packing(student: Student, classes: int, longest: int) -> None:
    """Refuse rows of several records of a student that does not keep them apart.

    Args:
        classes: V.
        longest: tokens of the longest record.

    Raises:
        InputError: the logits of a record depend on what else is in its row.
    """
    window = getattr(getattr(student.model, "config", None), "sliding_window", None)
    # The mask of a row takes the place of the one that would hold the window.
    whole = window is None or window >= longest
    if not whole or not _apart(student, classes):
        raise InputError(
            f"the student, a {type(student.model).__name__}, does not keep the records of a row "
            "apart (convolutions, recurrent layers and sliding windows look past the mask): leave "
            "out row_length"
        )


def _apart(student: Student, classes: int) -> bool:
    """Whether a record after another one has the logits that it has alone."""
    ids = torch.arange(2 * _LENGTH, device=student.device).remainder(classes).view(2, _LENGTH)
    both = ids.view(1, -1).repeat(2, 1)
    both[1, :_LENGTH] = both[1, :_LENGTH].flip(0)
    place = torch.arange(2 * _LENGTH, device=student.device).expand(2, -1)
    row = {
        "input_ids": both,
        "segment_ids": place // _LENGTH,
        "position_ids": place % _LENGTH,
    }
    try:
        with _judged(student.model):
            first, second = student.logits(row).float()
            alone = student.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    except (TypeError, ValueError, RuntimeError):  # it takes no such mask, or no positions
        return False
    scale = alone.abs().max()
    rounding = (1e-2 if student.autocast else 1e-4) * scale
    # Fresh weights leak little: less than rounding, but not nothing.
    leak = 1e-7 * scale
    return _close(first.view_as(alone), alone, rounding) and _close(
        first[_LENGTH:], second[_LENGTH:], leak
    )


def _close(found: Tensor, expected: Tensor, within: Tensor) -> bool:
    return bool((found - expected).abs().max() <= within)


@contextmanager
def _judged(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; then in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)

"""One step of the optimiser, over several batches that weigh as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softlabels.errors import SoftLabelsError, quoted
from softlabels.training.forward import Student
from softlabels.training.objective import Loss, Targets, from_hidden, from_logits, targets
from softlabels.training.recipe import FROM_HIDDEN, LossRecipe, OptimizerRecipe, TrainRecipe
from softlabels.training.schedule import hard_weight, learning_rate

_SHOWN_KEYS = 8


class DivergedError(SoftLabelsError, ArithmeticError):
    """A loss or its gradient is not finite."""


@dataclass(frozen=True)
class Taken:
    """What a step was: means over its positions.

    Attributes:
        loss: what was minimised.
        kd, ce: its parts before they are weighed; None where they have none, or were not asked for.
        hard_weight, lr: at this step.
        grad_norm: before clipping.
        tokens: in its batches.
    """

    loss: float
    kd: float | None
    ce: float | None
    hard_weight: float
    lr: float
    grad_norm: float
    tokens: int


def adamw(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW, one tensor after another, whose decay leaves out norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=False)


def take_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Mapping[str, Any]],
    recipe: TrainRecipe,
    *,
    step: int,
    steps: int,
    parts: bool,
) -> Taken:
    """Train on some batches.

    Args:
        step: from 0 on, of `steps`.
        parts: take KD and CE of a mix apart, which costs a pass over the logits.

    Raises:
        DivergedError: naming step and keys; the weights are as before the step.
    """
    weight = hard_weight(recipe.loss, step, steps)
    found = [targets(batch, recipe.loss) for batch in batches]
    tokens = torch.stack([batch["attention_mask"].sum() for batch in batches]).sum()
    counts = torch.stack([t.positions(recipe.loss) for t in found]).sum(0)
    kd_count, ce_count, token_count = torch.cat([counts, tokens.view(1)]).tolist()
    losses = []
    for batch, own in zip(batches, found, strict=True):
        loss = _loss(student, batch, own, recipe.loss, weight=weight,
                     positions=(kd_count, ce_count), parts=parts)  # fmt: skip
        loss.total.backward()
        losses.append(Loss(loss.total.detach(), loss.kd, loss.ce))
    clip = recipe.optimizer.clip
    norm = nn.utils.clip_grad_norm_(student.model.parameters(), math.inf if clip is None else clip)
    grad_norm, *totals = torch.stack([norm.to(torch.float32), *(x.total for x in losses)]).tolist()
    if not all(map(math.isfinite, (grad_norm, *totals))):
        optimizer.zero_grad()
        raise _diverged(batches, totals, grad_norm, step=step)
    lr = learning_rate(recipe.optimizer, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return Taken(
        loss=math.fsum(totals),
        kd=_sum([x.kd for x in losses]),
        ce=_sum([x.ce for x in losses]),
        hard_weight=weight,
        lr=lr,
        grad_norm=grad_norm,
        tokens=token_count,
    )


def _loss(
    student: Student,
    batch: Mapping[str, Any],
    found: Targets,
    recipe: LossRecipe,
    *,
    weight: float,
    positions: tuple[int, int],
    parts: bool,
) -> Loss:
    if student.head is not None and recipe.name in FROM_HIDDEN and recipe.through != "logits":
        hidden = student.hidden(batch)
        return from_hidden(recipe, hidden, found, weight=weight, positions=positions, parts=parts)
    return from_logits(recipe, student.logits(batch), found, weight=weight, positions=positions)


def _sum(parts: Sequence[torch.Tensor | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return math.fsum(torch.stack(known).tolist()) if known else None


def _diverged(
    batches: Sequence[Mapping[str, Any]], totals: Sequence[float], grad_norm: float, *, step: int
) -> DivergedError:
    bad = [i for i, total in enumerate(totals) if not math.isfinite(total)]
    what = f"the loss is {totals[bad[0]]}" if bad else f"the gradient's norm is {grad_norm}"
    keys = [key for i in bad or range(len(batches)) for key in batches[i]["key"]]
    shown = ", ".join(quoted(key) for key in keys[:_SHOWN_KEYS])
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return DivergedError(
        f"step {step + 1}: {what}, in a batch with the keys {shown}{more}. Look at these records "
        "(softlabels show), lower the learning rate, or clip the gradient; the last checkpoint is "
        "from before"
    )

"""From a recipe and a batch to its part of a step's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import NO_LABEL, SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.losses import (
    cross_entropy,
    decoupled_kl_divergence,
    js_divergence,
    kl_divergence,
    linear_kl_divergence,
    logit_mse,
    next_tokens,
    reduce,
    reverse_kl_divergence,
    soft_cross_entropy,
    total_variation,
)
from softlabels.training.forward import Hidden
from softlabels.training.recipe import FROM_HIDDEN, LossRecipe

_TRIED_RECORDS = 16


@dataclass(frozen=True)
class Targets:
    """What a batch teaches.

    Attributes:
        soft: the labels that the loss sees, batch shape (B, T), with a mask.
        hard: int64 (B, T); −100 where there is none or the position is not labelled.
    """

    soft: SoftLabels
    hard: Tensor

    @property
    def mask(self) -> Tensor:
        """Labelled positions, bool, (B, T)."""
        assert self.soft.mask is not None
        return self.soft.mask

    def positions(self, recipe: LossRecipe) -> Tensor:
        """How many positions the KD loss and the CE have, int64, (2,)."""
        hard = (self.hard != NO_LABEL).sum()
        return torch.stack([hard if recipe.name == "decoupled_kl" else self.mask.sum(), hard])


@dataclass(frozen=True)
class Loss:
    """A batch's part of a step's loss: summed over the step's batches, they are its means.

    Attributes:
        total: scalar, to be minimised.
        kd, ce: scalars, detached; None where they have no part in it, or were not asked for.
    """

    total: Tensor
    kd: Tensor | None
    ce: Tensor | None


def targets(batch: Mapping[str, Any], recipe: LossRecipe | None = None) -> Targets:
    """The targets of a loader's batch; of the whole labels where there is no recipe.

    Positions that are context only (an overlap, a prompt) have no hard label either: the window
    before has counted them, or they are not to be learnt.
    """
    labels = batch["soft_labels"]
    hard = next_tokens(
        batch["input_ids"],
        batch["attention_mask"],
        next_ids=batch["next_ids"],
        position_ids=batch.get("position_ids"),
    )
    if labels.mask is None:
        everywhere = torch.ones(labels.shape, dtype=torch.bool, device=hard.device)
        labels = dataclasses.replace(labels, mask=everywhere)
    if recipe is not None and recipe.k is not None:
        labels = labels.top(recipe.k)
    return Targets(labels, hard.masked_fill(~labels.mask, NO_LABEL))


def check_loss(recipe: LossRecipe, labels: LabelSet) -> None:
    """Try the loss on one labelled position, so that what cannot be fails before any training.

    Raises:
        InputError: k is more than the set keeps; or what the loss itself refuses.
        MissingTailError: there is no tail at the temperature.
    """
    kept = labels.plan.selection.k
    if recipe.k is not None and recipe.k > kept:
        raise InputError(
            f"the loss is to see k = {recipe.k} classes, {labels.name} keeps {kept}; choose at "
            "most so many"
        )
    # Of the first few records one has a labelled position; where not, the first batch tells.
    sample = labels.take(range(min(len(labels), _TRIED_RECORDS))).soft[:1]
    if not len(sample):
        return
    if sample.sampled and recipe.name not in ("soft_cross_entropy", "ce"):
        raise InputError(
            f"{labels.name} is sampled: its unbiased weights fit the loss 'soft_cross_entropy', "
            f"whose gradient is that of the KL, not {recipe.name!r}"
        )
    if recipe.k is not None:
        sample = sample.top(recipe.k)
    soft_loss(recipe, torch.zeros(1, labels.plan.teacher.classes), sample, sample.ids[:, 0])


def soft_loss(recipe: LossRecipe, logits: Tensor, soft: SoftLabels, hard: Tensor) -> Tensor:
    """The KD loss at every position, unreduced; zero for "ce"."""
    shape: dict[str, Any] = {"temperature": recipe.temperature, "tail": recipe.tail}
    match recipe.name:
        case "kl":
            return kl_divergence(logits, soft, **shape)
        case "reverse_kl":
            return reverse_kl_divergence(logits, soft, **shape)
        case "js":
            beta = 0.5 if recipe.beta is None else recipe.beta
            return js_divergence(logits, soft, beta=beta, **shape)
        case "total_variation":
            return total_variation(logits, soft, **shape)
        case "soft_cross_entropy":
            return soft_cross_entropy(logits, soft, **shape)
        case "logit_mse":
            return logit_mse(logits, soft)
        case "decoupled_kl":
            return decoupled_kl_divergence(
                logits,
                soft,
                hard,
                alpha=1.0 if recipe.alpha is None else recipe.alpha,
                beta=1.0 if recipe.beta is None else recipe.beta,
                temperature=recipe.temperature,
            )
        case "ce":
            return logits.new_zeros(logits.shape[:-1])


def from_logits(
    recipe: LossRecipe,
    logits: Tensor,
    found: Targets,
    *,
    weight: float,
    positions: tuple[int, int],
) -> Loss:
    """The loss of a batch whose logits are there.

    Args:
        logits: (B, T, V).
        weight: of the CE, at this step.
        positions: of the KD loss and of the CE in all batches of the step.
    """
    kd = ce = None
    total = logits.new_zeros((), dtype=torch.float32)
    is_hard = found.hard != NO_LABEL
    if weight < 1:
        mask = is_hard if recipe.name == "decoupled_kl" else found.mask
        kd = reduce(soft_loss(recipe, logits, found.soft, found.hard), mask, positions=positions[0])
        total = total + (1 - weight) * kd
    if weight > 0:
        ce = reduce(cross_entropy(logits, found.hard), is_hard, positions=positions[1])
        total = total + weight * ce
    return Loss(total, *(None if part is None else part.detach() for part in (kd, ce)))


def from_hidden(
    recipe: LossRecipe,
    hidden: Hidden,
    found: Targets,
    *,
    weight: float,
    positions: tuple[int, int],
    parts: bool,
) -> Loss:
    """The same of "kl" and "ce", the logits never all in memory.

    Args:
        parts: of a mix, take CE and KD apart, for one more pass without gradients.
    """
    assert recipe.name in FROM_HIDDEN
    soft_count, hard_count = (max(1, count) for count in positions)
    if weight == 1:
        ce = _hard_alone(hidden, found.hard, hard_count)
        return Loss(ce, None, ce.detach())
    total = linear_kl_divergence(
        hidden.states,
        hidden.weight,
        found.soft,
        bias=hidden.bias,
        hard_labels=found.hard if weight else None,
        soft_weight=(1 - weight) / soft_count,
        hard_weight=weight / hard_count,
        temperature=recipe.temperature,
        tail=recipe.tail,
    ).sum()
    if not weight:
        return Loss(total, total.detach(), None)
    if not parts:
        return Loss(total, None, None)
    with torch.no_grad():
        ce = _hard_alone(hidden, found.hard, hard_count)
        return Loss(total, (total - weight * ce) / (1 - weight), ce)


def _hard_alone(hidden: Hidden, hard: Tensor, count: int) -> Tensor:
    """CE as the KL of a teacher that is sure of the hard label."""
    ids = hard.clamp(min=0).unsqueeze(-1)
    certain = SoftLabels(ids=ids, log_probs=torch.zeros_like(ids, dtype=torch.float32),
                         mask=hard != NO_LABEL)  # fmt: skip
    losses = linear_kl_divergence(
        hidden.states, hidden.weight, certain, bias=hidden.bias, soft_weight=1 / count
    )
    return losses.sum()

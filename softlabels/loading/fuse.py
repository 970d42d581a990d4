"""Several teachers' labels of the same positions as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.labels import SoftLabels

NO_MIXTURE = "sampled labels have weights, no probabilities to mix; keep the teachers apart"


def mixture(teachers: Sequence[SoftLabels], weights: Sequence[float]) -> SoftLabels:
    r"""The mixture Σ wᵢ pᵢ of teachers, at temperature 1.

    A class has Σ wᵢ pᵢ over the teachers that kept it; the rest bucket has Σ wᵢ rᵢ, so that all
    sums to 1. What a teacher gives to a class that only others kept stays in its rest: it is at
    most that teacher's least kept probability, times its weight.

    At other temperatures the tempered teachers' mixture is no tempered mixture. There, keep the
    teachers apart and add their losses: the gradients of Σ wᵢ KL(pᵢ ‖ q) and of KL(Σ wᵢ pᵢ ‖ q)
    are equal.

    Args:
        teachers: of one batch shape (...), k_i entries each.
        weights: one each, at least 0; normalised here.

    Returns:
        Σ k_i entries a position, unused ones where teachers kept the same class; log tails at
        T = 1; masked where any of them is.

    Raises:
        InputError: shapes differ, labels are sampled, or weights cannot be.
        VocabularyMismatchError: the teachers have other numbers of classes.
        MissingTailError: a teacher has no tail at T = 1.
    """
    shares = normalised(weights, len(teachers))
    _check(teachers)
    ids = torch.cat([y.ids for y in teachers], -1)
    p = torch.cat(
        [w * y.log_probs_at(1.0).exp() for w, y in zip(shares, teachers, strict=True)], -1
    )
    # An unused entry is nobody's class.
    ids, order = ids.masked_fill(p == 0, torch.iinfo(torch.int64).max).sort(dim=-1, stable=True)
    new = torch.ones_like(ids, dtype=torch.bool)
    new[..., 1:] = ids[..., 1:] != ids[..., :-1]
    slot = new.cumsum(-1) - 1
    merged = torch.zeros_like(p).scatter_add_(-1, slot, p.gather(-1, order))
    kept = torch.zeros_like(ids).scatter_(-1, slot, ids).masked_fill(merged == 0, 0)
    tails = [w * y.log_tail(1.0).exp() for w, y in zip(shares, teachers, strict=True)]
    return SoftLabels(
        ids=kept,
        log_probs=merged.log(),
        log_tails=torch.stack(tails).sum(0).log().unsqueeze(-1),
        temperatures=(1.0,),
        hard_log_probs=_mixed_hard(teachers, shares),
        mask=_mask(teachers),
        classes=teachers[0].classes,
    )


def disagreement(teachers: Sequence[SoftLabels], weights: Sequence[float]) -> Tensor:
    """How far teachers are from their mixture: Σ wᵢ KL(pᵢ ‖ Σ wⱼ pⱼ) at T = 1, in nats.

    The generalised Jensen-Shannon divergence (Lin, "Divergence measures based on the Shannon
    entropy", IEEE Trans. Inf. Theory 37, 1991), between 0 and the entropy of the weights. Classes
    that a teacher did not keep are its rest, one class of all.

    Args:
        teachers, weights: as `mixture` takes them.

    Returns:
        float32, (...); 0 where one of them has no labels.

    Raises:
        InputError, VocabularyMismatchError, MissingTailError: as `mixture`.
    """
    shares = normalised(weights, len(teachers))
    mixed = mixture(teachers, weights)
    apart = [w * _entropy(y) for w, y in zip(shares, teachers, strict=True)]
    found = (_entropy(mixed) - torch.stack(apart).sum(0)).clamp(min=0).float()
    return found if mixed.mask is None else found.masked_fill(~mixed.mask, 0)


def _entropy(labels: SoftLabels) -> Tensor:
    """Of the kept classes and one rest at T = 1, nats, float64, (...)."""
    told = torch.cat([labels.log_probs_at(1.0), labels.log_tail(1.0).unsqueeze(-1)], -1).double()
    return -(told.exp() * told.masked_fill(told == -torch.inf, 0)).sum(-1)


def alike(teachers: Sequence[SoftLabels]) -> list[SoftLabels]:
    """The same labels with the fields, temperatures and k that all have, to be put together.

    Fewer entries are filled up with unused ones.

    Raises:
        InputError: some are sampled, and some are not.
    """
    if len({y.sampled for y in teachers}) > 1:
        raise InputError("weights of sampled labels are no probabilities; keep the teachers apart")
    k = max(y.k for y in teachers)
    common = [t for t in teachers[0].temperatures if all(t in y.temperatures for y in teachers)]
    names = ("logsumexp", "hard_log_probs")
    absent: dict[str, Any] = {
        n: None for n in names if any(getattr(y, n) is None for y in teachers)
    }
    return [replace(_filled(y, k, tuple(common)), logits=None, **absent) for y in teachers]


def _filled(labels: SoftLabels, k: int, temperatures: tuple[float, ...]) -> SoftLabels:
    pad = (0, k - labels.k)
    tails = None
    if labels.log_tails is not None and temperatures:
        tails = labels.log_tails[..., [labels.temperatures.index(t) for t in temperatures]]
    return replace(
        labels,
        ids=torch.nn.functional.pad(labels.ids, pad),
        log_probs=torch.nn.functional.pad(labels.log_probs, pad, value=-torch.inf),
        log_tails=tails,
        temperatures=temperatures if tails is not None else (),
        logits=None,
    )


def normalised(weights: Sequence[float], teachers: int) -> list[float]:
    """Weights of sum 1; raises InputError where they cannot be."""
    total = float(sum(weights))
    if len(weights) != teachers or not all(w >= 0 for w in weights) or not 0 < total < torch.inf:
        raise InputError(
            f"weights are {list(weights)} for {teachers} teachers; give each one a weight of at "
            "least 0, and not all of them 0"
        )
    return [float(w) / total for w in weights]


def _check(teachers: Sequence[SoftLabels]) -> None:
    first = teachers[0]
    for other in teachers:
        if other.sampled:
            raise InputError(NO_MIXTURE)
        if other.shape != first.shape:
            raise InputError(f"teachers cover {tuple(first.shape)} and {tuple(other.shape)}")
        if None not in (first.classes, other.classes) and first.classes != other.classes:
            raise VocabularyMismatchError(
                f"teachers have {first.classes} and {other.classes} classes; only those of one "
                "list of classes can be fused"
            )


def _mixed_hard(teachers: Sequence[SoftLabels], shares: Sequence[float]) -> Tensor | None:
    found = [y.hard_log_probs for y in teachers]
    known = [h for h in found if h is not None]
    if len(known) < len(found):
        return None
    parts = [w * h.exp() for w, h in zip(shares, known, strict=True)]
    return torch.stack(parts).sum(0).log()


def _mask(teachers: Sequence[SoftLabels]) -> Tensor | None:
    masks = [y.mask for y in teachers if y.mask is not None]
    return torch.stack(masks).all(0) if masks else None

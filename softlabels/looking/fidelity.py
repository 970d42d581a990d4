"""How far stored labels are from the teacher's dense logits, at the positions that keep both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import CorruptShardError, MissingTailError
from softlabels.format.probes import Probes
from softlabels.labels import SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.looking.blocks import check
from softlabels.losses import kl_divergence, soft_cross_entropy

# Logits that are looked at together, of which a dozen float64 copies are made.
_BLOCK = 1 << 20
# The student of the gradients: one that believes what the teacher does, half as surely.
_STUDENT = 0.5


@dataclass(frozen=True)
class Fidelity:
    """Means over the probed positions at one temperature; p is the teacher's dense softmax.

    KL(p ‖ stored), the tail spread evenly over the classes not kept, is `codec_kl + selection_kl`.

    Attributes:
        temperature: of both sides.
        positions: that are probed.
        codec_kl: KL in nats over the kept classes and one rest: what writing them rounded. None of
            sampled labels, as all but the angle.
        selection_kl: KL in nats within the classes not kept, from p to equal shares, times their
            mass: what leaving them out lost.
        codec_tv, total_tv: total variation over the kept classes and one rest; and over all
            classes, the tail spread evenly.
        worst_kl: the largest KL(p ‖ stored) of a position.
        gradient_angle: in degrees, between the gradients of the KL of p and of the library's KL
            with a rest (of `soft_cross_entropy` for sampled labels), for a student with half of
            the teacher's logits.
    """

    temperature: float
    positions: int
    codec_kl: float | None
    selection_kl: float | None
    codec_tv: float | None
    total_tv: float | None
    worst_kl: float | None
    gradient_angle: float


def fidelity(labels: LabelSet, temperatures: Sequence[float] = (1.0, 2.0, 4.0)) -> list[Fidelity]:
    """At each temperature at which the set can be read; none of a set without probes.

    Raises:
        CorruptShardError: a probe's position has no labels.
    """
    rows: dict[float, list[Tensor]] = {}
    for logits, stored in _probed(labels):
        for temperature in temperatures:
            found = _at(logits, stored, temperature)
            if found is not None:
                rows.setdefault(temperature, []).append(found)
    return [_summed(temperature, torch.cat(parts)) for temperature, parts in rows.items()]


def _probed(labels: LabelSet) -> Iterator[tuple[Tensor, SoftLabels]]:
    """Dense logits in float64, (n, V), and the labels of the same positions, (n,)."""
    size = max(1, _BLOCK // labels.plan.teacher.classes)
    for part in labels.probes():
        for start in range(0, len(part), size):
            piece = slice(start, start + size)
            probes = Probes(part.records[piece], part.positions[piece], part.logits[piece])
            yield probes.logits.double(), _labels_of(labels, probes)


def _labels_of(labels: LabelSet, probes: Probes) -> SoftLabels:
    if (probes.records < 0).any() or (probes.records >= len(labels)).any():
        raise CorruptShardError(f"{labels.name}: a probe names a record that is not there")
    numbers, rows = np.unique(probes.records, return_inverse=True)
    records = labels.take(numbers)
    check(records, labels)
    lengths = np.diff(records.token_offsets)[rows]
    if (probes.positions < 0).any() or (probes.positions >= lengths).any():
        raise CorruptShardError(f"{labels.name}: a probe lies outside of its record")
    places = records.token_offsets[rows] + probes.positions
    if not records.wanted[places].all():
        raise CorruptShardError(f"{labels.name}: a probe's position has no labels")
    flat = np.cumsum(records.wanted)[places] - 1
    found = records.soft[torch.from_numpy(flat)]
    return found.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _at(logits: Tensor, stored: SoftLabels, temperature: float) -> Tensor | None:
    """Of each position what `Fidelity` averages, (n, 5); None where the set cannot be read."""
    log_p = torch.log_softmax(logits / temperature, -1)
    nothing = torch.full((len(stored), 4), torch.nan, dtype=torch.float64)
    if stored.sampled:
        if temperature != 1.0:
            return None
        return torch.cat([nothing, _angle(logits, stored, log_p, temperature)], -1)
    try:
        log_q, log_rest = stored.log_probs_at(temperature), stored.log_tail(temperature)
    except MissingTailError:
        return None
    used = stored.log_probs > -torch.inf
    kept = _mask(stored.ids, used, log_p.shape[-1])
    p = log_p.exp()
    exact = log_p.gather(-1, stored.ids).masked_fill(~used, -torch.inf)
    rest = log_p.masked_fill(kept, -torch.inf).logsumexp(-1)
    codec_kl = _kl(exact, log_q).sum(-1) + _kl(rest, log_rest)
    shares = rest - (~kept).sum(-1).clamp(min=1).log()
    selection_kl = torch.where(kept, 0, _kl(log_p, shares.unsqueeze(-1))).sum(-1)
    differ = (exact.exp() - log_q.masked_fill(~used, -torch.inf).exp()).abs().sum(-1)
    codec_tv = (differ + (rest.exp() - log_rest.exp()).abs()) / 2
    even = (log_rest.exp() / (~kept).sum(-1).clamp(min=1)).unsqueeze(-1)
    total_tv = (differ + torch.where(kept, 0, (p - even).abs()).sum(-1)) / 2
    values = torch.stack([codec_kl, selection_kl, codec_tv, total_tv], -1)
    return torch.cat([values, _angle(logits, stored, log_p, temperature)], -1)


def _mask(ids: Tensor, used: Tensor, classes: int) -> Tensor:
    """Which classes are kept, bool, (n, classes)."""
    counts = torch.zeros(len(ids), classes, dtype=torch.int32)
    return counts.scatter_add_(-1, ids, used.int()) > 0


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q), 0 where p is 0."""
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0)


def _angle(logits: Tensor, stored: SoftLabels, log_p: Tensor, temperature: float) -> Tensor:
    """Between the dense gradient and the one from stored labels, in degrees, (n, 1)."""
    student = (logits * _STUDENT).nan_to_num(neginf=-1e4).requires_grad_()
    if stored.sampled:
        loss = soft_cross_entropy(student, stored)
    else:
        loss = kl_divergence(student, stored, temperature=temperature)
    (found,) = torch.autograd.grad(loss.sum(), student)
    dense = torch.softmax(student.detach() / temperature, -1) - log_p.exp()
    cosine = torch.nn.functional.cosine_similarity(found, dense, dim=-1, eps=1e-30)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).unsqueeze(-1)


def _summed(temperature: float, values: Tensor) -> Fidelity:
    means = [None if bool(mean.isnan()) else float(mean) for mean in values.mean(0)]
    worst = float((values[:, 0] + values[:, 1]).max())
    assert means[4] is not None
    return Fidelity(
        temperature=temperature,
        positions=len(values),
        codec_kl=means[0],
        selection_kl=means[1],
        codec_tv=means[2],
        total_tv=means[3],
        worst_kl=None if means[0] is None else worst,
        gradient_angle=means[4],
    )

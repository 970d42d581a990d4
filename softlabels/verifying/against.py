"""Whether a teacher is the one that made a set: run again on a sample, and judged by numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import InputError, KindError, TeacherError, quoted
from softlabels.format.records import Records
from softlabels.inputs.digests import prepared_digest
from softlabels.inputs.prepare import prepare
from softlabels.inputs.sources import open_source
from softlabels.labels import SoftLabels, soft
from softlabels.labelset.reader import LabelSet
from softlabels.teachers import LabelTeacher, Teacher
from softlabels.teachers.identity import TeacherIdentity

# Of the KL, in nats, in the mean and at the worst position: what the same weights add when they
# run on other hardware, in other batches, or in this dtype in place of another.
_TOLERANCES = {"float32": (1e-4, 0.01), "float16": (1e-3, 0.1), "bfloat16": (0.01, 1.0)}
_OF_SERVERS = (0.02, 2.0)
_READ_ROWS = 1024
# Of log-probs that stand for equal logits.
_TIE = 1e-6
# What a logit of −∞ is taken for: it is told, unlike a class that a server leaves out.
_NEVER = -1e4
# Of a sum of float64 probabilities.
_ROUNDING = 1e-15


@dataclass(frozen=True)
class Verdict:
    """What a teacher says of a sample of a set, beside what the set says.

    KLs are in nats, at T = 1, over the kept classes and one rest.

    Attributes:
        same: whether it may be the teacher that made the set.
        reason: in words.
        weights_equal: whether the digests of the weights are; None where one has none.
        records, positions: in the sample.
        kl_mean, kl_max: of what is stored, from the teacher now.
        own_mean, own_max: the same of what would be stored now: what selection and codec cost.
        agreement: share of positions with the same first class.
        tolerance_mean, tolerance_max: by which kl may exceed own.
    """

    same: bool
    reason: str
    weights_equal: bool | None
    records: int
    positions: int
    kl_mean: float | None
    kl_max: float | None
    own_mean: float | None
    own_max: float | None
    agreement: float | None
    tolerance_mean: float
    tolerance_max: float


def against(
    labels: LabelSet, teacher: Teacher, *, data: Any = None, sample: int = 64, seed: int = 0
) -> Verdict:
    """Run a teacher on a seeded sample of a set's records and compare.

    Args:
        data: what was labelled; needed where the set does not carry its inputs.
        sample: records, at most.

    Raises:
        InputError: the sample is empty, the labels are sampled, or the data is not the set's.
    """
    plan = labels.plan
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 1:
        raise InputError(f"sample is {sample!r}; it must be a whole number of records, at least 1")
    if plan.kind != "categorical" or plan.preparation.kind == "array":
        what = "arrays" if plan.preparation.kind == "array" else f"of the kind {plan.kind}"
        raise KindError(
            f"{labels.name} has labels of {what}; a teacher is compared on distributions over "
            "classes at tokens: label a sample of the data again and compare the two sets"
        )
    if plan.selection.make().sampled:
        raise InputError(
            f"{labels.name} is sampled: weights of drawn classes are no distribution that a KL "
            "could be taken of; compare a set made with TopK"
        )
    if not len(labels):
        raise InputError(f"{labels.name} holds no records to compare")
    now = teacher.identity
    mean, most = _tolerance(plan.teacher, now)
    known = plan.teacher.weights is not None and now.weights is not None
    equal = plan.teacher.weights == now.weights if known else None
    if teacher.classes != plan.teacher.classes:
        reason = f"it has {teacher.classes:,} classes, the set's has {plan.teacher.classes:,}"
        return Verdict(False, reason, equal, 0, 0, *(None,) * 5, mean, most)
    count = min(sample, len(labels))
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(len(labels), count, replace=False, shuffle=False))
    records = labels.take(chosen)
    tokens = _stored(records) or _from_data(labels, records, teacher, data)
    compared = [
        part
        for row in range(count)
        for part in _compare(labels, records.slice(row, row + 1), teacher, tokens[row])
    ]
    stored, own, agreed = (torch.cat(parts) for parts in zip(*compared, strict=True))
    same = bool(stored.mean() <= own.mean() + mean and stored.max() <= own.max() + most)
    return Verdict(
        same=same,
        reason="the KL is within the tolerance" if same else "the KL exceeds the tolerance",
        weights_equal=equal,
        records=count,
        positions=len(stored),
        kl_mean=float(stored.mean()),
        kl_max=float(stored.max()),
        own_mean=float(own.mean()),
        own_max=float(own.max()),
        agreement=float(agreed.double().mean()),
        tolerance_mean=mean,
        tolerance_max=most,
    )


def _tolerance(*teachers: TeacherIdentity) -> tuple[float, float]:
    """The larger one of two runs'; of a dtype that is not known float32's."""
    found = [
        _OF_SERVERS
        if teacher.engine == "openai-server"
        else _TOLERANCES.get(teacher.dtype or "", _TOLERANCES["float32"])
        for teacher in teachers
    ]
    return max(found)


def _stored(records: Records) -> list[NDArray[np.int64]] | None:
    if records.token_ids is None:
        return None
    return np.split(records.token_ids, records.token_offsets[1:-1])


def _from_data(
    labels: LabelSet, records: Records, teacher: Teacher, data: Any
) -> list[NDArray[np.int64]]:
    """The token ids of some records, made again from their source rows, and checked."""
    plan = labels.plan
    if data is None:
        raise InputError(
            f"{labels.name} does not carry its inputs; name the data that was labelled: data= "
            "(--data)"
        )
    source = open_source(
        data, column=plan.data.columns[0], key=plan.data.key, limit=plan.data.limit
    )
    wanted = records.identity["key"].combine_chunks().unique()
    found: dict[tuple[Any, int], NDArray[np.int64]] = {}
    row = 0
    for table in source.units(_READ_ROWS):
        keys = source.keys(table, row)
        row += len(table)
        mask = pc.is_in(keys, value_set=wanted.cast(keys.type))
        keys, column = keys.filter(mask), table.column(plan.data.columns[0]).filter(mask)
        windows = prepare(
            column,
            plan.preparation,
            tokenizer=None if plan.preparation.kind == "input_ids" else teacher.tokenizer,
            classes=plan.teacher.token_ids,
        )
        assert windows.token_ids is not None
        parts = np.split(windows.token_ids, windows.offsets[1:-1])
        for of, part, ids in zip(windows.rows, windows.parts, parts, strict=False):
            found[keys[int(of)].as_py(), int(part)] = ids
    return [_checked(found, record, labels.name) for record in records.identity.to_pylist()]


def _checked(
    found: dict[tuple[Any, int], NDArray[np.int64]], record: dict[str, Any], name: str
) -> NDArray[np.int64]:
    ids = found.get((record["key"], record["part"]))
    if ids is None or prepared_digest(ids) != record["prepared_digest"]:
        problem = "is not in the data" if ids is None else "has other tokens in the data"
        raise InputError(
            f"key {quoted(record['key'])}, part {record['part']} of {name} {problem}: it is not "
            "the data, or not the tokenizer, that was labelled; pass that"
        )
    return ids


def _compare(
    labels: LabelSet, record: Records, teacher: Teacher, tokens: NDArray[np.int64]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """KL of what is stored, of what would be stored, and whether the first classes agree, (P,)."""
    input_ids = torch.from_numpy(tokens)[None]
    wanted, padding = torch.from_numpy(record.wanted)[None], torch.zeros_like(input_ids).bool()
    none = torch.full((len(record.soft),), -1)
    start = 0
    with torch.no_grad():
        if isinstance(teacher, LabelTeacher):
            k = labels.plan.selection.k
            for now in teacher.labels(input_ids, wanted, padding=padding, hard_labels=none, k=k):
                stored, start = record.soft[start : start + len(now)], start + len(now)
                yield _judged(labels, stored, now, now)
            return
        selection = labels.plan.selection.make()
        for logits in teacher.logits(input_ids, wanted, padding=padding):
            logits = logits.cpu()
            stored, start = record.soft[start : start + len(logits)], start + len(logits)
            kept = selection(
                logits, none[: len(logits)], temperatures=labels.plan.temperatures, uniforms=None
            )
            yield _judged(labels, stored, soft(kept), torch.log_softmax(logits.double(), -1))


def _judged(
    labels: LabelSet, stored: SoftLabels, kept: SoftLabels, now: SoftLabels | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    assert len(stored) == len(kept)
    if (now if isinstance(now, Tensor) else now.log_probs).isnan().any():
        raise TeacherError("the teacher gives NaN for a sample of the set: it is not compared")
    return _kl(stored, now), _kl(_written(labels, kept), now), _agree(stored, now)


def _agree(stored: SoftLabels, now: SoftLabels | Tensor) -> Tensor:
    """Where both have a likeliest class in common, (P,): of equal ones either may come first."""
    told = now if isinstance(now, Tensor) else now.log_probs_at(1.0).double()
    best = now.argmax(-1) if isinstance(now, Tensor) else _first(now)
    ours = stored.log_probs.masked_fill(stored.ids != best[:, None], -torch.inf).amax(-1)
    theirs = _log_probs(now, _first(stored)[:, None])[:, 0]
    return (ours >= stored.log_probs.amax(-1)) | (theirs >= told.amax(-1) - _TIE)


def _first(labels: SoftLabels) -> Tensor:
    return labels.ids.gather(-1, labels.log_probs.argmax(-1, keepdim=True))[:, 0]


def _written(labels: LabelSet, kept: SoftLabels) -> SoftLabels:
    """Labels as the set's codec gives them back; those that are exact stay as they are."""
    if labels.plan.codec["name"] != "compact":
        return kept
    columns = labels.codec.encode(kept, np.asarray([0, len(kept)]))
    table = pa.table({"positions": pa.array([len(kept)], pa.int32()), **columns})
    found, _ = labels.codec.decode(table)
    return soft(found)


def _log_probs(now: SoftLabels | Tensor, ids: Tensor) -> Tensor:
    """What the teacher gives some classes now, (P, k) float64; −∞ where it does not tell."""
    if isinstance(now, Tensor):
        return now.gather(-1, ids).clamp(min=_NEVER)
    told = now.log_probs_at(1.0).double()
    hit = ids[:, :, None] == now.ids[:, None, :]
    return told[:, None, :].masked_fill(~hit, -torch.inf).amax(-1)


def _kl(stored: SoftLabels, now: SoftLabels | Tensor) -> Tensor:
    """KL(stored ‖ now) over the classes that both tell and one rest, (P,)."""
    p, q = stored.log_probs_at(1.0).double(), _log_probs(now, stored.ids)
    both = (p > -torch.inf) & (q > -torch.inf)
    kept = (p.exp() * (p - q)).masked_fill(~both, 0).sum(-1)
    ours = torch.logaddexp(stored.log_tail(1.0).double(), _sum(p, ~both))
    if isinstance(now, Tensor):
        theirs = torch.log(-torch.expm1(_sum(q, both).clamp(max=-_ROUNDING)))
    else:
        told = now.log_probs_at(1.0).double()
        here = (now.ids[:, :, None] == stored.ids.masked_fill(~both, -1)[:, None, :]).any(-1)
        theirs = torch.logaddexp(now.log_tail(1.0).double(), _sum(told, ~here))
    rest = torch.where(ours > -torch.inf, ours.exp() * (ours - theirs), 0.0)
    return (kept + rest).clamp(min=0)


def _sum(log_probs: Tensor, which: Tensor) -> Tensor:
    return log_probs.masked_fill(~which, -torch.inf).logsumexp(-1)

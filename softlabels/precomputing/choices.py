"""What other codecs and other numbers of entries would make of a labelled sample."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from softlabels import codecs
from softlabels.codecs import Codec
from softlabels.format.records import Records, schema
from softlabels.format.shard import Shard
from softlabels.format.shard_writing import write
from softlabels.format.summary import UnitSummary
from softlabels.labels import SoftLabels, soft
from softlabels.precomputing.advice import OFFERED, Choice, Estimate
from softlabels.precomputing.job import Job
from softlabels.precomputing.pilot import pilot
from softlabels.selection import TopK

_CODECS = ("compact", "lossless", "plain")


@dataclass
class Sample:
    """A labelled sample.

    Attributes:
        units: its records, by the work unit that they would make.
        rejects: of its rows.
        rows_tokens, rows_positions: of each of its rows, (R,).
        seconds: by stage.
        probes, probe_bytes: dense logits that were kept, and what their files take.
    """

    units: list[Records]
    rejects: list[dict[str, Any]]
    rows_tokens: np.ndarray
    rows_positions: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    probes: int = 0
    probe_bytes: int = 0

    @property
    def records(self) -> list[Records]:
        return [unit for unit in self.units if len(unit)]


def weigh(
    job: Job, made: Sample, positions: Estimate, probe_bytes: float
) -> tuple[dict[tuple[str, int], Choice], float]:
    """Every codec with every k, and the seconds that writing takes as the arguments say.

    Of another selection than `TopK` only the codec that is asked for: fewer of its entries would be
    another selection.
    """
    ordered = [(unit, unit.soft.sorted()) for unit in made.units]
    sampled, most = sum(len(labels) for _, labels in ordered), made.records[0].soft.k
    learnt = soft(pilot(job.source, _with_k(job, most), job.teacher)).sorted()
    names, offered = [job.codec_name], {job.selection.k}
    if isinstance(job.selection, TopK):
        names, offered = codecs_for(job), offered | {k for k in OFFERED if k <= most}
    choices: dict[tuple[str, int], Choice] = {}
    writing = math.inf
    ks = sorted(offered)
    for k in ks:
        kept = [replace(unit, labels=labels.first(k)) for unit, labels in ordered]
        mass = _mass_kept([unit.soft for unit in kept])
        for name in names:
            codec = _codec(job, name, k, learnt)
            began = time.perf_counter()
            size, kl = _written(job, kept, codec)
            if (name, k) == (job.codec_name, job.selection.k):
                writing = time.perf_counter() - began
            choices[name, k] = Choice(
                k=k,
                codec=name,
                mass_kept=mass,
                bytes_per_position=size / sampled,
                bytes=positions.times(size / sampled).plus(probe_bytes),
                added_kl=kl,
            )
    return {(name, k): choices[name, k] for name in names for k in ks}, writing


def kl_temperature(job: Job) -> float:
    """Where the KL that storing adds is measured."""
    declared = job.temperatures
    return 1.0 if 1.0 in declared or not declared else float(min(declared))


def codecs_for(job: Job) -> list[str]:
    """Those that can write what the job's selection and teacher give."""
    if job.selection.sampled:
        return ["sampled"]
    known = job.without_codec.teacher.logits_known
    return [name for name in _CODECS if known or name != "lossless"]


def _with_k(job: Job, k: int) -> Any:
    plan = job.without_codec
    return plan.model_copy(update={"selection": plan.selection.model_copy(update={"k": k})})


def _codec(job: Job, name: str, k: int, learnt: SoftLabels) -> Codec:
    """One that learns from these entries, which are in order."""
    teacher = job.without_codec.teacher
    needs = codecs.Needs(
        teacher.classes,
        k,
        job.temperatures,
        teacher.logits_known,
        sampled=job.selection.sampled,
        draws=getattr(job.selection, "draws", None),
    )
    return codecs.resolve(name, needs, pilot=lambda: learnt.first(k))


def _written(job: Job, units: list[Records], codec: Codec) -> tuple[int, float | None]:
    """Bytes of the sample's shards, and the KL that reading them back adds; None of weights."""
    token_ids = job.without_codec.teacher.token_ids
    token_type = pa.uint16() if token_ids <= 1 << 16 else pa.uint32()
    columns = schema(job.source.identity.key_type, codec, token_type=token_type)
    size, nats, positions, temperature = 0, 0.0, 0, kl_temperature(job)
    with tempfile.TemporaryDirectory() as folder:
        for number, unit in enumerate(units):
            labels = unit.soft
            if codec.logits_dtype is None:
                labels = replace(labels, logits=None)
            records = replace(unit, labels=labels)
            path = Path(folder) / f"{number}.parquet"
            summary = UnitSummary(number, len(records), input_digest="0" * 32)
            write(path, records, summary, schema=columns, codec=codec, plan_digest="0" * 64)
            size += path.stat().st_size
            shard = Shard(path, receipt=None, name=path.name)
            for group in range(shard.metadata.num_row_groups):
                found = shard.records(group, codec).soft
                exact, labels = labels[: len(found)], labels[len(found) :]
                if not found.sampled:
                    nats += float(_added_kl(exact, found, temperature).sum())
                positions += len(found)
    return size, None if job.selection.sampled else nats / max(1, positions)


def _added_kl(exact: SoftLabels, found: SoftLabels, temperature: float) -> Tensor:
    """KL(exact ‖ found) at a temperature with the classes not kept as one, (N,)."""
    sides = []
    for labels in (exact, found):
        wide = labels.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        by_id = labels.ids.argsort(-1)
        entries = wide.log_probs_at(temperature).gather(-1, by_id)
        sides.append(torch.cat([entries, wide.log_tail(temperature).unsqueeze(-1)], -1))
    p, q = sides
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _mass_kept(parts: list[SoftLabels]) -> float | None:
    """None of weights, which stand for all classes."""
    if parts[0].sampled:
        return None
    return float(torch.cat([part.log_probs.exp().sum(-1) for part in parts]).double().mean())

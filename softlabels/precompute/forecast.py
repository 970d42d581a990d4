"""plan: a seeded sample is labelled, and says what the whole would take and what to choose."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from softlabels import codecs
from softlabels.codecs import Codec
from softlabels.errors import InputError
from softlabels.inputs.sources import chunks
from softlabels.labels import SoftLabels
from softlabels.labelset.records import Records, schema
from softlabels.labelset.shard import Shard, UnitSummary, write
from softlabels.precompute.job import Job, settle
from softlabels.precompute.label import Labeller, Unit
from softlabels.precompute.pilot import pilot
from softlabels.progress import Tracker, shown
from softlabels.selection import TopK
from softlabels.teachers import LabelTeacher

DEFAULT_SAMPLE_ROWS = 256
_CHOICES = (8, 16, 32, 64, 128, 256)
_CODECS = ("compact", "lossless", "plain")
# Doubling k is worth its bytes while it keeps so much more of the mass.
_WORTH = 0.005
_NORMAL_95 = 1.96


class Estimate(BaseModel):
    """A number of the whole, and the interval it lies in 19 times of 20."""

    model_config = ConfigDict(frozen=True)

    low: float
    mean: float
    high: float

    def times(self, factor: float) -> Estimate:
        """Of something that there is `factor` of for each."""
        return Estimate(low=factor * self.low, mean=factor * self.mean, high=factor * self.high)


class Choice(BaseModel):
    """What a number of entries and a codec would give.

    Attributes:
        k, codec: the choice.
        mass_kept: mean probability of the classes kept, at T = 1.
        bytes_per_position: of the shards, token ids and identities included.
        bytes: of the whole set's shards.
        added_kl: nats that storing adds, the tail as one class; mean.
    """

    model_config = ConfigDict(frozen=True)

    k: int
    codec: str
    mass_kept: float
    bytes_per_position: float
    bytes: Estimate
    added_kl: float


class Forecast(BaseModel):
    """What labelling all of the data would take.

    Attributes:
        rows: of the data.
        sample_rows, sample_tokens, sample_rejects: labelled to know it.
        tokens, positions, hours: of the whole.
        tokens_per_s: labelled.
        perplexity: of the teacher on the sample's next tokens; None where there are none.
        shares: of the time that the stages take, by name; they overlap.
        batch_tokens: padded tokens in a batch, at most.
        chosen: what the arguments say.
        choices: others, by codec and k.
        advice: in words.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    sample_rows: int
    sample_tokens: int
    sample_rejects: int
    tokens: Estimate
    positions: Estimate
    hours: Estimate
    tokens_per_s: float
    perplexity: float | None
    shares: dict[str, float]
    batch_tokens: int
    chosen: Choice
    choices: tuple[Choice, ...]
    advice: tuple[str, ...]


def plan(
    data: Any,
    teacher: Any,
    *,
    sample: int = DEFAULT_SAMPLE_ROWS,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> Forecast:
    """Label a seeded sample of the data, keep nothing, and say what labelling all of it takes.

    Args:
        data, teacher: as `softlabels.precompute`.
        sample: rows that are labelled.
        seed: which.
        progress: show it on standard error; None shows it in a terminal only.
        settings: the other arguments of `softlabels.precompute`.

    Raises:
        InputError: as `softlabels.precompute`; or the data is a stream, or none of the sample can
            be labelled.
        TeacherError: there is no such teacher.
    """
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 1:
        raise InputError(f"sample is {sample!r}; it must be a whole number of rows, at least 1")
    job = settle(data, teacher, **settings)
    source = job.source
    if source.read is None or not source.rows:
        raise InputError(
            "plan needs data of known length with random access, at least one row, and this is a "
            "stream or empty; pass a Dataset or files, or a part of the stream as a list"
        )
    name = job.codec or codecs.DEFAULT
    if name not in _codecs(job):
        raise InputError(
            f"the codec {name} keeps logits, and the teacher gives none; choose another codec"
        )
    random = np.random.default_rng(seed)
    numbers = random.choice(source.rows, min(sample, source.rows), replace=False, shuffle=False)
    with shown(progress, doing="planning") as report:
        made = _label(job, np.sort(numbers).tolist(), Tracker(report, len(numbers)))
    if not len(made.records):
        raise InputError(
            f"none of the {len(numbers)} rows of the sample can be labelled; the first: "
            f"{made.rejects[0]['reason'] if made.rejects else 'no reason'}"
        )
    return _forecast(job, made)


@dataclass
class _Sample:
    """A labelled sample.

    Attributes:
        units: its records, by the work unit that they would make.
        rejects: of its rows.
        rows_tokens, rows_positions: of each of its rows, (R,).
        seconds: by stage.
    """

    units: list[Records]
    rejects: list[dict[str, Any]]
    rows_tokens: np.ndarray
    rows_positions: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def records(self) -> list[Records]:
        return [unit for unit in self.units if len(unit)]


def _label(job: Job, numbers: list[int], tracker: Tracker) -> _Sample:
    seconds = {"reading": 0.0, "teacher": 0.0, "labels": 0.0}
    classes = job.teacher.classes
    most = job.selection.k
    if not isinstance(job.teacher, LabelTeacher):  # a server may allow no more than was asked for
        most = max(most, min(max(_CHOICES), classes))
    plan = job.without_codec
    label = Labeller(
        _Timed(job.teacher, seconds, "teacher"),
        TopK(most),
        plan,
        "skip",
        tracker.advance,
        keep_logits=plan.teacher.logits_known,
    )
    made = _Sample([], [], np.zeros(len(numbers)), np.zeros(len(numbers)), seconds)
    assert job.source.read is not None
    for number, rows in enumerate(chunks(len(numbers), plan.unit_rows)):
        began = time.perf_counter()
        table = job.source.read(numbers[rows], job.source.columns)
        unit = Unit(number, table, _keys(job, table, numbers[rows]))
        prepared = label.prepare(unit)
        read = time.perf_counter()
        tracker.start(len(table))
        labelled = label(prepared)
        seconds["reading"] += read - began
        seconds["labels"] += time.perf_counter() - read
        tracker.finish(0, len(labelled.records.labels))
        windows = prepared.windows
        made.units.append(labelled.records)
        made.rejects.extend(labelled.summary.rejects)
        owners = rows.start + windows.rows
        np.add.at(made.rows_tokens, owners, windows.lengths)
        counted = np.append(0, np.cumsum(windows.wanted))
        np.add.at(made.rows_positions, owners, np.diff(counted[windows.offsets]))
    seconds["labels"] -= seconds["teacher"]
    return made


def _keys(job: Job, table: pa.Table, numbers: list[int]) -> pa.Array:
    if job.source.identity.key is None:
        return pa.array(numbers, pa.int64())
    return job.source.keys(table, numbers[0])


class _Timed:
    """A teacher whose answers are timed."""

    def __init__(self, teacher: Any, seconds: dict[str, float], name: str) -> None:
        self._teacher, self._seconds, self._name = teacher, seconds, name
        for method in ("logits", "labels"):
            if hasattr(teacher, method):
                setattr(self, method, self._timed(getattr(teacher, method)))
        if isinstance(teacher, LabelTeacher):
            self.temperatures = teacher.temperatures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def _timed(self, method: Any) -> Any:
        def answers(*args: Any, **options: Any) -> Iterator[Any]:
            iterator = iter(method(*args, **options))
            while True:
                began = time.perf_counter()
                try:
                    answer = next(iterator)
                    if isinstance(answer, Tensor) and answer.is_cuda:
                        torch.cuda.synchronize(answer.device)
                except StopIteration:
                    return
                finally:
                    self._seconds[self._name] += time.perf_counter() - began
                yield answer

        return answers


def _forecast(job: Job, made: _Sample) -> Forecast:
    rows = job.source.rows
    assert rows is not None
    tokens, positions = (_total(each, rows) for each in (made.rows_tokens, made.rows_positions))
    labels = [unit.labels for unit in made.records]
    sampled = sum(map(len, labels))
    learnt = pilot(job.source, _with_k(job, labels[0].k), job.teacher)
    offered = {k for k in _CHOICES if k <= labels[0].k} | {job.selection.k}
    names = _codecs(job)
    choices: dict[tuple[str, int], Choice] = {}
    writing = math.inf
    for name in names:
        for k in sorted(offered):
            codec = _codec(job, name, k, learnt)
            began = time.perf_counter()
            size, kl = _written(job, made, codec, k)
            if (name, k) == (job.codec or codecs.DEFAULT, job.selection.k):
                writing = time.perf_counter() - began
            choices[name, k] = Choice(
                k=k,
                codec=name,
                mass_kept=_mean([part.top(k).log_probs.exp().sum(-1) for part in labels]),
                bytes_per_position=size / sampled,
                bytes=positions.times(size / sampled),
                added_kl=kl,
            )
    seconds = made.seconds | {"writing": writing}
    # Reading and writing overlap with the teacher, and cost only what they exceed it by.
    labelling = seconds["teacher"] + seconds["labels"]
    per_token = max(labelling, seconds["reading"], seconds["writing"]) / made.rows_tokens.sum()
    hard = torch.cat([part.hard_log_probs for part in labels if part.hard_log_probs is not None])
    hard = hard[~hard.isnan()]
    chosen = choices[job.codec or codecs.DEFAULT, job.selection.k]
    shares = {name: taken / sum(seconds.values()) for name, taken in seconds.items()}
    return Forecast(
        rows=rows,
        sample_rows=len(made.rows_tokens),
        sample_tokens=int(made.rows_tokens.sum()),
        sample_rejects=len(made.rejects),
        tokens=tokens,
        positions=positions,
        hours=tokens.times(per_token / 3600),
        tokens_per_s=1 / per_token,
        perplexity=float(torch.exp(-hard.double().mean())) if len(hard) else None,
        shares=shares,
        batch_tokens=job.batch_tokens,
        chosen=chosen,
        choices=tuple(choices.values()),
        advice=tuple(_advice(chosen, choices, shares, len(made.rejects), len(made.rows_tokens))),
    )


def _codecs(job: Job) -> list[str]:
    known = job.without_codec.teacher.logits_known
    return [name for name in _CODECS if known or name != "lossless"]


def _total(each: np.ndarray, rows: int) -> Estimate:
    """Of all rows, from a sample without replacement."""
    count = len(each)
    spread = float(each.std(ddof=1)) if count > 1 and rows > count else 0.0
    error = _NORMAL_95 * spread * math.sqrt((1 - count / rows) / count)
    mean = float(each.mean())
    low = max(mean - error, float(each.sum()) / rows)
    return Estimate(low=rows * low, mean=rows * mean, high=rows * (mean + error))


def _with_k(job: Job, k: int) -> Any:
    plan = job.without_codec
    return plan.model_copy(update={"selection": plan.selection.model_copy(update={"k": k})})


def _codec(job: Job, name: str, k: int, learnt: SoftLabels) -> Codec:
    teacher = job.without_codec.teacher
    needs = codecs.Needs(teacher.classes, k, job.temperatures, teacher.logits_known)
    return codecs.resolve(name, needs, pilot=lambda: learnt.top(k))


def _written(job: Job, made: _Sample, codec: Codec, k: int) -> tuple[int, float]:
    """Bytes of the sample's shards, and the KL that reading them back adds."""
    token_ids = job.without_codec.teacher.token_ids
    token_type = pa.uint16() if token_ids <= 1 << 16 else pa.uint32()
    columns = schema(job.source.identity.key_type, codec, token_type=token_type)
    size, nats, positions = 0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, unit in enumerate(made.units):
            labels = unit.labels.top(k)
            if codec.logits_dtype is None:
                labels = replace(labels, logits=None)
            records = replace(unit, labels=labels)
            path = Path(folder) / f"{number}.parquet"
            summary = UnitSummary(number, len(records), input_digest="0" * 32)
            write(path, records, summary, schema=columns, codec=codec, plan_digest="0" * 64)
            size += path.stat().st_size
            shard = Shard(path, receipt=None, name=path.name)
            for group in range(shard.metadata.num_row_groups):
                found = shard.records(group, codec).labels
                exact, labels = labels[: len(found)], labels[len(found) :]
                nats += float(_added_kl(exact, found).sum())
                positions += len(found)
    return size, nats / max(1, positions)


def _added_kl(exact: SoftLabels, found: SoftLabels) -> Tensor:
    """KL(exact ‖ found) at T = 1 with the classes not kept as one, (N,)."""
    nothing = torch.full((len(exact),), -torch.inf, dtype=torch.float64)
    order, same = exact.ids.argsort(-1), found.ids.argsort(-1)
    p = exact.log_probs.double().gather(-1, order)
    q = found.log_probs.double().gather(-1, same)
    rest_p, rest_q = (
        labels.log_tail(1.0).double() if 1.0 in labels.temperatures else nothing
        for labels in (exact, found)
    )
    kept = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)
    return kept + torch.where(rest_p > -torch.inf, rest_p.exp() * (rest_p - rest_q), 0.0)


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().mean())


def _advice(
    chosen: Choice,
    choices: dict[tuple[str, int], Choice],
    shares: dict[str, float],
    rejects: int,
    rows: int,
) -> Iterator[str]:
    compact = [choices["compact", k] for k in _CHOICES if ("compact", k) in choices] or [
        choices["compact", chosen.k]
    ]
    enough = next(
        (small for small, large in pairwise(compact) if large.mass_kept - small.mass_kept < _WORTH),
        compact[-1],
    )
    if chosen.mass_kept >= 1 - _WORTH and chosen.k <= enough.k:
        yield f"k = {chosen.k} keeps {chosen.mass_kept:.1%} of the mass: nothing is left to gain"
    elif chosen.mass_kept - enough.mass_kept >= _WORTH or enough.k == chosen.k:
        yield (
            f"k = {chosen.k} keeps {chosen.mass_kept:.1%} of the mass, and every doubling on the "
            "way there adds more than half a percent"
        )
    elif enough.k < chosen.k:
        yield (
            f"k = {enough.k} keeps {enough.mass_kept:.1%} of the mass, k = {chosen.k} "
            f"{chosen.mass_kept:.1%} at {chosen.bytes.mean / enough.bytes.mean:.1f} times the "
            "bytes: fewer entries would do"
        )
    else:
        yield (
            f"k = {chosen.k} keeps {chosen.mass_kept:.1%} of the mass, k = {enough.k} "
            f"{enough.mass_kept:.1%} for {enough.bytes.mean / chosen.bytes.mean:.1f} times as much"
        )
    if chosen.codec == "plain":
        same = choices["compact", chosen.k]
        yield (
            f"compact would take {same.bytes.mean / chosen.bytes.mean:.0%} of plain's bytes and "
            f"add {same.added_kl:.1e} nats"
        )
    slowest = max(shares, key=lambda name: shares[name])
    if slowest == "teacher":
        yield f"the teacher takes {shares['teacher']:.0%} of the time: nothing else is worth tuning"
    else:
        yield f"{slowest} takes {shares[slowest]:.0%} of the time, more than the teacher"
    if rejects:
        yield (
            f"{rejects} of {rows} rows could not be labelled: with on_error='raise' the job would "
            "stop at the first; see them with on_error='skip'"
        )

"""plan: a seeded sample is labelled, and says what the whole would take and what to choose."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from softlabels.errors import InputError, KindError
from softlabels.format import probes
from softlabels.inputs.sources import chunks
from softlabels.precomputing.advice import OFFERED, Choice, Estimate, advice
from softlabels.precomputing.choices import Sample, codecs_for, kl_temperature, weigh
from softlabels.precomputing.job import Job
from softlabels.precomputing.label import Labeller
from softlabels.precomputing.settle import rows_in_memory, settle
from softlabels.precomputing.unit import Unit
from softlabels.progress import Tracker, shown
from softlabels.selection import TopK
from softlabels.teachers import LabelTeacher
from softlabels.teachers.traits import Answering, kind_of

DEFAULT_SAMPLE_ROWS = 256
_NORMAL_95 = 1.96


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
        probe_bytes: of the dense logits that are kept, in the bytes of every choice.
        kl_temperature: where the KL that storing adds is measured: 1, or the lowest of the declared
            temperatures where 1 is none of them, because a set can be read at those alone.
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
    probe_bytes: float
    kl_temperature: float
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
        sample: rows that are labelled; fewer where labels are so wide that they fill the memory.
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
    if kind_of(job.teacher) != "categorical":
        raise KindError(
            "plan compares what k and codecs keep of distributions over classes, and the "
            f"teacher's answers are {kind_of(job.teacher)}; label a part of the data (limit=) to "
            "see its bytes"
        )
    if job.codec_name not in codecs_for(job):
        raise InputError(
            f"the codec {job.codec_name} keeps logits, and the teacher gives none; choose another "
            "codec"
        )
    sample = min(sample, rows_in_memory(job.selection, job.preparation.max_length))
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


def _label(job: Job, numbers: list[int], tracker: Tracker) -> Sample:
    seconds = {"reading": 0.0, "teacher": 0.0, "labels": 0.0}
    classes = job.teacher.classes
    selection = job.selection
    # A server may allow no more than was asked for.
    if isinstance(selection, TopK) and not isinstance(job.teacher, LabelTeacher):
        selection = TopK(max(selection.k, min(max(OFFERED), classes)))
    plan = job.without_codec
    label = Labeller(
        _Timed(job.teacher, seconds, "teacher"),
        selection,
        plan,
        "skip",
        advance=tracker.advance,
        again=tracker.again,
        keep_logits=plan.teacher.logits_known and not selection.sampled,
    )
    made = Sample([], [], np.zeros(len(numbers)), np.zeros(len(numbers)), seconds)
    assert job.source.read is not None
    for number, rows in enumerate(chunks(len(numbers), plan.unit_rows)):
        began = time.perf_counter()
        table = job.source.read(numbers[rows], job.source.columns)
        unit = Unit(number, table, _keys(job, table, numbers[rows]))
        prepared = label.prepare(unit)
        read = time.perf_counter()
        tracker.start(len(table))
        prepared = label.answered(prepared)
        labelled = label(prepared, _share_of_probes(job, len(table)))
        seconds["reading"] += read - began
        seconds["labels"] += time.perf_counter() - read
        tracker.finish(0, len(labelled.records.soft))
        _add_probes(made, labelled.probes)
        windows = prepared.windows
        made.units.append(labelled.records)
        made.rejects.extend(labelled.summary.rejects)
        owners = rows.start + windows.rows
        np.add.at(made.rows_tokens, owners, windows.lengths)
        counted = np.append(0, np.cumsum(windows.wanted))
        np.add.at(made.rows_positions, owners, np.diff(counted[windows.offsets]))
    seconds["labels"] -= seconds["teacher"]
    return made


def _share_of_probes(job: Job, rows: int) -> int:
    """As many as so many rows have in the whole set; one at least, to know what it takes."""
    assert job.source.rows
    return math.ceil(job.probes * rows / job.source.rows)


def _add_probes(made: Sample, found: probes.Probes | None) -> None:
    if found is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probes.parquet"
        probes.write(path, found)
        made.probe_bytes += path.stat().st_size
    made.probes += len(found)


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
        if isinstance(teacher, Answering):
            self._answers, self.answers = teacher.answers, self._timed_answers

    def _timed_answers(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._answers(*args, **options)
        finally:
            self._seconds[self._name] += time.perf_counter() - began

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


def _forecast(job: Job, made: Sample) -> Forecast:
    rows = job.source.rows
    assert rows is not None
    tokens, positions = (_total(each, rows) for each in (made.rows_tokens, made.rows_positions))
    probe_bytes = 0.0
    if made.probes:
        probe_bytes = min(job.probes, positions.mean) * made.probe_bytes / made.probes
    choices, writing = weigh(job, made, positions, probe_bytes)
    chosen = choices[job.codec_name, job.selection.k]
    seconds = made.seconds | {"writing": writing}
    # Reading and writing overlap with the teacher, and cost only what they exceed it by.
    labelling = seconds["teacher"] + seconds["labels"]
    per_token = max(labelling, seconds["reading"], seconds["writing"]) / made.rows_tokens.sum()
    shares = {name: taken / sum(seconds.values()) for name, taken in seconds.items()}
    rejects, sampled = len(made.rejects), len(made.rows_tokens)
    return Forecast(
        rows=rows,
        sample_rows=sampled,
        sample_tokens=int(made.rows_tokens.sum()),
        sample_rejects=rejects,
        tokens=tokens,
        positions=positions,
        hours=tokens.times(per_token / 3600),
        tokens_per_s=1 / per_token,
        perplexity=_perplexity(made),
        shares=shares,
        batch_tokens=job.batch_tokens,
        probe_bytes=probe_bytes,
        kl_temperature=kl_temperature(job),
        chosen=chosen,
        choices=tuple(choices.values()),
        advice=tuple(advice(chosen, choices, shares, rejects=rejects, rows=sampled)),
    )


def _perplexity(made: Sample) -> float | None:
    """Of the hard labels; None where there are none."""
    parts = [unit.soft.hard_log_probs for unit in made.records]
    hard = torch.cat([part for part in parts if part is not None])
    hard = hard[~hard.isnan()]
    return float(torch.exp(-hard.double().mean())) if len(hard) else None


def _total(each: np.ndarray, rows: int) -> Estimate:
    """Of all rows, from a sample without replacement."""
    count = len(each)
    spread = float(each.std(ddof=1)) if count > 1 and rows > count else 0.0
    error = _NORMAL_95 * spread * math.sqrt((1 - count / rows) / count)
    mean = float(each.mean())
    low = max(mean - error, float(each.sum()) / rows)
    return Estimate(low=rows * low, mean=rows * mean, high=rows * (mean + error))

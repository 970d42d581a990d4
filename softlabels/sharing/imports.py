"""Sets of other tools to label sets: checked, aligned, written as any other set is."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from softlabels.errors import DuplicateKeyError, InputError, PlanMismatchError
from softlabels.format import plan as plans
from softlabels.format.plan import Plan, SelectionPlan
from softlabels.format.records import Records
from softlabels.format.summary import UnitSummary
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.sources import DataIdentity
from softlabels.inputs.tokenizer import identify
from softlabels.labels import SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.looking.alignment import Alignment, AlignmentCheck
from softlabels.sharing.formats.sample import Format, Sample, whole_samples
from softlabels.sharing.records import TOKENS, Rules, check, problem, records_of, rows_digest
from softlabels.stores.target import earlier
from softlabels.teachers.identity import TeacherIdentity

# What alignment is judged by, and a codec learns from.
_PILOT = 256
_UNIT_ROWS = 256
_NOTHING_LEFT = 1e-6
OnError = Literal["raise", "skip"]
_SHIFTS = {"token before": -1, "token after": 1}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What other layouts do not say of a set.

    Attributes:
        data: a name for people.
        teacher: the name of the model.
        classes: V, where the layout does not say it.
        tokenizer: the teacher's, as transformers loads it; saved with the set.
    """

    data: str = "imported"
    teacher: str = "unknown"
    classes: int | None = None
    tokenizer: Any | None = None


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        labels: the set, opened.
        alignment: how the first labels fit the tokens, after any shift; None where none could.
        notes: what is to be known of the set.
    """

    labels: LabelSet
    alignment: Alignment | None
    notes: tuple[str, ...]


def import_set(
    source: Format,
    out: str | os.PathLike[str],
    *,
    origin: Origin | None = None,
    k: int | None = None,
    codec: str | None = None,
    shift: int | None = None,
    rescale: bool = False,
    on_error: OnError = "raise",
) -> Imported:
    """Write a label set of what another tool wrote; run it again after a crash to go on.

    Such sets have no logits: logsumexps are null, and the tail is known at T = 1 alone, as what
    the kept classes leave of 1. Samples are named by their row's number, or the source's keys.

    Args:
        source: a layout, with its place.
        out: a folder, new, empty or from an earlier run.
        origin: what the layout does not say.
        k: entries kept at a position; as many as the first samples have by default.
        codec: as `softlabels.precompute` takes it.
        shift: positions by which labels are moved, −1 for those that stand at the token they
            are about. By default they stay, and are refused if they fit a neighbour's token better.
        rescale: kept probabilities that sum above 1 are scaled to 1; without, they are refused
            where that is more than the layout's own rounding.
        on_error: "skip" notes samples that cannot be used as rejects.

    Raises:
        InputError: a file, column, row or setting cannot be used; labels stand one position off.
        PlanMismatchError: the folder was begun with another plan.
    """
    origin, root = origin or Origin(), Path(out)
    check_directory(root)
    check_writable(root)
    classes = origin.classes or source.classes
    if k is not None and not 1 <= k <= (classes or k):
        raise InputError(f"k is {k}; it must be from 1 to the number of classes, {classes}")
    if classes is None:
        raise InputError("how many classes the teacher has is not told; pass classes= (--classes)")
    pilot = list(itertools.islice(source.read(), _PILOT))
    most = max((sample.ids.shape[1] for sample in pilot), default=0)
    if not most:
        raise InputError(f"{origin.data}: there are no labels in the first {len(pilot)} samples")
    rounding = math.inf if rescale else source.rounding
    rules = Rules(classes, k or most, k is not None, shift or 0, rounding)
    good = _usable(pilot, rules, on_error)
    plan = _plan(good, origin, rules, longest=source.longest())
    records = records_of(good, _keys(good, 0), rules, key_type=plan.data.key_type)
    plan = plans.with_codec(plan, codec, earlier(root), lambda: records.soft)
    alignment = _aligned(records, plan, told=shift is not None)
    save: Callable[[Path], object] | None = getattr(origin.tokenizer, "save_pretrained", None)
    later = False
    with begin(root, plan, save_tokenizer=save) as writer, _windows_named():
        units = 0
        for units, (first, rows) in enumerate(_units(source.read()), 1):
            later |= any(row.window.part for row in rows)
            done = writer.receipt(units - 1)
            if done is None:
                _publish(writer, units - 1, first, rows, rules, on_error)
            elif done.input_digest != rows_digest(rows, _keys(rows, first), rules):
                raise PlanMismatchError(
                    f"{root}: the samples from row {first} on are not those that {done.path} was "
                    "imported from, or were imported with other settings (shift, rescale, k, "
                    "keys). Import them as before, or choose another folder"
                )
        writer.check_no_more_than(units)
        writer.finish(units)
    return Imported(LabelSet.open(root), alignment, tuple(_notes(records.soft, later=later)))


def _aligned(records: Records, plan: Plan, *, told: bool) -> Alignment | None:
    """How labels fit the tokens; raises `InputError` where it is one off and nobody told so."""
    judge = AlignmentCheck()
    judge.add(records, plan)
    found = judge.found()
    if not told and found is not None and found.verdict in _SHIFTS:
        way_out = _SHIFTS[found.verdict]
        raise InputError(
            f"{plan.data.name}: {found.words} Import it with shift={way_out} (--shift={way_out}), "
            "or with 0 to leave the labels where they are"
        )
    return found


def _plan(good: list[Sample], origin: Origin, rules: Rules, *, longest: int) -> Plan:
    keyed = bool(good) and good[0].key is not None
    return Plan(
        writer=f"softlabels {metadata.version('softlabels')}",
        teacher=TeacherIdentity(
            name=origin.teacher,
            revision=None,
            weights=None,
            dtype=None,
            engine="imported",
            engine_version="",
            classes=rules.classes,
            logits_known=False,
        ),
        tokenizer=None if origin.tokenizer is None else identify(origin.tokenizer),
        data=DataIdentity(
            name=origin.data,
            columns=(TOKENS,),
            key="key" if keyed else None,
            key_type="string" if keyed and isinstance(good[0].key, str) else "int64",
        ),
        preparation=Preparation(kind="input_ids", max_length=longest, special_tokens=False),
        selection=SelectionPlan(name="top_k", k=rules.k, algorithm="imported"),
        codec={},
        temperatures=(1.0,),
        unit_rows=_UNIT_ROWS,
        batch_tokens=longest,
    )


def _usable(samples: Sequence[Sample], rules: Rules, on_error: OnError) -> list[Sample]:
    """Those that can be used; raises `InputError` for another one unless they are skipped."""
    if on_error == "raise":
        for sample in samples:
            check(sample, rules)
    return [sample for sample in samples if problem(sample, rules) is None]


def _units(rows: Iterator[Sample]) -> Iterator[tuple[int, list[Sample]]]:
    """The number of a unit's first sample, and its rows; windows of a sample stay together."""
    first, samples = 0, whole_samples(rows)
    while some := list(itertools.islice(samples, _UNIT_ROWS)):
        yield first, list(itertools.chain.from_iterable(some))
        first += len(some)


@contextmanager
def _windows_named() -> Iterator[None]:
    """A key that is there twice may be that of windows that do not stand together."""
    try:
        yield
    except DuplicateKeyError as error:
        raise DuplicateKeyError(
            f"{error}; rows that are windows of one sample must stand one after another, numbered "
            "from 0 by a column of parts"
        ) from None


def _keys(samples: Sequence[Sample], first: int) -> list[str | int]:
    return [first + row if s.key is None else s.key for row, s in enumerate(samples)]


def _publish(
    writer: LabelSetWriter,
    unit: int,
    first: int,
    rows: list[Sample],
    rules: Rules,
    on_error: OnError,
) -> None:
    keys = _keys(rows, first)
    good, good_keys, rejects = [], [], []
    for key, sample in zip(keys, rows, strict=True):
        if on_error == "raise":
            check(sample, rules)
        found = problem(sample, rules)
        if found is None:
            good.append(sample)
            good_keys.append(key)
        else:
            rejects.append({"key": key, "part": sample.window.part, "reason": found})
    summary = UnitSummary(
        unit=unit,
        source_rows=len(dict.fromkeys(keys)),
        input_digest=rows_digest(rows, keys, rules),
        rejects=tuple(rejects),
    )
    records = records_of(good, good_keys, rules, key_type=writer.plan.data.key_type)
    writer.publish(records, summary)


def _notes(labels: SoftLabels, *, later: bool) -> Iterator[str]:
    """What is not said by other layouts, and how rows became records."""
    if later:
        yield (
            "Rows of one key were taken for the windows of one sample, by their column of parts: "
            "each is had by key and part."
        )
    if not len(labels):
        return
    left = labels.log_tail(1.0).exp()
    if labels.k < (labels.classes or 0) and bool((left < _NOTHING_LEFT).all()):
        yield (
            "The kept probabilities sum to 1 at every position: they were scaled to it, and what "
            "the other classes had is not known."
        )

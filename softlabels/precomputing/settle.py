"""The arguments of `softlabels.precompute`, checked as far as can be before weights are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, get_args

from pydantic import ValidationError

from softlabels import codecs
from softlabels import selection as selections
from softlabels.codecs import Preset
from softlabels.errors import InputError, quoted
from softlabels.format import plan as plans
from softlabels.format.plan import Plan
from softlabels.inputs.arrays import array_of, values_of
from softlabels.inputs.preparation import Answers, OnLong, Preparation
from softlabels.inputs.sources import Source, open_source
from softlabels.inputs.views import Views
from softlabels.precomputing.job import NO_PACKING, Job
from softlabels.precomputing.label import OnError
from softlabels.selection import Dense, Sampled, Selection, TopK, TopOdds, TopP
from softlabels.teachers import LabelTeacher, Teacher, resolve
from softlabels.teachers.traits import Answering, kind_of, positions_rule, takes_arrays

DEFAULT_TEMPERATURES = (1.0, 2.0, 4.0)
DEFAULT_UNIT_ROWS = 256
# An id, a log-prob and a logit; of a unit, at most.
_ENTRY_BYTES, _UNIT_BYTES = 16, 2 << 30
# Arrays as they are and as float32, for the unit at hand; another unit is read ahead.
_NUMBER_BYTES, _ARRAYS_BYTES = 8, 1 << 30


def settle(
    data: Any,
    teacher: Any,
    *,
    earlier: Plan | None = None,
    selection: Selection | None = None,
    column: str = "text",
    key: str | None = None,
    label: str | None = None,
    views: Views | None = None,
    max_length: int = 512,
    overlap: int = 0,
    on_long: OnLong = "window",
    assistant_only: bool = False,
    answers: Answers | None = None,
    temperatures: Sequence[float] | None = None,
    codec: str | None = None,
    store_inputs: bool | None = None,
    probes: int = 0,
    limit: int | None = None,
    on_error: OnError = "raise",
    unit_rows: int | None = None,
    batch_tokens: int | None = None,
    packing: bool = False,
    check_keys: bool = True,
) -> Job:
    """A job of the arguments of `softlabels.precompute`, which says what they mean.

    Args:
        check_keys: find duplicate keys now; else they are found when the set is finished.

    Raises:
        InputError: data or arguments are not usable.
        TeacherError: there is no such teacher.
    """
    known = resolve(teacher)
    kind, arrays = kind_of(known), takes_arrays(known)
    default_codec = codecs.default(sampled=isinstance(selection, Sampled), kind=kind)
    preset = codecs.preset(default_codec if codec is None else codec, kind)
    if not isinstance(selection, (TopK, TopP, Sampled, Dense, NoneType)):
        raise InputError(
            f"selection is {selection!r}; expected softlabels.TopK(k), TopP(p), Sampled(n) or "
            "Dense()"
        )
    if isinstance(temperatures, (str, bytes)) or not isinstance(temperatures, (Sequence, NoneType)):
        raise InputError(f"temperatures is {temperatures!r}; expected a list of numbers")
    _check_choices(on_error, unit_rows=unit_rows, batch_tokens=batch_tokens)
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 0:
        raise InputError(f"probes is {probes}; it must be a whole number from 0 on")
    source = open_source(
        data, column=column, key=key, label=label, limit=limit, in_place=True, arrays=arrays
    )
    if check_keys:
        source.check_unique_keys()
    _check_arrays(known, source, views, store_inputs=store_inputs, probes=probes)
    if label is not None and getattr(known, "positions", "every" if not arrays else "first") != (
        "first"
    ):
        raise InputError(
            f"label names the column {quoted(label)}, one hard label a sample, and the teacher "
            "gives many; leave it out"
        )
    _check_answers(answers, known, store_inputs=store_inputs)
    special_tokens = _special_tokens(known, source, earlier)
    try:
        preparation = Preparation(
            kind=source.kind,  # type: ignore[arg-type]
            max_length=max_length,
            overlap=overlap,
            on_long="reject" if answers is not None and on_long == "window" else on_long,
            special_tokens=special_tokens,
            assistant_only=assistant_only,
            positions=positions_rule(known),
            answers=answers,
        )
    except ValidationError as error:
        raise InputError(plans.first_problem(error)) from None
    preparation.check()
    if assistant_only and getattr(known, "alignment", "next") != "next":
        raise InputError(
            "assistant_only labels what predicts the assistant's tokens, and this teacher answers "
            "about the tokens themselves; leave it out"
        )
    if probes and source.rows is None:
        raise InputError(
            "the data is a stream of unknown length, and probes are spread over all of its rows; "
            "pass data with random access"
        )
    tells = known.temperatures if isinstance(known, LabelTeacher) else None
    chosen = selections.of_kind(selection, kind, known.classes)
    if chosen is None:
        chosen = _selection(known, preset, earlier if codec is None else None)
    selection = chosen.for_classes(known.classes)
    if temperatures is None:
        without = selection.sampled or kind == "embedding"
        temperatures = () if without else tells or DEFAULT_TEMPERATURES
    _check_selection(selection, known, temperatures)
    if codec is not None:
        needs = codecs.Needs(known.classes, selection.k, (), sampled=selection.sampled, kind=kind)
        codecs.check(preset.codec, needs)
    _check_before_loading(known, preparation, temperatures)
    _check_told(tells, temperatures)
    # Looked up without running it: a trial of what it can loads weights.
    if packing and inspect.getattr_static(known, "can_pack", None) in (None, False):
        raise InputError(NO_PACKING)
    length = 1 if preparation.positions == "first" else max_length
    rows = min(DEFAULT_UNIT_ROWS, rows_in_memory(selection, length))
    if arrays and unit_rows is None and earlier is None:
        rows = min(rows, _arrays_in_memory(source, views))
    return Job(
        source=source,
        teacher=known,
        preparation=preparation,
        selection=selection,
        temperatures=tuple(temperatures),
        codec=None if codec is None else preset.codec,
        earlier=earlier,
        views=views,
        store_inputs=not arrays if store_inputs is None else store_inputs,
        probes=probes,
        on_error=on_error,
        unit_rows=unit_rows or (earlier.unit_rows if earlier else rows),
        asked_batch_tokens=batch_tokens,
        packing=packing,
    )


def _selection(teacher: Teacher, preset: Preset, earlier: Plan | None) -> Selection:
    """Where none is named: that of an earlier run, or as many classes as the codec is meant for."""
    if earlier is not None:
        return earlier.selection.make()
    if kind_of(teacher) == "binary":
        return TopOdds(min(preset.k, teacher.classes))
    if preset.codec == "sampled":
        raise InputError(
            "the codec sampled writes weights of drawn classes; say how many: "
            "selection=softlabels.Sampled(n) (--draws n)"
        )
    return TopK(min(preset.k, teacher.classes))


def _check_arrays(
    teacher: Teacher, source: Source, views: Views | None, *, store_inputs: bool | None, probes: int
) -> None:
    """Refuse what arrays, and answers of other kinds than logits of a softmax, do not have."""
    if probes and kind_of(teacher) != "categorical":
        raise InputError(
            f"probes are dense logits of distributions over classes, and the teacher's answers are "
            f"{kind_of(teacher)}; leave them out"
        )
    if views is not None and not isinstance(views, Views):
        raise InputError(f"views is {views!r}; expected softlabels.Views(…)")
    if views is not None and source.kind != "array":
        raise InputError(
            f"views are augmented versions of arrays, and the column holds {source.kind}; leave "
            "them out"
        )
    if views is not None and views.partner and source.rows is None:
        raise InputError(
            "views with a partner need any sample at any time, and the data is a stream; pass data "
            "with random access"
        )
    if store_inputs and source.kind == "array":
        raise InputError(
            "store_inputs: a label set carries token ids, no arrays, which students join from the "
            "data; leave it out"
        )


def _check_answers(answers: Any, teacher: Teacher, *, store_inputs: bool | None) -> None:
    """Refuse answers that the teacher cannot give, or that nothing would keep."""
    if answers is None:
        return
    if not isinstance(answers, Answers):
        raise InputError(f"answers is {answers!r}; expected softlabels.Answers(…)")
    if not isinstance(teacher, Answering) or getattr(teacher, "alignment", "next") != "next":
        raise InputError(
            "answers are written by causal language models of transformers, and the teacher is "
            "none; write them with it yourself, and label them as messages with assistant_only"
        )
    if store_inputs is False:
        raise InputError(
            "the answers are the teacher's, so that the data does not have them: leave out "
            "store_inputs"
        )


def _check_selection(selection: Selection, teacher: Teacher, temperatures: Sequence[float]) -> None:
    if isinstance(teacher, LabelTeacher) and not isinstance(selection, TopK):
        raise InputError(
            f"the teacher gives no logits, only its likeliest classes, and {selection!r} needs "
            "logits; choose softlabels.TopK(k) (--k)"
        )
    if selection.sampled and temperatures:
        raise InputError(
            f"weights of drawn classes are right at T = 1 alone, and temperatures is "
            f"{tuple(temperatures)}; leave it out, or choose TopK"
        )


def rows_in_memory(selection: Selection, max_length: int) -> int:
    """Source rows whose labels may be held at a time, where the user does not say how many."""
    return max(1, _UNIT_BYTES // (_ENTRY_BYTES * selection.k * max_length))


def _arrays_in_memory(source: Source, views: Views | None) -> int:
    """Source rows whose arrays, in all views, may be held at a time, as large as the first one."""
    if source.read is None:
        return DEFAULT_UNIT_ROWS
    (value, *_) = values_of(source.unit(0, 1).column(source.identity.columns[0]))
    try:
        size = array_of(value).size
    except InputError:  # what is wrong with it is told when it is labelled
        return DEFAULT_UNIT_ROWS
    held = _NUMBER_BYTES * size * (1 if views is None else views.count)
    return max(1, _ARRAYS_BYTES // held)


def _special_tokens(
    teacher: Teacher, source: Source, earlier: Plan | None
) -> bool | Literal["window"]:
    if earlier is not None:
        return earlier.preparation.special_tokens
    if source.kind == "array":
        return True
    # A causal model reads on from what came before; others read a whole, marked as such.
    wholes = getattr(teacher, "alignment", "next") == "same" and source.kind != "input_ids"
    return "window" if wholes else True


def _check_choices(on_error: str, **counts: int | None) -> None:
    if on_error not in get_args(OnError):
        raise InputError(f"on_error is {quoted(on_error)}; it must be one of {get_args(OnError)}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")


def _check_told(tells: Sequence[float] | None, temperatures: Sequence[float]) -> None:
    """Refuse to ask of a teacher without logits what only logits tell."""
    if tells is None:
        return
    beyond = [temperature for temperature in temperatures if temperature not in tells]
    if beyond:
        known = ", ".join(f"{temperature:g}" for temperature in tells)
        raise InputError(
            f"the teacher gives no logits and knows what the classes not kept sum to only at "
            f"T = {known}, not at temperature {beyond[0]:g}; leave out temperatures="
        )


def _check_before_loading(
    teacher: Teacher, preparation: Preparation, temperatures: Sequence[float]
) -> None:
    """What can be known to fail before weights are loaded."""
    if len(set(temperatures)) != len(temperatures):
        raise InputError(f"temperatures {tuple(temperatures)} name one twice; name each once")
    for temperature in temperatures:
        if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
            raise InputError(f"temperature {temperature} is not a positive number")
    if teacher.max_length is not None and preparation.max_length > teacher.max_length:
        raise InputError(
            f"max_length is {preparation.max_length}, but the teacher was made for at most "
            f"{teacher.max_length} tokens; choose a smaller max_length"
        )
    if preparation.kind in ("text", "messages") and teacher.tokenizer is None:
        raise InputError(
            f"the column holds {preparation.kind}, but the teacher has no tokenizer; give it one, "
            "or a column of token ids"
        )

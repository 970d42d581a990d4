"""precompute: from data and a teacher to a finished label set, in one process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError

from softlabels import codecs
from softlabels.codecs import Plain
from softlabels.errors import InputError, PlanMismatchError, quoted
from softlabels.inputs import tokenizer as tokenizers
from softlabels.inputs.prepare import OnLong, Preparation
from softlabels.inputs.sources import Source, open_source
from softlabels.labelset import plan as plans
from softlabels.labelset import receipts
from softlabels.labelset.manifest import Receipt
from softlabels.labelset.plan import Plan, SelectionPlan
from softlabels.labelset.probes import quota
from softlabels.labelset.probes import write as write_probes
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.shard import Shard
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.precompute.label import Labeller, OnError, Unit
from softlabels.precompute.pilot import pilot
from softlabels.progress import Tracker, shown
from softlabels.selection import TopK
from softlabels.teachers import Teacher, resolve

DEFAULT_TEMPERATURES = (1.0, 2.0, 4.0)
DEFAULT_UNIT_ROWS = 256
DEFAULT_BATCH_TOKENS = 8192


def precompute(
    data: Any,
    teacher: Any,
    out: str | os.PathLike[str],
    *,
    selection: TopK | None = None,
    column: str = "text",
    key: str | None = None,
    max_length: int = 512,
    overlap: int = 0,
    on_long: OnLong = "window",
    assistant_only: bool = False,
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    codec: str | None = None,
    store_inputs: bool = True,
    probes: int = 0,
    limit: int | None = None,
    on_error: OnError = "raise",
    unit_rows: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> LabelSet:
    """Run a teacher once over data and write what it believes to a label set.

    Run it again after a crash: finished work units are skipped, and it refuses, naming what
    differs, if teacher, data, selection or preparation changed.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`, a path or glob of Parquet, JSONL or text
            files, or an iterable of rows (mappings).
        teacher: a causal LM's Hub name or folder, a transformers model, or a teacher (see
            `softlabels.teachers`).
        out: a folder, new, empty or from an earlier run.
        selection: which classes are kept; the plan's when resuming without a codec, else
            `TopK(64)`, `TopK(8)` for the codec "tiny", or all of fewer classes.
        column: what is labelled: text, chat messages, or ready token ids, by its type.
        key: the column that names samples, string or integer, unique; row numbers by default.
        max_length: tokens in a record at most.
        overlap: tokens that a window repeats from the one before, as context only.
        on_long: samples above max_length: "window" cuts them into several records, "truncate"
            drops their end, "reject" notes them in the rejects table, "raise" stops.
        assistant_only: of messages, label only what predicts the assistant's tokens.
        temperatures: where the mass of the classes not kept is stored, for losses at these T.
        codec: how entries are written: "compact", a third of float32's bytes for an added KL of
            1.2e-4 nats at k = 64; "tiny", the same for k = 8 by default; "lossless", the logits
            bit for bit; "plain", float32 lists that anyone can read. The plan's when resuming, else
            "compact".
        store_inputs: keep the token ids in the set, so that it can be trained on by itself.
        probes: keep the dense logits of so many positions, spread over the data, bit for bit: a
            sample to measure the set against when the teacher is gone. 4 bytes a class each.
        limit: only the first so many rows.
        on_error: samples that cannot be labelled (empty, NaN, teacher raised): "raise" stops with
            their key, "skip" notes them in the rejects table.
        unit_rows: source rows in a work unit; a killed run loses at most one unit. The plan's
            when resuming, else 256.
        batch_tokens: padded tokens in a teacher batch, at most. The plan's when resuming, else
            8,192.
        progress: show it on standard error; None shows it in a terminal only.

    Returns:
        the finished set, opened.

    Raises:
        InputError: data, arguments or the folder are not usable; before any model runs where that
            can be known.
        TeacherError: there is no such teacher.
        PlanMismatchError: the folder was begun with another recipe.
        LabellingError: a sample cannot be labelled and `on_error` is "raise".
    """
    root = Path(out)
    check_directory(root)
    preset = codecs.preset(codecs.DEFAULT if codec is None else codec)
    if not isinstance(selection, (TopK, NoneType)):
        raise InputError(f"selection is {selection!r}; expected softlabels.TopK(k)")
    if isinstance(temperatures, (str, bytes)) or not isinstance(temperatures, Sequence):
        raise InputError(f"temperatures is {temperatures!r}; expected a list of numbers")
    _check_choices(on_error, unit_rows=unit_rows, batch_tokens=batch_tokens)
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 0:
        raise InputError(f"probes is {probes}; it must be a whole number from 0 on")
    source = open_source(data, column=column, key=key, limit=limit)
    source.check_unique_keys()
    try:
        preparation = Preparation(
            kind=source.kind,  # type: ignore[arg-type]
            max_length=max_length,
            overlap=overlap,
            on_long=on_long,
            assistant_only=assistant_only,
        )
    except ValidationError as error:
        raise InputError(plans.first_problem(error)) from None
    preparation.check()
    if probes and source.rows is None:
        raise InputError(
            "the data is a stream of unknown length, and probes are spread over all of its rows; "
            "pass data with random access"
        )
    known = resolve(teacher)
    earlier = plans.earlier(root)
    if selection is None:
        k = earlier.selection.k if earlier and codec is None else preset.k
        selection = TopK(min(k, known.classes))
    _check_before_loading(known, selection, preparation, temperatures)
    check_writable(root)
    with shown(progress) as report:
        plan = Plan(
            writer=f"softlabels {metadata.version('softlabels')}",
            teacher=known.identity,
            tokenizer=None if known.tokenizer is None else tokenizers.identify(known.tokenizer),
            data=source.identity,
            preparation=preparation,
            selection=SelectionPlan(
                name=selection.name, k=selection.k, algorithm=selection.algorithm
            ),
            codec=Plain(known.classes, tuple(temperatures)).to_json(),
            temperatures=tuple(temperatures),
            store_inputs=store_inputs,
            probes=probes,
            unit_rows=unit_rows or (earlier.unit_rows if earlier else DEFAULT_UNIT_ROWS),
            batch_tokens=batch_tokens
            or (earlier.batch_tokens if earlier else DEFAULT_BATCH_TOKENS),
        )
        name = None if codec is None else preset.codec
        plan = plans.with_codec(plan, name, earlier, lambda: pilot(source, plan, known))
        save = getattr(known.tokenizer, "save_pretrained", None)
        with begin(root, plan, save_tokenizer=save) as writer:
            tracker = Tracker(report, source.rows)
            keep_logits = writer.codec.logits_dtype is not None
            labeller = Labeller(
                known, selection, plan, on_error, tracker.advance, keep_logits=keep_logits
            )
            units = _label_units(source, writer, labeller, tracker)
            writer.check_no_more_than(units)
            if not writer.is_finished:
                writer.finish(units)
    return LabelSet.open(root)


def _label_units(
    source: Source, writer: LabelSetWriter, labeller: Labeller, tracker: Tracker
) -> int:
    """Label and publish every unit that is not there yet; returns how many units there are."""
    row = number = 0
    finished = _units_of_finished(writer)
    for number, table in enumerate(source.units(writer.plan.unit_rows), start=1):
        unit = Unit(number - 1, table, source.keys(table, row))
        row += len(table)
        done = writer.receipt(unit.number)
        if done is not None:
            check_unchanged(unit, done, writer)
            tracker.skip(len(table))
            continue
        if finished is not None and unit.number >= finished:
            raise PlanMismatchError(
                f"{writer.root} is finished after {finished} work units of "
                f"{writer.plan.unit_rows} rows, and the data has more rows: the data became "
                "longer. Use the data of the first run, or choose another folder"
            )
        tracker.start(len(table))
        rows = range(row - len(table), row)
        share = quota(writer.plan.probes, rows, source.rows) if source.rows else 0
        records, summary, dense = labeller(unit, share)
        if dense is not None:
            writer.publish_probes(unit.number, partial(write_probes, probes=dense))
        receipt = writer.publish(records, summary)
        tracker.finish(receipt.bytes)
    return number


def check_unchanged(unit: Unit, receipt: Receipt, writer: LabelSetWriter) -> None:
    """Refuse to go on when the rows of a finished unit are not what was labelled.

    Raises:
        PlanMismatchError: naming the first key that differs.
    """
    columns = writer.plan.data.columns
    digests, whole = unit.digests(columns)
    if whole == receipt.input_digest:
        return
    shard = Shard(writer.root / receipt.path, receipt=receipt, name=receipt.path)
    stored: dict[Any, bytes] = {}
    for group in range(shard.metadata.num_row_groups):
        table = shard.read(group, ["key", "input_digest"])
        stored |= zip(table["key"].to_pylist(), table["input_digest"].to_pylist(), strict=True)
    for key, digest in zip(unit.keys.to_pylist(), digests, strict=True):
        if stored.get(key, digest) != digest:
            raise PlanMismatchError(
                f"{writer.root}: the data changed after {receipt.path} was labelled: the sample "
                f"with key {quoted(key)} has input digest {digest.hex()}, labelled was "
                f"{stored[key].hex()} (columns {', '.join(columns)}). Use the data of the first "
                "run, or choose another folder"
            )
    raise PlanMismatchError(
        f"{writer.root}: the data changed after {receipt.path} was labelled: it has other keys, "
        f"another order or another rejected sample (unit of {receipt.source_rows} rows, now "
        f"{len(unit.table)}). Use the data of the first run, or choose another folder"
    )


def _units_of_finished(writer: LabelSetWriter) -> int | None:
    """How many units a finished set has, one that lost a shard included."""
    if not writer.is_finished:
        return None
    return len(receipts.finished(writer.root, writer.plan_digest))


def _check_choices(on_error: str, **counts: int | None) -> None:
    if on_error not in get_args(OnError):
        raise InputError(f"on_error is {quoted(on_error)}; it must be one of {get_args(OnError)}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")


def _check_before_loading(
    teacher: Teacher, selection: TopK, preparation: Preparation, temperatures: Sequence[float]
) -> None:
    """What can be known to fail before weights are loaded."""
    selection.check_classes(teacher.classes)
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
    if preparation.kind != "input_ids" and teacher.tokenizer is None:
        raise InputError(
            f"the column holds {preparation.kind}, but the teacher has no tokenizer; give it one, "
            "or a column of token ids"
        )

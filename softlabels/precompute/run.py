"""precompute: from data and a teacher to a finished label set, in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from softlabels.errors import PlanMismatchError, quoted
from softlabels.inputs.prepare import OnLong
from softlabels.inputs.sources import Source
from softlabels.labelset import plan as plans
from softlabels.labelset import receipts
from softlabels.labelset.manifest import Receipt
from softlabels.labelset.probes import quota
from softlabels.labelset.probes import write as write_probes
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.shard import Shard
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.precompute.job import Job, settle
from softlabels.precompute.label import Labeller, OnError
from softlabels.precompute.pipeline import Ahead, Behind
from softlabels.precompute.unit import Labelled, Prepared, Unit
from softlabels.progress import Seen, Tracker, shown
from softlabels.selection import Selection


def precompute(
    data: Any,
    teacher: Any,
    out: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    column: str = "text",
    key: str | None = None,
    max_length: int = 512,
    overlap: int = 0,
    on_long: OnLong = "window",
    assistant_only: bool = False,
    temperatures: Sequence[float] | None = None,
    codec: str | None = None,
    store_inputs: bool = True,
    probes: int = 0,
    limit: int | None = None,
    on_error: OnError = "raise",
    unit_rows: int | None = None,
    batch_tokens: int | None = None,
    packing: bool = False,
    progress: bool | None = None,
) -> LabelSet:
    """Run a teacher once over data and write what it believes to a label set.

    Run it again after a crash: finished work units are skipped, and it refuses, naming what
    differs, if teacher, data, selection or preparation changed.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`, a path or glob of Parquet, JSONL or text
            files, or an iterable of rows (mappings).
        teacher: a model's Hub name, folder or GGUF file, a server's address, a transformers model,
            or a teacher (see `softlabels.teachers`).
        out: a folder, new, empty or from an earlier run.
        selection: which classes are kept: `TopK(k)`, `TopP(p, max_k)`, `Sampled(n)` or `Dense()`;
            the plan's when resuming without a codec, else `TopK(64)`, `TopK(8)` for the codec
            "tiny", or all of fewer classes.
        column: what is labelled: text, chat messages, or ready token ids, by its type.
        key: the column that names samples, string or integer, unique; row numbers by default.
        max_length: tokens in a record at most.
        overlap: tokens that a window repeats from the one before, as context only.
        on_long: samples above max_length: "window" cuts them into several records, "truncate"
            drops their end, "reject" notes them in the rejects table, "raise" stops.
        assistant_only: of messages, label only what predicts the assistant's tokens.
        temperatures: where the mass of the classes not kept is stored, for losses at these T:
            1, 2 and 4, or what a teacher without logits can tell; none for `Sampled`.
        codec: how entries are written: "compact", a third of float32's bytes for an added KL of
            1.2e-4 nats at k = 64; "tiny", the same for k = 8 by default; "lossless", the logits
            bit for bit; "plain", float32 lists that anyone can read; "sampled" for `Sampled`, and
            for that alone. The plan's when resuming, else "compact".
        store_inputs: keep the token ids in the set, so that it can be trained on by itself.
        probes: keep the dense logits of so many positions, spread over the data, bit for bit: a
            sample to measure the set against when the teacher is gone. 4 bytes a class each.
        limit: only the first so many rows.
        on_error: samples that cannot be labelled (empty, NaN, teacher raised): "raise" stops with
            their key, "skip" notes them in the rejects table.
        unit_rows: source rows in a work unit; a killed run loses the one at hand, and the one
            before if that is just being written. The plan's when resuming, else 256.
        batch_tokens: padded tokens in a teacher batch, at most; halved for a unit that does not fit
            into memory. The plan's when resuming, else 8,192 on a CPU, and on an accelerator what
            a trial finds to be fastest.
        packing: put short records into one row, where they do not see each other, in place of
            padding; for transformers causal LMs that can.
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
    job = settle(
        data,
        teacher,
        earlier=plans.earlier(root),
        selection=selection,
        column=column,
        key=key,
        max_length=max_length,
        overlap=overlap,
        on_long=on_long,
        assistant_only=assistant_only,
        temperatures=temperatures,
        codec=codec,
        store_inputs=store_inputs,
        probes=probes,
        limit=limit,
        on_error=on_error,
        unit_rows=unit_rows,
        batch_tokens=batch_tokens,
        packing=packing,
    )
    check_writable(root)
    with shown(progress) as report, _begun(root, job) as writer:
        tracker = Tracker(report, job.source.rows)
        keep_logits = writer.codec.logits_dtype is not None
        labeller = Labeller(
            job.teacher, job.selection, writer.plan, job.on_error, keep_logits=keep_logits
        )
        units = _label_units(job.source, writer, labeller, tracker)
        writer.check_no_more_than(units)
        writer.finish(units)
    return LabelSet.open(root)


@contextmanager
def _begun(root: Path, job: Job) -> Iterator[LabelSetWriter]:
    """The set, begun by this job, or by one that began with it and published its plan first.

    Raises:
        PlanMismatchError: it was begun with another recipe.
    """
    plan = job.plan()
    save = getattr(job.teacher.tokenizer, "save_pretrained", None)
    with ExitStack() as stack:
        try:
            writer = stack.enter_context(begin(root, plan, save_tokenizer=save))
        except PlanMismatchError:
            first = plans.earlier(root)
            if job.earlier is not None or first is None:
                raise
            # What each found by trial (batch_tokens, the codec's table) is the first one's now;
            # where what was asked for differs, this is refused too.
            plan = replace(job, earlier=first).plan()
            writer = stack.enter_context(begin(root, plan, save_tokenizer=save))
        yield writer


def _label_units(
    source: Source, writer: LabelSetWriter, labeller: Labeller, tracker: Tracker
) -> int:
    """Label and publish every unit that is not there yet; returns how many units there are.

    Reading, labelling and writing overlap: one unit is read ahead, one is written behind.
    """

    def write(made: Labelled) -> None:
        if made.probes is not None:
            writer.publish_probes(made.summary.unit, partial(write_probes, probes=made.probes))
        receipt = writer.publish(made.records, made.summary)
        tracker.finish(receipt.bytes, receipt.positions)

    units = 0
    with Behind(write) as written, Ahead(_prepared(source, writer, labeller)) as read:

        def advance(tokens: int, unit_tokens: int, seen: Seen) -> None:
            tracker.advance(tokens, unit_tokens, seen)
            written.check()
            read.check()

        labeller = replace(labeller, advance=advance, again=tracker.again)
        for rows, prepared in read:
            units += 1
            if prepared is None:
                tracker.skip(len(rows))
                continue
            tracker.start(len(rows))
            share = quota(writer.plan.probes, rows, source.rows) if source.rows else 0
            written.put(labeller(prepared, share))
    return units


def _prepared(
    source: Source, writer: LabelSetWriter, labeller: Labeller
) -> Iterator[tuple[range, Prepared | None]]:
    """The rows of every unit, and what the teacher takes of those that are not there yet."""
    row, finished = 0, _units_of_finished(writer)
    for number, table in enumerate(source.units(writer.plan.unit_rows)):
        unit = Unit(number, table, source.keys(table, row))
        rows = range(row, row + len(table))
        row = rows.stop
        done = writer.receipt(number)
        if done is not None:
            check_unchanged(unit, done, writer)
            yield rows, None
            continue
        if finished is not None and number >= finished:
            raise PlanMismatchError(
                f"{writer.root} is finished after {finished} work units of "
                f"{writer.plan.unit_rows} rows, and the data has more rows: the data became "
                "longer. Use the data of the first run, or choose another folder"
            )
        yield rows, labeller.prepare(unit)


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

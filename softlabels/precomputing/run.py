"""precompute: from data and a teacher to a finished label set, by one process or many."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

from softlabels import ranks
from softlabels.errors import InputError
from softlabels.format.manifest import Receipt
from softlabels.inputs.preparation import Answers, OnLong
from softlabels.inputs.views import Views
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.precomputing.executors import Executor, Local, Ray, named
from softlabels.precomputing.job import Job
from softlabels.precomputing.label import OnError
from softlabels.precomputing.pipeline import Ahead, Behind
from softlabels.precomputing.settle import settle
from softlabels.precomputing.step import Done, Made, Step, begun
from softlabels.precomputing.tasks import Share, Task, Tasks
from softlabels.precomputing.unit import Prepared
from softlabels.progress import Seen, Tracker, shown
from softlabels.selection import Selection
from softlabels.stores.target import Out, address, earlier

logger = logging.getLogger(__name__)


def precompute(
    data: Any,
    teacher: Any,
    out: str | os.PathLike[str],
    *,
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
    rank: int | None = None,
    world_size: int | None = None,
    executor: Executor = "local",
    workers: int = 1,
    progress: bool | None = None,
) -> LabelSet:
    """Run a teacher once over data and write what it believes to a label set.

    Run it again after a crash: finished work units are skipped, and it refuses, naming what
    differs, if teacher, data, selection or preparation changed.

    Several processes or machines that see the same folder may share the work: by rank, each of
    which may be run again alone, or by an executor. The set is the same, and whoever publishes the
    last unit finishes it.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`, a path or glob of Parquet, JSONL or text
            files, or an iterable of rows (mappings).
        teacher: a model's Hub name, folder or GGUF file, a server's address, a transformers model,
            or a teacher (see `softlabels.teachers`).
        out: a folder, new, empty or from an earlier run.
        selection: which classes are kept: `TopK(k)`, `TopP(p, max_k)`, `Sampled(n)` or `Dense()`;
            the plan's when resuming without a codec, else `TopK(64)`, `TopK(8)` for the codec
            "tiny", or all of fewer classes.
        column: what is labelled: text, chat messages, or ready token ids, by its type; of a teacher
            of arrays, arrays: lists of numbers, encoded images, NumPy arrays, tensors.
        key: the column that names samples, string or integer, unique; row numbers by default.
        label: the column of hard labels, a class's number or name, of a teacher that gives one
            label a sample; what it thinks of them is stored, and students get them.
        views: augmented versions of every sample, each labelled; of arrays.
        max_length: tokens in a record at most.
        overlap: tokens that a window repeats from the one before, as context only.
        on_long: samples above max_length: "window" cuts them into several records, "truncate"
            drops their end, "reject" notes them in the rejects table, "raise" stops.
        assistant_only: of messages, label only what predicts the assistant's tokens.
        answers: the column holds prompts, text or chats that end before the assistant's turn: the
            teacher answers each, and what it believed of every token of its answer is labelled
            (sequence-level distillation). Prompts that leave no room for an answer are rejected,
            and max_length is of both. The set carries the answers; of a causal LM only.
        temperatures: where the mass of the classes not kept is stored, for losses at these T:
            1, 2 and 4, or what a teacher without logits can tell; none for `Sampled`.
        codec: how entries are written: "compact", a third of float32's bytes for an added KL of
            1.2e-4 nats at k = 64; "tiny", the same for k = 8 by default; "lossless", the logits
            bit for bit; "plain", float32 lists that anyone can read; "sampled" for `Sampled`, and
            for that alone. Of independent classes: "binary", or with its bits "binary:8", and
            "binary_plain". Of vectors: "float16", "float32", "int8", "product", or with its bytes
            "product:96". The plan's when resuming, else the first one of the kind.
        store_inputs: keep the token ids in the set, so that it can be trained on by itself, which
            is the default; arrays are never kept.
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
        rank, world_size: label only work units rank, rank + world_size, …; by default what
            torch.distributed, or the environment of torchrun, of a Slurm array or of srun says,
            else all of them. torchrun's LOCAL_RANK is the CUDA device by default.
        executor: "local" on this machine; "ray", or a `softlabels.precomputing.executors.Ray`, by
            actors of a Ray cluster.
        workers: processes that label, which share the CPU's threads and have a CUDA device each
            where there are several; 1 is this one. Of Ray, actors.
        progress: show it on standard error; None shows it in a terminal only.

    Returns:
        the finished set, opened; of a rank, while work units of other ranks are missing, what
        there is of it (`finished` is False).

    Raises:
        InputError: data, arguments or the folder are not usable; before any model runs where that
            can be known.
        TeacherError: there is no such teacher.
        PlanMismatchError: the folder was begun with another recipe.
        LabellingError: a sample cannot be labelled and `on_error` is "raise", or a work unit ended
            the processes that labelled it.
    """
    how = named(executor, workers)
    share = Share.find(rank, world_size)
    ranks.choose_device()
    check_directory(out)
    job = settle(
        data,
        teacher,
        earlier=earlier(out),
        selection=selection,
        column=column,
        key=key,
        label=label,
        views=views,
        max_length=max_length,
        overlap=overlap,
        on_long=on_long,
        assistant_only=assistant_only,
        answers=answers,
        temperatures=temperatures,
        codec=codec,
        store_inputs=store_inputs,
        probes=probes,
        limit=limit,
        on_error=on_error,
        unit_rows=unit_rows,
        batch_tokens=batch_tokens,
        packing=packing,
        check_keys=share.is_first,
    )
    check_writable(out)
    tasks = Tasks(job.source, job.unit_rows, share)
    with shown(progress) as report:
        tracker = Tracker(report, tasks.rows)
        if how == Local(1):
            missing = _label_here(job, out, tasks, share, tracker)
        else:
            missing = _label_elsewhere(job, out, tasks, share, tracker, how)
    return _opened(out, missing, tasks.units)


def _label_here(job: Job, out: Out, tasks: Tasks, share: Share, tracker: Tracker) -> int:
    """Label in this process; returns how many units of other shares are missing.

    Reading, labelling and writing overlap: one unit is read ahead, one is written behind.
    """
    with begun(out, job) as writer:
        step = Step.of(job, writer)

        def write(made: Made) -> None:
            done = step.publish(made)
            receipt = done.receipt
            tracker.finish(receipt.bytes, receipt.positions, tokens=done.tokens, seen=done.seen)

        with Behind(write) as written, Ahead(_prepared(step, tasks)) as read:

            def advance(tokens: int, unit_tokens: int, seen: Seen) -> None:
                tracker.advance(tokens, unit_tokens, seen)
                written.check()
                read.check()

            step = step.watched(advance, tracker.again)
            for task, found in read:
                if isinstance(found, Receipt):
                    tracker.skip(len(task.rows))
                    continue
                tracker.start(len(task.rows))
                written.put(step.label(task, found))
        return _finish(writer, tasks, share)


def _prepared(step: Step, tasks: Tasks) -> Iterator[tuple[Task, Prepared | Receipt]]:
    for task in tasks:
        yield task, step.prepare(task)


def _label_elsewhere(
    job: Job, out: Out, tasks: Tasks, share: Share, tracker: Tracker, how: Local | Ray
) -> int:
    """Label in other processes; returns how many units of other shares are missing."""
    rows: dict[int, int] = {}

    def noted() -> Iterator[Task]:
        for task in tasks:
            rows[task.number] = len(task.rows)
            yield task

    with closing(how.label(job, address(out), noted())) as done:
        for unit in done:
            _track(tracker, unit, rows.pop(unit.number))
    plan = earlier(out)
    if plan is None:
        raise InputError(
            f"{out}: the workers made no plan there; they have to see the same folder by the same "
            "path"
        )
    with begin(out, plan, save_tokenizer=None) as writer:
        return _finish(writer, tasks, share)


def _track(tracker: Tracker, unit: Done, rows: int) -> None:
    if not unit.labelled:
        tracker.skip(rows)
        return
    tracker.finish_elsewhere(
        rows,
        tokens=unit.tokens,
        seen=unit.seen,
        bytes_written=unit.receipt.bytes,
        positions=unit.receipt.positions,
    )


def _finish(writer: LabelSetWriter, tasks: Tasks, share: Share) -> int:
    """Finish the set if all units are there; returns how many are not."""
    units = tasks.units
    writer.check_no_more_than(units)
    if share.world_size > 1 and not writer.is_finished:
        missing = writer.missing(units)
        # If it was finished meanwhile, receipts that were just rebuilt go when it is again.
        if missing and not writer.is_finished:
            return missing
    writer.finish(units, tasks.source_rows)
    return 0


def _opened(out: Out, missing: int, units: int) -> LabelSet:
    if not missing:
        return LabelSet.open(out)
    logger.warning(
        "%s: %d of %d work units are still missing. The rank that publishes the last one finishes "
        "the set; where a rank was lost, run it again, or the command without a rank",
        out,
        missing,
        units,
    )
    # Another rank may finish the set right now, and take the receipts away while they are read.
    with suppress(FileNotFoundError):
        return LabelSet.open(out, unfinished=True)
    return LabelSet.open(out, unfinished=True)

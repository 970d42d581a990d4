"""Label one work unit and publish it: the step that every executor repeats, in any order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from softlabels.errors import PlanMismatchError, quoted
from softlabels.format.manifest import Receipt
from softlabels.format.probes import quota
from softlabels.format.probes import write as write_probes
from softlabels.inputs.sources import Source
from softlabels.labelset.writer import LabelSetWriter, begin
from softlabels.precomputing.arriving import Arriving
from softlabels.precomputing.job import Job
from softlabels.precomputing.label import Labeller
from softlabels.precomputing.tasks import Task
from softlabels.precomputing.unit import Prepared, Unit
from softlabels.progress import NOTHING_SEEN, Seen
from softlabels.selection.top_k import load_compiled
from softlabels.stores.target import earlier


@dataclass(frozen=True)
class Made:
    """A unit that the teacher has labelled; its last labels may be on their way.

    Attributes:
        arriving: them.
        seconds: that the teacher and the selection took so far.
    """

    arriving: Arriving
    seconds: float


@dataclass(frozen=True)
class Done:
    """A unit is published.

    Attributes:
        number: which unit.
        receipt: of its shard.
        tokens, seen: of labelling it now; none of a unit that was there before.
        labelled: whether it was labelled now.
    """

    number: int
    receipt: Receipt
    tokens: int = 0
    seen: Seen = NOTHING_SEEN
    labelled: bool = False


@dataclass(frozen=True)
class Step:
    """What labels a unit, in three stages; a pure function of the unit and the plan.

    Repeated, or done by two at once, it leaves what one of them published first.

    Attributes:
        source: whose rows are labelled.
        writer: of the set.
        labeller: of the plan.
        finished_units: of a finished set, one that lost a shard included; None of another.
        accelerator: where the teacher runs; None where that is not known.
    """

    source: Source
    writer: LabelSetWriter
    labeller: Labeller
    finished_units: int | None
    accelerator: str | None

    @classmethod
    def of(cls, job: Job, writer: LabelSetWriter) -> Step:
        """The step of a job."""
        keep_logits = writer.codec.logits_dtype is not None
        labeller = Labeller(
            job.teacher,
            job.selection,
            writer.plan,
            job.on_error,
            views=job.views,
            partners=job.partners,
            keep_logits=keep_logits,
        )
        return cls(job.source, writer, labeller, writer.finished_units, _accelerator(job.teacher))

    def watched(self, advance: Callable[[int, int, Seen], None], again: Callable[[], None]) -> Step:
        """The same, which tells of every batch; see `Labeller`."""
        return replace(self, labeller=replace(self.labeller, advance=advance, again=again))

    def prepare(self, task: Task) -> Prepared | Receipt:
        """Read and tokenise the unit's own rows; a receipt if it is published already.

        Raises:
            PlanMismatchError: it was published, and its rows are others now.
        """
        table = task.table
        if table is None:
            table = self.source.unit(task.number, self.writer.plan.unit_rows)
        unit = Unit(task.number, table, self.source.keys(table, task.rows.start))
        done = self.writer.receipt(task.number)
        if done is not None:
            check_unchanged(unit, done, self.writer)
            return done
        if self.finished_units is not None and task.number >= self.finished_units:
            raise PlanMismatchError(
                f"{self.writer.name} is finished after {self.finished_units} work units of "
                f"{self.writer.plan.unit_rows} rows, and the data has more rows: the data became "
                "longer. Use the data of the first run, or choose another folder"
            )
        if self.accelerator in (None, "cpu") and self.labeller.selects:
            load_compiled()
        return self.labeller.prepare(unit)

    def label(self, task: Task, prepared: Prepared) -> Made:
        """Run the teacher.

        Raises:
            LabellingError: it cannot label one record.
        """
        rows, began = self.source.rows, time.perf_counter()
        share = quota(self.writer.plan.probes, task.rows, rows) if rows else 0
        arriving = self.labeller.begin(self.labeller.answered(prepared), share)
        return Made(arriving, time.perf_counter() - began)

    def publish(self, made: Made) -> Done:
        """Wait for the last labels and write the shard, unless another one was first.

        Raises:
            LabellingError: a sample cannot be labelled and `on_error` is "raise".
        """
        began = time.perf_counter()
        found = self.labeller.finish(made.arriving)
        if found.probes is not None:
            write = partial(write_probes, probes=found.probes)
            self.writer.publish_probes(found.summary.unit, write)
        seconds = made.seconds + time.perf_counter() - began
        receipt = self.writer.publish(
            found.records, found.summary, seconds=seconds, accelerator=self.accelerator
        )
        return Done(found.summary.unit, receipt, found.tokens, found.seen, labelled=True)


def _accelerator(teacher: Any) -> str | None:
    """The name of the teacher's device, if it has one here: a server's is not known."""
    device = getattr(teacher, "device", None)
    if device is None:
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


@contextmanager
def begun(out: str | os.PathLike[str], job: Job) -> Iterator[LabelSetWriter]:
    """The set, begun by this job, or by one that began with it and published its plan first.

    Raises:
        PlanMismatchError: it was begun with another recipe.
    """
    plan = job.plan()
    save = getattr(job.teacher.tokenizer, "save_pretrained", None)
    with ExitStack() as stack:
        try:
            writer = stack.enter_context(begin(out, plan, save_tokenizer=save))
        except PlanMismatchError:
            first = earlier(out)
            if job.earlier is not None or first is None:
                raise
            # What each found by trial (batch_tokens, the codec's table) is the first one's now;
            # where what was asked for differs, this is refused too.
            plan = replace(job, earlier=first).plan()
            writer = stack.enter_context(begin(out, plan, save_tokenizer=save))
        yield writer


def check_unchanged(unit: Unit, receipt: Receipt, writer: LabelSetWriter) -> None:
    """Refuse to go on when the rows of a finished unit are not what was labelled.

    Raises:
        PlanMismatchError: naming the first key that differs.
    """
    columns = writer.plan.data.columns
    digests, whole = unit.digests(columns)
    if whole == receipt.input_digest:
        return
    shard = writer.shard(receipt)
    stored: dict[Any, bytes] = {}
    for group in range(shard.metadata.num_row_groups):
        table = shard.read(group, ["key", "input_digest"])
        stored |= zip(table["key"].to_pylist(), table["input_digest"].to_pylist(), strict=True)
    for key, digest in zip(unit.keys.to_pylist(), digests, strict=True):
        if stored.get(key, digest) != digest:
            raise PlanMismatchError(
                f"{writer.name}: the data changed after {receipt.path} was labelled: the sample "
                f"with key {quoted(key)} has input digest {digest.hex()}, labelled was "
                f"{stored[key].hex()} (columns {', '.join(columns)}). Use the data of the first "
                "run, or choose another folder"
            )
    raise PlanMismatchError(
        f"{writer.name}: the data changed after {receipt.path} was labelled: it has other keys, "
        f"another order or another rejected sample (unit of {receipt.source_rows} rows, now "
        f"{len(unit.table)}). Use the data of the first run, or choose another folder"
    )

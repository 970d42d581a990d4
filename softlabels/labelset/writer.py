"""A label set while it is being made: begun or resumed, filled unit by unit, finished once."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from softlabels.errors import InputError, LabelSetError, PlanMismatchError, quoted
from softlabels.format import layout, manifest, probes, receipts
from softlabels.format import plan as plans
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.plan import Plan
from softlabels.format.records import Records, schema
from softlabels.format.shard import Shard, file_sha256
from softlabels.format.shard_writing import write
from softlabels.format.summary import UnitSummary
from softlabels.labelset.tables import write_tables
from softlabels.parallel import in_order
from softlabels.stores.target import Out, Target, destination, disk_errors

# What a run needs at the least: one row group of a wide selection.
_PROBE_BYTES = 16 << 20


class LabelSetWriter:
    """Writes shards to a target, several at a time if need be; made by `begin`.

    Attributes:
        name: how messages call the set.
        scratch: a folder for unfinished files.
        plan: the one that is there: this run's may differ in names that are not compared.
        finished_units: of a set that was finished before, one that lost a shard included; None of
            another.
    """

    def __init__(self, target: Target, scratch: Path) -> None:
        self.name, self.scratch, self._target = target.name, scratch, target
        plan_bytes = target.read(layout.PLAN) or b""
        self.plan = plan = plans.parse(plan_bytes, where=layout.PLAN)
        self.plan_digest = plans.digest(plan_bytes)
        self.split = plan.split
        self.codec = plan.make_codec()
        token_type = pa.uint16() if plan.teacher.token_ids <= 1 << 16 else pa.uint32()
        views = plan.views is not None
        self.schema = schema(plan.data.key_type, self.codec, token_type=token_type, views=views)
        self._finished: Sequence[Receipt] = ()
        self._probes: dict[int, dict[str, Any]] = {}
        self.finished_units: int | None = None
        if self.is_finished:
            self._finished = receipts.finished(target.tables(scratch), self.plan_digest)
            self.finished_units = len(self._finished)
            target.drop(layout.RECEIPTS)  # left by a run killed right after it wrote the manifest

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return self._target.size(layout.MANIFEST) is not None

    def shard(self, receipt: Receipt) -> Shard:
        """A published shard, opened; raises `CorruptShardError`."""
        return self._target.shard(receipt)

    def receipt(self, unit: int) -> Receipt | None:
        """The receipt of a unit that is done; rebuilt from its shard if it was lost.

        Raises:
            CorruptShardError: the shard is not what the receipt says, or belongs elsewhere.
            PlanMismatchError: the shard was made under another plan.
        """
        found = self._found(unit)
        if found is not None:
            self.shard(found)
        return found

    def _found(self, unit: int) -> Receipt | None:
        """As `receipt`, of which the shard is not opened where it need not be rebuilt."""
        found, where = None, layout.receipt_path(unit)
        if unit < len(self._finished):
            found = self._finished[unit]
        # None: it was lost, or dropped by a job that finished the set.
        elif (data := self._target.read(where)) is not None:
            found = manifest.parse_receipt(data, where=where)
        if self._target.size(layout.shard_path(self.split, unit)) is None:
            if found is not None:
                self._target.remove(where)
            return None
        if found is not None:
            return found if not found.probes or self._has_probes(unit) else None
        # Whether it had probes is not known: labelled again, it gets those that are lost.
        return self._rebuilt(unit) if not self.plan.probes or self._has_probes(unit) else None

    def _has_probes(self, unit: int) -> bool:
        return self._target.size(layout.probes_path(self.split, unit)) is not None

    def _rebuilt(self, unit: int) -> Receipt:
        name = layout.shard_path(self.split, unit)
        with self._target.local(name, self.scratch) as file:
            shard = Shard(file, receipt=None, name=name)
            self._check_belongs(shard, unit)
            made = self._with_probes(shard.make_receipt(file, self.codec))
        return self._keep(made)

    def publish_probes(self, unit: int, write: Callable[[Path], object]) -> None:
        """Publish a unit's probes, before its shard; if they are there already, these stay.

        Args:
            write: writes them to a new file.
        """
        name = layout.probes_path(self.split, unit)
        temporary = self.scratch / f"probes-{Path(name).name}"
        with disk_errors(self._target):
            write(temporary)
            made = self._read_probes(temporary, name)
            if self._target.publish(temporary, name):
                self._probes[unit] = made

    def publish(
        self,
        records: Records,
        summary: UnitSummary,
        *,
        seconds: float | None = None,
        accelerator: str | None = None,
        encoded: pa.Table | None = None,
    ) -> Receipt:
        """Write, check and publish one unit's shard; if another worker was first, its shard stays.

        Args:
            encoded: the codec's columns of all records, in place of their labels.
            seconds: that making the records took; those of writing them are added. None: unknown.
            accelerator: where that was.

        Raises:
            InputError: the disk is full or not writable; nothing half-written remains.
            RemoteError: the store cannot be written to; nothing half-written remains.
        """
        name, began = layout.shard_path(self.split, summary.unit), time.perf_counter()
        temporary = self.scratch / Path(name).name
        with disk_errors(self._target):
            # Where the shard is there, another job published it, and may have finished the set.
            if self.is_finished and self._target.size(name) is None:
                self._unfinish()
            write(
                temporary,
                records,
                summary,
                schema=self.schema,
                codec=self.codec,
                plan_digest=self.plan_digest,
                encoded=encoded,
            )
            shard = Shard(temporary, receipt=None, name=name)
            made = self._with_probes(shard.make_receipt(temporary, self.codec))
            if made.rows != len(records) or made.positions != len(records.labels):
                raise LabelSetError(f"{name}: {made.rows} rows were read back of {len(records)}")
            if not self._target.publish(temporary, name, receipt=made):
                return self.receipt(summary.unit) or self._rebuilt(summary.unit)
            if seconds is not None:
                seconds += time.perf_counter() - began
                seconds = seconds if seconds >= 0 else None  # a clock that was set back
            how = {"seconds": seconds, "accelerator": accelerator}
            return self._keep(made.model_copy(update=how))

    def finish(self, units: int, source_rows: int | None = None) -> Manifest:
        """Check keys, write the tables and the card, and the manifest last.

        Args:
            units: how many there are; every one is published.
            source_rows: what they hold together; None where it is not known.

        Raises:
            PlanMismatchError: they hold another number of rows: ranks had different data.
            DuplicateKeyError: a stream brought a key twice; the set stays unfinished.
        """
        if (finished := self._finished_before(source_rows)) is not None:
            return finished
        self._target.look_ahead()
        with disk_errors(self._target):
            made = in_order(self._settled, range(units), workers=self._target.workers)
            tables = write_tables(
                self.scratch,
                made,
                plan=self.plan,
                key_type=self.schema.field("key").type,
                open_shard=self.shard,
            )
            self._check_rows(tables.totals.source_rows, source_rows)
            # If another job did it meanwhile, it dropped the receipts. Those that were rebuilt
            # lack what no shard has, so this table is not the one that its manifest names.
            if (finished := self._finished_before(source_rows)) is not None:
                return finished
            digests = {}
            for name in tables.names:
                digests[name] = file_sha256(self.scratch / name)
                self._target.replace(self.scratch / name, name)
            for name in sorted(self._target.files(layout.TOKENIZER), key=PurePosixPath):
                with self._target.local(name, self.scratch) as file:
                    digests[name] = file_sha256(file)
            finished = Manifest(
                format=self.plan.format,
                plan_sha256=self.plan_digest,
                totals=tables.totals,
                files=digests,
                shards_footer=tables.footer,
            )
            self._replace(layout.MANIFEST, finished.to_bytes())
        self._target.drop(layout.RECEIPTS)
        return finished

    def _finished_before(self, source_rows: int | None) -> Manifest | None:
        """The manifest, if an earlier run wrote it, or another job while this one was at work."""
        if (data := self._target.read(layout.MANIFEST)) is None:
            return None
        self._target.drop(layout.RECEIPTS)
        found = manifest.parse(data, where=f"{self.name}/{layout.MANIFEST}")
        self._check_rows(found.totals.source_rows, source_rows)
        return found

    def _check_rows(self, labelled: int, there: int | None) -> None:
        if there is not None and labelled != there:
            raise PlanMismatchError(
                f"{self.name}: its work units hold {labelled} rows, the data {there}: the data "
                "changed after another rank labelled its share. Use the data of the first run, or "
                "choose another folder"
            )

    def missing(self, units: int) -> int:
        """How many of so many units are not published."""
        self._target.look_ahead()
        found = in_order(self.receipt, range(units), workers=self._target.workers)
        return sum(receipt is None for receipt in found)

    def _settled(self, unit: int) -> Receipt:
        """A unit's receipt, when its keys are at hand: to read them next, its shard is opened."""
        found = self._found(unit) or self._rebuilt(unit)
        self._target.bring_keys(found)
        return found

    def check_no_more_than(self, units: int) -> None:
        """Refuse when there are shards that the data no longer reaches.

        Raises:
            PlanMismatchError: the data became shorter.
        """
        shard = re.compile(re.escape(f"{layout.DATA}/{self.split}-") + r"(\d+)\.parquet")
        for name in self._target.files(layout.DATA):
            found = shard.fullmatch(name)
            if found and int(found[1]) >= units:
                raise PlanMismatchError(
                    f"{self.name}: the data ends after work unit {units - 1}, but "
                    f"{PurePosixPath(name).name} is there from an earlier run: the data became "
                    "shorter. Use the data of the first run, or choose another folder"
                )

    def _check_belongs(self, shard: Shard, unit: int) -> None:
        if shard.footer("plan") != self.plan_digest:
            raise PlanMismatchError(
                f"{shard.name}: it was made under another plan than {layout.PLAN}; it does not "
                "belong to this set: move it away"
            )
        if shard.summary().unit != unit:
            raise LabelSetError(
                f"{shard.name}: it holds work unit {shard.summary().unit}; files were renamed: "
                "run `softlabels verify DIR --repair`"
            )

    def _with_probes(self, receipt: Receipt) -> Receipt:
        """The receipt with the unit's probes, which were published before its shard."""
        made = self._probes.pop(receipt.unit, None)
        if made is None and self.plan.probes and self._has_probes(receipt.unit):
            name = layout.probes_path(self.split, receipt.unit)
            with self._target.local(name, self.scratch) as file:
                made = self._read_probes(file, name)
        return receipt if made is None else receipt.model_copy(update=made)

    def _read_probes(self, file: Path, name: str) -> dict[str, Any]:
        """What a receipt says of them."""
        found = sum(map(len, probes.read(file, classes=self.plan.teacher.classes, name=name)))
        return {"probes": found, "probes_sha256": file_sha256(file)}

    def _keep(self, receipt: Receipt) -> Receipt:
        """Keep a unit's receipt, unless it has one: that stays, so that all jobs find the same."""
        name, temporary = layout.receipt_path(receipt.unit), self.scratch / uuid.uuid4().hex
        temporary.write_text(receipt.model_dump_json())
        with suppress(FileNotFoundError):  # another job finished the set and removed the folder
            if not self._target.publish(temporary, name) and (data := self._target.read(name)):
                return manifest.parse_receipt(data, where=name)
        return receipt

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.scratch / uuid.uuid4().hex
        temporary.write_bytes(data)
        self._target.replace(temporary, name)

    def _unfinish(self) -> None:
        """A finished set that lost a shard becomes an unfinished one again."""
        kept = (one for one in self._finished if self._target.size(one.path) is not None)
        for _ in in_order(self._keep, kept, workers=self._target.workers):
            pass
        self._target.remove(layout.MANIFEST)


@contextmanager
def begin(
    out: Out, plan: Plan, *, save_tokenizer: Callable[[Path], object] | None
) -> Iterator[LabelSetWriter]:
    """Begin a label set where nothing is, or go on with one of the same plan.

    Args:
        out: a folder, made if it does not exist, or the URL of a prefix of an object store.
        plan: what this run would do.
        save_tokenizer: writes the teacher's tokenizer into a folder.

    Raises:
        InputError: something else is there, or it cannot be written to.
        PlanMismatchError: it was begun with another plan.
    """
    check_directory(out)
    target = destination(out)
    with ExitStack() as stack:
        with disk_errors(target):
            scratch = stack.enter_context(target.workspace())
            if target.size(layout.PLAN) is None:
                (scratch / layout.PLAN).write_bytes(plan.to_bytes())
                target.publish(scratch / layout.PLAN, layout.PLAN)
            there = plans.parse(target.read(layout.PLAN) or b"", where=layout.PLAN)
            plans.check_same(there, plan, where=target.name)
            if save_tokenizer is not None:
                target.publish_folder(layout.TOKENIZER, save_tokenizer, scratch)
            target.look_ahead()
        yield LabelSetWriter(target, scratch)


def check_directory(out: Out) -> None:
    """Refuse a path or URL where a label set cannot be, before anything costly runs.

    Raises:
        InputError: a file, a place that holds something else, or one that cannot be written to.
    """
    target = destination(out)
    # A run killed before its plan was written leaves no more than unfinished files.
    if target.size(layout.PLAN) is None and (others := target.others()):
        raise InputError(
            f"{target.name} holds something else ({', '.join(map(quoted, others[:3]))}) and no "
            f"{layout.PLAN}; choose an empty or new folder for the label set"
        )


def check_writable(out: Out) -> None:
    """Fail now, not in three hours, where there is no room for even one row group.

    Raises:
        InputError: the disk is full or not writable, or the store is no place for a label set.
        RemoteError: the store refuses.
    """
    target = destination(out)
    with disk_errors(target), target.workspace() as scratch:
        (scratch / "probe").write_bytes(bytes(_PROBE_BYTES))
        target.check_writable(scratch)

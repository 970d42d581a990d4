"""A label set while it is being made: begun or resumed, filled unit by unit, finished once."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.errors import InputError, LabelSetError, PlanMismatchError, quoted
from softlabels.inputs.sources import check_unique
from softlabels.labelset import layout, manifest, probes, receipts
from softlabels.labelset import plan as plans
from softlabels.labelset.card import card
from softlabels.labelset.keys import KeyIndex
from softlabels.labelset.manifest import Manifest, Receipt
from softlabels.labelset.plan import Plan
from softlabels.labelset.publish import TEMPORARY, publish, publish_folder, replace, workspace
from softlabels.labelset.records import Records, schema
from softlabels.labelset.shard import Shard, UnitSummary, file_sha256, keys_of_samples, write

# What a run needs at the least: one row group of a wide selection.
_PROBE_BYTES = 16 << 20


class LabelSetWriter:
    """Writes shards into a directory; made by `begin`."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        plan_bytes = (root / layout.PLAN).read_bytes()
        # The one on disk: this run's may differ in names that are not compared.
        self.plan = plan = plans.parse(plan_bytes, where=layout.PLAN)
        self.plan_digest = plans.digest(plan_bytes)
        self.split = plan.split
        self.codec = plan.make_codec()
        token_type = pa.uint16() if plan.teacher.token_ids <= 1 << 16 else pa.uint32()
        self.schema = schema(plan.data.key_type, self.codec, token_type=token_type)
        self._finished: dict[int, Receipt] = {}
        if self.is_finished:
            found = receipts.finished(root, self.plan_digest)
            self._finished = {receipt.unit: receipt for receipt in found}
            self._drop_receipts()  # left by a run killed right after it wrote the manifest

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.root / layout.MANIFEST).is_file()

    def receipt(self, unit: int) -> Receipt | None:
        """The receipt of a unit that is done; rebuilt from its shard if it was lost.

        Raises:
            CorruptShardError: the shard is not what the receipt says, or belongs elsewhere.
            PlanMismatchError: the shard was made under another plan.
        """
        name = layout.shard_path(self.split, unit)
        shard_file, receipt_file = self.root / name, self.root / layout.receipt_path(unit)
        if not shard_file.exists():
            receipt_file.unlink(missing_ok=True)
            return None
        found = self._finished.get(unit)
        if found is None:
            where = layout.receipt_path(unit)
            with suppress(FileNotFoundError):  # lost, or dropped by a job that finished the set
                found = manifest.parse_receipt(receipt_file.read_bytes(), where=where)
        has_probes = (self.root / layout.probes_path(self.split, unit)).is_file()
        if found is not None:
            Shard(shard_file, receipt=found, name=name)
            return found if has_probes or not found.probes else None
        # Whether it had probes is not known: labelled again, it gets those that are lost.
        return self._rebuilt(unit) if has_probes or not self.plan.probes else None

    def _rebuilt(self, unit: int) -> Receipt:
        name = layout.shard_path(self.split, unit)
        shard = Shard(self.root / name, receipt=None, name=name)
        self._check_belongs(shard, unit)
        made = self._with_probes(shard.make_receipt(self.root / name, self.codec))
        self._keep(made)
        return made

    def publish_probes(self, unit: int, write: Callable[[Path], object]) -> None:
        """Publish a unit's probes, before its shard; if they are there already, these stay.

        Args:
            write: writes them to a new file.
        """
        final = self.root / layout.probes_path(self.split, unit)
        temporary = self.scratch / f"probes-{final.name}"
        with _disk_errors(self.root):
            final.parent.mkdir(exist_ok=True)
            write(temporary)
            publish(temporary, final)

    def publish(self, records: Records, summary: UnitSummary) -> Receipt:
        """Write, check and publish one unit's shard; if another worker was first, its shard stays.

        Raises:
            InputError: the disk is full or not writable; nothing half-written remains.
        """
        name = layout.shard_path(self.split, summary.unit)
        temporary, final = self.scratch / Path(name).name, self.root / name
        with _disk_errors(self.root):
            if not final.exists():  # else another job published it, and may have finished the set
                self._unfinish()
            write(
                temporary,
                records,
                summary,
                schema=self.schema,
                codec=self.codec,
                plan_digest=self.plan_digest,
            )
            shard = Shard(temporary, receipt=None, name=name)
            made = self._with_probes(shard.make_receipt(temporary, self.codec))
            if made.rows != len(records) or made.positions != len(records.labels):
                raise LabelSetError(f"{name}: {made.rows} rows were read back of {len(records)}")
            if not publish(temporary, final):
                return self.receipt(summary.unit) or self._rebuilt(summary.unit)
            self._keep(made)
        return made

    def finish(self, units: int) -> Manifest:
        """Check keys, write the tables and the card, and the manifest last.

        Args:
            units: how many there are; every one is published.

        Raises:
            DuplicateKeyError: a stream brought a key twice; the set stays unfinished.
        """
        if self.is_finished:  # by an earlier run, or by another job while this one was at work
            self._drop_receipts()
            where = self.root / layout.MANIFEST
            return manifest.parse(where.read_bytes(), where=str(where))
        shards = [self.receipt(unit) or self._rebuilt(unit) for unit in range(units)]
        if self.plan.data.key is not None:
            self._check_unique(shards)
        totals = manifest.total(shards)
        with _disk_errors(self.root):
            files = {
                layout.SHARDS: manifest.shard_table(shards),
                layout.KEYS: KeyIndex.build(self._keys(shards)).to_bytes(),
                layout.CARD: card(self.plan, totals, split=self.split).encode(),
            }
            if totals.rejects:
                files[layout.REJECTS] = self._rejects(shards)
            for name, data in files.items():
                replace(self.root / name, data, scratch=self.scratch)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            for path in sorted((self.root / layout.TOKENIZER).rglob("*")):
                if path.is_file():
                    digests[path.relative_to(self.root).as_posix()] = file_sha256(path)
            made = Manifest(
                format=self.plan.format, plan_sha256=self.plan_digest, totals=totals, files=digests
            )
            replace(self.root / layout.MANIFEST, made.to_bytes(), scratch=self.scratch)
        self._drop_receipts()
        return made

    def check_no_more_than(self, units: int) -> None:
        """Refuse when the directory holds shards that the data no longer reaches.

        Raises:
            PlanMismatchError: the data became shorter.
        """
        for path in sorted((self.root / layout.DATA).glob(f"{self.split}-*.parquet")):
            if int(path.stem.rsplit("-", 1)[1]) >= units:
                raise PlanMismatchError(
                    f"{self.root}: the data ends after work unit {units - 1}, but {path.name} is "
                    "there from an earlier run: the data became shorter. Use the data of the "
                    "first run, or choose another folder"
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
        name = layout.probes_path(self.split, receipt.unit)
        path = self.root / name
        if not self.plan.probes or not path.is_file():
            return receipt
        found = sum(map(len, probes.read(path, classes=self.plan.teacher.classes, name=name)))
        return receipt.model_copy(update={"probes": found, "probes_sha256": file_sha256(path)})

    def _keep(self, receipt: Receipt) -> None:
        data = receipt.model_dump_json().encode()
        with suppress(FileNotFoundError):  # another job finished the set and removed the folder
            replace(self.root / layout.receipt_path(receipt.unit), data, scratch=self.scratch)

    def _unfinish(self) -> None:
        """A finished set that lost a shard becomes an unfinished one again."""
        if self.is_finished:
            for receipt in self._finished.values():
                self._keep(receipt)
            (self.root / layout.MANIFEST).unlink(missing_ok=True)

    def _drop_receipts(self) -> None:
        folder = self.root / layout.RECEIPTS
        with suppress(OSError):  # another job that ends now removes them too, or writes its own
            for path in folder.glob("*.json"):
                path.unlink(missing_ok=True)
            folder.rmdir()

    def _check_unique(self, shards: list[Receipt]) -> None:
        def keys() -> Iterator[pa.Array]:
            for receipt in shards:
                shard = Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)
                yield from keys_of_samples(shard)

        rows = sum(receipt.source_rows for receipt in shards)
        check_unique(keys, rows, where=f"the stream's column {quoted(self.plan.data.key)}")

    def _keys(self, shards: list[Receipt]) -> Iterator[pa.ChunkedArray]:
        """The key of every record."""
        for receipt in shards:
            shard = Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)
            for group in range(shard.metadata.num_row_groups):
                yield shard.read(group, ["key"])["key"]

    def _rejects(self, shards: list[Receipt]) -> bytes:
        rows: list[dict[str, Any]] = []
        for receipt in shards:
            if receipt.rejects:
                shard = Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)
                rows.extend({"unit": receipt.unit, **r} for r in shard.summary().rejects)
        key = self.schema.field("key").type
        columns = pa.schema(
            [("unit", pa.int64()), ("key", key), ("part", pa.int32()), ("reason", pa.string())]
        )
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, columns), sink, write_page_checksum=True)
        return bytes(sink.getvalue())


@contextmanager
def begin(
    root: Path, plan: Plan, *, save_tokenizer: Callable[[Path], object] | None
) -> Iterator[LabelSetWriter]:
    """Begin a label set in an empty directory, or go on with one of the same plan.

    Args:
        root: made if it does not exist.
        plan: what this run would do.
        save_tokenizer: writes the teacher's tokenizer into a folder.

    Raises:
        InputError: the directory holds something else, or cannot be written to.
        PlanMismatchError: it was begun with another plan.
    """
    check_directory(root)
    with ExitStack() as stack:
        with _disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(workspace(root))
            _first_files(root, plan, scratch, save_tokenizer)
            (root / layout.DATA).mkdir(exist_ok=True)
        yield LabelSetWriter(root, scratch)


def _first_files(
    root: Path, plan: Plan, scratch: Path, save_tokenizer: Callable[[Path], object] | None
) -> None:
    """plan.json, which makes the folder a label set of that plan, then what belongs to it."""
    if not layout.is_label_set(root):
        (scratch / layout.PLAN).write_bytes(plan.to_bytes())
        publish(scratch / layout.PLAN, root / layout.PLAN)
    _check_plan(root, plan)
    if save_tokenizer is not None and not (root / layout.TOKENIZER).exists():
        (scratch / layout.TOKENIZER).mkdir()
        save_tokenizer(scratch / layout.TOKENIZER)
        publish_folder(scratch / layout.TOKENIZER, root / layout.TOKENIZER)


def _check_plan(root: Path, plan: Plan) -> None:
    data = (root / layout.PLAN).read_bytes()
    plans.check_same(plans.parse(data, where=layout.PLAN), plan, where=str(root))


def check_directory(root: Path) -> None:
    """Refuse a path where a label set cannot be, before anything costly runs.

    Raises:
        InputError: a file, or a directory that holds something else.
    """
    if root.is_dir() and not layout.is_label_set(root):
        # A run killed before its plan was written leaves only this.
        others = sorted(path.name for path in root.iterdir() if path.name != TEMPORARY)
        if others:
            raise InputError(
                f"{root} holds something else ({', '.join(map(quoted, others[:3]))}) and no "
                f"{layout.PLAN}; choose an empty or new folder for the label set"
            )
    elif root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; a label set is a folder: choose another path")


def check_writable(root: Path) -> None:
    """Fail now, not in three hours, where there is no room for even one row group.

    Raises:
        InputError: the disk is full or not writable.
    """
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with workspace(root) as scratch:
            (scratch / "probe").write_bytes(bytes(_PROBE_BYTES))


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "it is not writable",
    errno.EPERM: "it is not writable",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENOENT: "the folder cannot be made",
}


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Errors of the file system in words; what was published before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise InputError(
            f"{root}: {_DISK[error.errno]} ({error.strerror}). What is finished stays: make room "
            "or choose another folder, and run the same command again to go on"
        ) from error

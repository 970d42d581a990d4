"""LabelSet: a finished (or, when asked, unfinished) label set, opened for reading."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, LabelSetError, quoted
from softlabels.format import layout, probes, receipts
from softlabels.format import plan as plans
from softlabels.format.encoded import LABELLED, Encoded, from_table
from softlabels.format.groups import RowGroups
from softlabels.format.manifest import Receipt, Totals
from softlabels.format.plan import Plan
from softlabels.format.probes import Probes
from softlabels.format.receipts import Receipts
from softlabels.format.records import IDENTITY, Records
from softlabels.format.shard import Shard
from softlabels.inputs import tokenizer as tokenizers
from softlabels.labels import Labels
from softlabels.labelset.held import Held
from softlabels.labelset.lookup import Lookup
from softlabels.stores.partial import locate_so_far
from softlabels.stores.store import Store, locate

# Records that are decoded together for a list of them.
_TAKEN_RECORDS = 32


class LabelSet:
    """Records of a label set, by number, slice, list or key. Made by `LabelSet.open`.

    Every byte is checked against the manifest's digests when it is read. It may be read from
    several threads. Pickled, it is opened again in the other process and reads the same records,
    or fails.

    Of a set somewhere else, a row group is fetched when a record of it is wanted, into a cache
    that all processes of the machine share. It stays at the revision at which it was opened.

    Attributes:
        name: its path or URL, for messages.
        root: its folder; of a remote set, one with the plan, the manifest and the shard table.
        receipts: of its shards; one is made when it is asked for.
    """

    def __init__(
        self, store: Store, plan: Plan, shards: Sequence[Receipt], *, finished: bool
    ) -> None:
        self.root, self.plan, self.finished = store.root, plan, finished
        self.name, self._store = store.name, store
        self.receipts = shards if isinstance(shards, Receipts) else Receipts.of(shards)
        self._held = Held(store, plan, self.receipts)
        self._lookup = Lookup(store, plan, self._held, finished=finished)
        self.codec = self._held.codec

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._store, self.plan, self.receipts, self.finished)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, unfinished: bool = False) -> Self:
        """Open a label set.

        Args:
            path: its directory, or a URL: "hf://datasets/USER/NAME[@REVISION][/FOLDER]",
                "https://HOST/PATH", "s3://BUCKET/PREFIX" or any that fsspec knows. Of a remote set
                only the manifest, the plan and the shard table are fetched now.
            unfinished: also accept a set without a manifest: the records labelled so far. On the
                Hub and over HTTP a set has to be finished.

        Raises:
            LabelSetError: not a label set, or not a finished one.
            InputError: a URL that cannot be read.
            RemoteError: a remote set that cannot be reached (a LabelSetError).
            UnsupportedFormatError: of a version or with a feature that is not known here.
            CorruptShardError: a shard is missing or has another size than it should.
        """
        store = locate_so_far(path) if unfinished else locate(path)
        root = store.root
        if not layout.is_label_set(root):
            found = "there is no such folder" if not root.is_dir() else f"no {layout.PLAN} in it"
            raise LabelSetError(
                f"{root} is not a label set: {found}; make one with `softlabels precompute`"
            )
        plan_bytes = (root / layout.PLAN).read_bytes()
        plan = plans.parse(plan_bytes, where=str(root / layout.PLAN))
        finished = (root / layout.MANIFEST).is_file()
        if not finished and not unfinished:
            raise LabelSetError(
                f"{root} is unfinished: it has no {layout.MANIFEST}. Run the same `softlabels "
                "precompute` command to finish it, or open it as it is with unfinished=True"
            )
        shards: Receipts | None = None
        while not finished and shards is None:
            with suppress(FileNotFoundError):  # a receipt: another job drops them when it finishes
                shards = receipts.unfinished(root)
            finished = (root / layout.MANIFEST).is_file()
        if finished or shards is None:
            shards = receipts.finished(root, plans.digest(plan_bytes))
        labels = cls(store, plan, shards, finished=finished)
        if not store.remote:
            labels._held.check_sizes()
        return labels

    @property
    def totals(self) -> Totals:
        """Shards, records, positions, entries, bytes, rejects."""
        return self.receipts.totals

    @property
    def row_groups(self) -> RowGroups:
        """Every row group that holds records, in record order."""
        return self._held.row_groups

    @property
    def groups_in_memory(self) -> int:
        """How many row groups can be read in turn, record by record, each read only once."""
        return self._held.groups_in_memory

    @cached_property
    def identities(self) -> pa.Table:
        """key, part, view, source_start, source_length and digests of every record, in order."""
        return self.columns(IDENTITY)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of the shards, of every record, in order."""
        return self._held.columns(names)

    def __len__(self) -> int:
        return int(self.receipts.starts[-1])

    @overload
    def __getitem__(self, index: int) -> Labels: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> list[Labels]: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> Labels | list[Labels]:
        """Labels by record number: batch shape (T,) each, masked where a token has none.

        Raises:
            IndexError: there are fewer records.
            TypeError: the index is no number, slice or list of numbers.
        """
        if isinstance(index, slice):
            return self._records(np.arange(*index.indices(len(self))))
        places = self._places(index)
        if places.ndim:
            return self._records(places.ravel())
        return self._one(int(places))

    def _one(self, number: int) -> Labels:
        """A record's labels; of a row group not read yet, their columns alone are."""
        group = int(self.row_groups.of(np.asarray([number]))[0])
        row = number - int(self.row_groups.bounds[group])
        names: list[str] | None = None
        if group not in self._held:
            names = [*LABELLED, *(field.name for field in self.codec.fields)]
            for arriving in self._held.bring([group], names).values():
                arriving.result()
        encoded = self._held.encoded(group, names)
        self._held.check_whole({encoded.mapped: group})
        try:
            return Encoded.picked([(encoded, row, row + 1)]).labels()
        except CorruptShardError:
            return self.take([number]).record_labels(0)  # which says where

    def _places(self, numbers: Any) -> NDArray[np.int64]:
        """Record numbers, counted from the start."""
        given = np.asarray(numbers)
        if given.size and given.dtype.kind not in "iu":
            raise TypeError(
                f"a label set is indexed by record number, slice or list of numbers, not by "
                f"{quoted(numbers)}; by key with labels.get(key)"
            )
        beyond = (given >= len(self)) | (given < -len(self))
        if beyond.any():
            raise IndexError(f"record {given[beyond][0]}: the label set has {len(self)} records")
        places = given.astype(np.int64)
        places[places < 0] += len(self)
        return places

    def _records(self, numbers: NDArray[np.int64]) -> list[Labels]:
        """Labels of each record, in memory of its own."""
        found = []
        for start in range(0, len(numbers), _TAKEN_RECORDS):
            records = self.take(numbers[start : start + _TAKEN_RECORDS])
            for row in range(len(records)):
                found.append(records.record_labels(row).map(torch.Tensor.clone))
        return found

    def take(
        self, numbers: Sequence[int] | NDArray[np.int64], *, device: torch.device | str = "cpu"
    ) -> Records:
        """Records by number, in that order; only these are decoded, together.

        Args:
            numbers: negative ones count from the end.
            device: where the labels are wanted. Packed bytes are copied there and unpacked there.

        Raises:
            IndexError: there are fewer records.
            TypeError: these are no numbers.
            CorruptShardError: bytes are not the ones that were written.
        """
        places = self._places(numbers)
        if places.ndim != 1:
            raise TypeError(f"take() needs a list of record numbers, not {quoted(numbers)}")
        where = torch.device(device)
        if not len(places):
            return from_table(self._held.no_rows, self.codec, where)
        groups, pieces = self._held.pieces(places)
        try:
            return Encoded.picked(pieces).records(where)
        except CorruptShardError:
            for group, piece in zip(groups, pieces, strict=True):
                place = self.row_groups[group]
                with self._held.shard(place.shard).naming(place.group):
                    Encoded.picked([piece]).records()
            raise

    def prefetch(self, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Begin to fetch the row groups of these records in threads; returns at once.

        `take` waits for what is under way and fetches nothing twice. What goes wrong is raised by
        the `take` that needs it. Of a local set there is nothing to fetch.
        """
        if self._store.remote:
            self._held.bring(self.row_groups.of(self._places(numbers).ravel()).tolist())

    def get(self, key: str | int, *, part: int = 0, view: int = 0) -> Labels:
        """Labels of a record by its identity.

        Raises:
            JoinError: there is no such record.
        """
        return self[self.index(key, part=part, view=view)]

    def index(self, key: str | int, *, part: int = 0, view: int = 0) -> int:
        """The number of a record; raises `JoinError` (a KeyError) if there is none."""
        return self._lookup.index(key, part=part, view=view)

    def parts(self, key: str | int) -> list[int]:
        """The parts of a key that were labelled, ascending; empty if there is no such key."""
        return self._lookup.parts(key)

    def match(self, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The records that keys may have, by hash: each is to be confirmed by the key itself.

        Returns:
            places in `keys`, ascending, and records, ascending where places are equal.
        """
        return self._lookup.match(keys)

    def identity(self, numbers: Sequence[int] | NDArray[np.int64]) -> pa.Table:
        """key, part, view, source_start, source_length and digests of records, in that order."""
        return self._held.identity(self._places(numbers))

    @cached_property
    def rejected(self) -> frozenset[str | int]:
        """Keys of samples that were not labelled, or not whole, for a reason that is stored."""
        shards = map(self._held.shard, np.flatnonzero(self.receipts.numbers("rejects")).tolist())
        return frozenset(reject["key"] for shard in shards for reject in shard.summary().rejects)

    def probes(self) -> Iterator[Probes]:
        """Positions whose dense logits were kept, a few dozen at a time, in record order.

        Raises:
            CorruptShardError: their bytes are not the ones that were written.
        """
        for shard in np.flatnonzero(self.receipts.numbers("probes")).tolist():
            receipt, start = self.receipts[shard], int(self.receipts.starts[shard])
            name = layout.probes_path(self.plan.split, receipt.unit)
            file = self.probes_file(receipt)
            for part in probes.read(file, classes=self.plan.teacher.classes, name=name):
                yield replace(part, records=part.records + start)

    def tokenizer_folder(self) -> Path | None:
        """A local folder with the set's tokenizer as `save_pretrained` wrote it, if it has one.

        Raises:
            CorruptShardError: a file of it is not the one that was written.
        """
        return self._store.folder(layout.TOKENIZER)

    def open_shard(self, receipt: Receipt) -> Shard:
        """A shard by its receipt; raises `CorruptShardError`."""
        return self._store.shard(receipt)

    def probes_file(self, receipt: Receipt) -> Path:
        """A local file of a unit's probes, checked; raises `CorruptShardError`."""
        name = layout.probes_path(self.plan.split, receipt.unit)
        return self._store.file(name, receipt.probes_sha256)

    def to_dataset(self) -> Any:
        """The set as a `datasets.Dataset` of its columns, as `load_dataset(dir)` gives it."""
        import datasets

        # `datasets` takes names for patterns: in another folder "run?" would read "run1" too.
        files = [glob.escape(self._store.parquet(receipt)) for receipt in self.receipts]
        return datasets.load_dataset("parquet", data_files=files, split="train")

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Publish this set on the Hugging Face Hub; see `softlabels.sharing.push.push`.

        Args:
            repository: USER/NAME.
            options: `private`, `revision`, `licences`.

        Returns:
            its URL at the commit that has it, for `LabelSet.open`.
        """
        from softlabels.sharing.push import push

        return push(self, repository, **options).url

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a student's tokenizer that would give other ids.

        Raises:
            VocabularyMismatchError: saying what differs.
        """
        if self.plan.tokenizer is not None:
            messages = self.plan.preparation.kind == "messages"
            tokenizers.check_same(tokenizer, self.plan.tokenizer, messages=messages)

    def groups(self) -> Iterator[Records]:
        """Every row group, decoded, in record order."""
        return self._held.in_order()


def _reopen(
    kind: type[LabelSet], store: Store, plan: Plan, shards: Sequence[Receipt], finished: bool
) -> LabelSet:
    return kind(store, plan, shards, finished=finished)

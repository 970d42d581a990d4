"""LabelSet: a finished (or, when asked, unfinished) label set, opened for reading."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import JoinError, LabelSetError, quoted
from softlabels.inputs import tokenizer as tokenizers
from softlabels.inputs.digests import key_hashes
from softlabels.labels import SoftLabels
from softlabels.labelset import layout, manifest, receipts
from softlabels.labelset import plan as plans
from softlabels.labelset.manifest import Receipt, Totals
from softlabels.labelset.plan import Plan
from softlabels.labelset.records import IDENTITY, Records
from softlabels.labelset.shard import Shard

# Decoded row groups that stay in memory: 256 MiB serve random reading within a few shards.
_CACHE_BYTES = 256 << 20
# Each holds a file descriptor, of which a process has about a thousand.
_OPEN_SHARDS = 64
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


@dataclass(frozen=True)
class RowGroup:
    """A row group's place in the set.

    Attributes:
        shard: index into `LabelSet.receipts`.
        group: row group within the shard.
        start: number of its first record.
        rows: how many records it holds.
    """

    shard: int
    group: int
    start: int
    rows: int


class LabelSet:
    """Records of a label set, by number, slice, list or key. Made by `LabelSet.open`.

    Every byte is checked against the manifest's digests when it is read.
    """

    def __init__(
        self, root: Path, plan: Plan, shards: Sequence[Receipt], *, finished: bool
    ) -> None:
        self.root, self.plan, self.finished = root, plan, finished
        self.receipts = list(shards)
        self.codec = plan.make_codec()
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], Records] = OrderedDict()
        self._cached_bytes = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, unfinished: bool = False) -> Self:
        """Open a label set.

        Args:
            path: its directory.
            unfinished: also accept a set without a manifest: the records labelled so far.

        Raises:
            LabelSetError: not a label set, or not a finished one.
            UnsupportedFormatError: of a version or with a feature that is not known here.
            CorruptShardError: a shard is missing or has another size than it should.
        """
        root = Path(path)
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
        plan_digest = plans.digest(plan_bytes)
        shards = receipts.finished(root, plan_digest) if finished else receipts.unfinished(root)
        labels = cls(root, plan, shards, finished=finished)
        labels._check_sizes()
        return labels

    @property
    def totals(self) -> Totals:
        """Shards, records, positions, entries, bytes, rejects."""
        return manifest.total(self.receipts)

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """Every row group that holds records, in record order."""
        found, start = [], 0
        for index, receipt in enumerate(self.receipts):
            for group, rows in enumerate(receipt.group_rows):
                if rows:
                    found.append(RowGroup(index, group, start, rows))
                start += rows
        return found

    @cached_property
    def identities(self) -> pa.Table:
        """key, part, view, source_start, source_length and digests of every record, in order."""
        tables = [self._shard(group.shard).read(group.group, IDENTITY) for group in self.row_groups]
        if not tables:
            raise LabelSetError(f"{self.root} holds no records")
        return pa.concat_tables(tables).select(IDENTITY).combine_chunks()

    def __len__(self) -> int:
        return sum(receipt.rows for receipt in self.receipts)

    @overload
    def __getitem__(self, index: int) -> SoftLabels: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> list[SoftLabels]: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> SoftLabels | list[SoftLabels]:
        """Labels by record number: batch shape (T,) each, masked where a token has none."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not isinstance(index, (int, np.integer)):
            return [self[int(i)] for i in index]
        records, row = self.record(int(index))
        return records.record_labels(row)

    def record(self, index: int) -> tuple[Records, int]:
        """The decoded row group that holds a record, and its place there.

        Raises:
            IndexError: there are fewer records.
        """
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"record {index}: the label set has {len(self)} records")
        group = int(np.searchsorted(self._group_starts, number, side="right")) - 1
        return self.read_group(group), number - self.row_groups[group].start

    def read_group(self, index: int) -> Records:
        """A row group decoded, checked, and kept for a while.

        Raises:
            CorruptShardError: its bytes are not the ones that were written.
        """
        group = self.row_groups[index]
        place = (group.shard, group.group)
        if place in self._cache:
            self._cache.move_to_end(place)
            return self._cache[place]
        records = self._shard(group.shard).records(group.group, self.codec)
        self._cache[place] = records
        self._cached_bytes += _size(records)
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _size(dropped)
        return records

    def get(self, key: str | int, *, part: int = 0, view: int = 0) -> SoftLabels:
        """Labels of a record by its identity.

        Raises:
            JoinError: there is no such record.
        """
        return self[self.index(key, part=part, view=view)]

    def index(self, key: str | int, *, part: int = 0, view: int = 0) -> int:
        """The number of a record; raises `JoinError` (a KeyError) if there is none."""
        for number in self._numbers(key):
            row = self.identities.slice(number, 1)
            if row["part"][0].as_py() == part and row["view"][0].as_py() == view:
                return number
        raise JoinError(
            f"no record with key {quoted(key)}, part {part}, view {view} in {self.root}; keys are "
            f"{self.plan.data.key_type}, the first is {quoted(self.identities['key'][0].as_py())}"
        )

    def parts(self, key: str | int) -> list[int]:
        """The parts of a key that were labelled, ascending; empty if there is no such key."""
        found = {self.identities["part"][number].as_py() for number in self._numbers(key)}
        return sorted(found)

    def to_dataset(self) -> Any:
        """The set as a `datasets.Dataset` of its columns, as `load_dataset(dir)` gives it."""
        import datasets

        files = [str(self.root / receipt.path) for receipt in self.receipts]
        return datasets.load_dataset("parquet", data_files=files, split="train")

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
        return (self.read_group(index) for index in range(len(self.row_groups)))

    def _numbers(self, key: str | int) -> Iterator[int]:
        wanted = str if self.plan.data.key_type == "string" else int
        if not isinstance(key, wanted):
            raise JoinError(
                f"key {quoted(key)} is a {type(key).__name__}; keys of this set are "
                f"{self.plan.data.key_type}"
            )
        hashes, order = self._key_index
        value = key_hashes(pa.array([key], self.identities["key"].type))[0]
        first, last = (int(np.searchsorted(hashes, value, side=side)) for side in _SIDES)
        for number in sorted(order[first:last].tolist()):
            if self.identities["key"][number].as_py() == key:
                yield number

    @cached_property
    def _key_index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        hashes = key_hashes(self.identities["key"])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    @cached_property
    def _group_starts(self) -> NDArray[np.int64]:
        return np.asarray([group.start for group in self.row_groups], np.int64)

    def _shard(self, index: int) -> Shard:
        if index in self._shards:
            self._shards.move_to_end(index)
            return self._shards[index]
        receipt = self.receipts[index]
        shard = Shard(self.root / receipt.path, receipt=receipt, name=receipt.path)
        self._shards[index] = shard
        if len(self._shards) > _OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard

    def _check_sizes(self) -> None:
        """Missing and cut files are found at open, before an hour of training."""
        for index, receipt in enumerate(self.receipts):
            path = self.root / receipt.path
            if not path.is_file() or path.stat().st_size != receipt.bytes:
                self._shard(index)


def _size(records: Records) -> int:
    labels = records.labels
    return 12 * labels.ids.numel() + 24 * len(labels) + 9 * len(records.wanted)

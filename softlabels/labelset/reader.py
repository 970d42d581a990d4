"""LabelSet: a finished (or, when asked, unfinished) label set, opened for reading."""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import JoinError, LabelSetError, quoted
from softlabels.inputs import tokenizer as tokenizers
from softlabels.inputs.digests import key_hashes
from softlabels.labels import SoftLabels
from softlabels.labelset import layout, manifest, receipts
from softlabels.labelset import plan as plans
from softlabels.labelset.manifest import Receipt, Totals
from softlabels.labelset.plan import Plan
from softlabels.labelset.records import IDENTITY, Records, schema
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

    Every byte is checked against the manifest's digests when it is read. Pickled, it is opened
    again in the other process and reads the same records, or fails.
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

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.root.absolute(), self.plan, self.receipts, self.finished)

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
        root = Path(path).absolute()
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

    @property
    def groups_in_memory(self) -> int:
        """How many row groups can be read in turn, record by record, each decoded only once."""
        largest = max(
            (
                max(receipt.group_rows) * _bytes(receipt.entries, receipt.positions) // receipt.rows
                for receipt in self.receipts
                if receipt.rows
            ),
            default=0,
        )
        # An eighth is left for row groups whose records are longer than their shard's average.
        return max(1, (_CACHE_BYTES - _CACHE_BYTES // 8) // max(1, largest))

    @cached_property
    def identities(self) -> pa.Table:
        """key, part, view, source_start, source_length and digests of every record, in order."""
        columns = schema(self.plan.data.key_type, self.codec, token_type=pa.uint32())
        none = pa.schema([columns.field(name) for name in IDENTITY]).empty_table()
        tables = [self._shard(group.shard).read(group.group, IDENTITY) for group in self.row_groups]
        return pa.concat_tables(tables or [none]).select(IDENTITY).combine_chunks()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> SoftLabels: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> list[SoftLabels]: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> SoftLabels | list[SoftLabels]:
        """Labels by record number: batch shape (T,) each, masked where a token has none.

        Raises:
            IndexError: there are fewer records.
            TypeError: the index is no number, slice or list of numbers.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        numbers = np.asarray(index)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(
                f"a label set is indexed by record number, slice or list of numbers, not by "
                f"{quoted(index)}; by key with labels.get(key)"
            )
        if numbers.ndim:
            return [self[i] for i in numbers.tolist()]
        records, row = self.record(int(numbers))
        # A copy: a change to it must not reach the cache, nor its life keep a row group's.
        return records.record_labels(row).map(torch.Tensor.clone)

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
        if self.parts(key):
            raise JoinError(
                f"key {quoted(key)} has no record of part {part}, view {view} in {self.root}; its "
                f"labelled parts are {', '.join(map(str, self.parts(key)))}"
            )
        first = self.identities["key"].slice(0, 1).to_pylist()
        raise JoinError(
            f"no record with key {quoted(key)} in {self.root}; keys are "
            f"{self.plan.data.key_type}, the first is {quoted(first[0]) if first else 'missing'}"
        )

    def parts(self, key: str | int) -> list[int]:
        """The parts of a key that were labelled, ascending; empty if there is no such key."""
        found = {self.identities["part"][number].as_py() for number in self._numbers(key)}
        return sorted(found)

    def to_dataset(self) -> Any:
        """The set as a `datasets.Dataset` of its columns, as `load_dataset(dir)` gives it."""
        import datasets

        # `datasets` takes names for patterns: in another folder "run?" would read "run1" too.
        root = glob.escape(str(self.root))
        files = [f"{root}/{receipt.path}" for receipt in self.receipts]
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
        wanted = str if self.plan.data.key_type == "string" else (int, np.integer)
        if not isinstance(key, wanted):
            raise JoinError(
                f"key {quoted(key)} is a {type(key).__name__}; keys of this set are "
                f"{self.plan.data.key_type}"
            )
        hashes, order = self._key_index
        try:
            value = key_hashes(pa.array([key], self.identities["key"].type))[0]
        except (OverflowError, UnicodeEncodeError):
            return  # beyond int64, or half a surrogate pair: no record can have it
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
    def _length(self) -> int:
        return sum(receipt.rows for receipt in self.receipts)

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
    return _bytes(records.labels.ids.numel(), len(records.labels))


def _bytes(entries: int, positions: int) -> int:
    """Decoded: an id and a log-prob an entry; the scalars of a position and its token."""
    return 12 * entries + 33 * positions


def _reopen(
    kind: type[LabelSet], root: Path, plan: Plan, shards: Sequence[Receipt], finished: bool
) -> LabelSet:
    return kind(root, plan, shards, finished=finished)

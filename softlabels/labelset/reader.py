"""LabelSet: a finished (or, when asked, unfinished) label set, opened for reading."""

from __future__ import annotations

import glob
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, JoinError, LabelSetError, quoted
from softlabels.format import layout, probes, receipts
from softlabels.format import plan as plans
from softlabels.format.encoded import LABELLED, Encoded, from_table
from softlabels.format.groups import RowGroup, RowGroups
from softlabels.format.keys import KeyIndex
from softlabels.format.manifest import Receipt, Totals
from softlabels.format.mapped import Mapped
from softlabels.format.plan import Plan
from softlabels.format.probes import Probes
from softlabels.format.receipts import Receipts
from softlabels.format.records import IDENTITY, Records, schema
from softlabels.format.shard import Shard
from softlabels.inputs import tokenizer as tokenizers
from softlabels.inputs.digests import key_hashes
from softlabels.labels import Labels
from softlabels.stores.partial import locate_so_far
from softlabels.stores.store import Store, in_flight, locate

# Row groups, still encoded, that stay in memory: 256 MiB serve random reading within many shards.
_CACHE_BYTES = 256 << 20
# Each holds its footer, of which each byte takes 16 when it is parsed: those of large shards have a
# third of a megabyte.
_OPEN_SHARDS, _OPEN_FOOTER_BYTES = 64, 4 << 20
# Records that are decoded together for a list of them.
_TAKEN_RECORDS = 32
# Row groups of a remote set that are under way while one is used in a pass over all of them.
_AHEAD = 8
_sets: weakref.WeakSet[LabelSet] = weakref.WeakSet()


class LabelSet:
    """Records of a label set, by number, slice, list or key. Made by `LabelSet.open`.

    Every byte is checked against the manifest's digests when it is read. It may be read from
    several threads. Pickled, it is opened
    again in the other process and reads the same records, or fails.

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
        self.codec = plan.make_codec()
        self._forget()
        _sets.add(self)

    def _forget(self) -> None:
        """What is open and held; in a forked process, another thread's lock would stay locked."""
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._cache: OrderedDict[int, Encoded] = OrderedDict()
        self._cached_bytes = 0
        # Records are unpacked in parallel, and looked up one after another.
        self._lock = threading.RLock()
        self._opening: dict[int, threading.Lock] = {}
        self.receipts.forget()

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
            labels._check_sizes()
        return labels

    @property
    def totals(self) -> Totals:
        """Shards, records, positions, entries, bytes, rejects."""
        return self.receipts.totals

    @cached_property
    def row_groups(self) -> RowGroups:
        """Every row group that holds records, in record order."""
        return RowGroups(*self.receipts.groups())

    @property
    def groups_in_memory(self) -> int:
        """How many row groups can be read in turn, record by record, each read only once."""
        rows, counts = self.receipts.groups()
        records = self.receipts.numbers("rows")
        held = np.flatnonzero(records)
        largest = 0.0
        if len(held):
            # Some row group of each of these shards holds records, so none has no row group.
            most = np.maximum.reduceat(rows, (np.cumsum(counts) - counts)[held])
            largest = float((most * (self._encoded_bytes()[held] / records[held])).max())
        # An eighth is left for row groups whose records are longer than their shard's average.
        return max(1, int((_CACHE_BYTES - _CACHE_BYTES // 8) // max(1.0, largest)))

    def _encoded_bytes(self) -> NDArray[np.int64]:
        """Every shard in memory, still encoded: as it lies on disk, or as flat lists."""
        if self.codec.packed_columns:
            return self.receipts.numbers("bytes")
        return 8 * self.receipts.numbers("entries") + 33 * self.receipts.numbers("positions")

    @cached_property
    def identities(self) -> pa.Table:
        """key, part, view, source_start, source_length and digests of every record, in order."""
        return self.columns(IDENTITY)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of the shards, of every record, in order."""
        arriving = self._bring(range(len(self.row_groups)), names)
        tables = []
        for index, group in enumerate(self.row_groups):
            if index in arriving:
                arriving.pop(index).result()
            # One after another: to hand a short column to a thread takes longer than to read it.
            tables.append(self._shard(group.shard).read(group.group, names, threads=False))
        none = self._no_rows.select(names)
        return pa.concat_tables(tables or [none]).select(names).combine_chunks()

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
        group = int(self._groups_of(np.asarray([number]))[0])
        row = number - int(self.row_groups.bounds[group])
        names: list[str] | None = None
        if group not in self._cache:
            names = [*LABELLED, *(field.name for field in self.codec.fields)]
            for arriving in self._bring([group], names).values():
                arriving.result()
        held = self._encoded(group, names)
        self._check_whole({held.mapped: group})
        try:
            return Encoded.picked([(held, row, row + 1)]).labels()
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
            return from_table(self._no_rows, self.codec, where)
        groups, pieces = self._pieces(places)
        try:
            return Encoded.picked(pieces).records(where)
        except CorruptShardError:
            for group, piece in zip(groups, pieces, strict=True):
                place = self.row_groups[group]
                with self._shard(place.shard).naming(place.group):
                    Encoded.picked([piece]).records()
            raise

    def prefetch(self, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Begin to fetch the row groups of these records in threads; returns at once.

        `take` waits for what is under way and fetches nothing twice. What goes wrong is raised by
        the `take` that needs it. Of a local set there is nothing to fetch.
        """
        if self._store.remote:
            self._bring(self._groups_of(self._places(numbers).ravel()).tolist())

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

    def _bring(
        self, groups: Iterable[int], names: Sequence[str] | None = None
    ) -> dict[int, Future[None]]:
        """Begin to fetch columns of row groups (all of the format's by default), if need be."""
        arriving: dict[int, Future[None]] = {}
        if not self._store.remote:
            return arriving
        for group in dict.fromkeys(groups):
            if names is None and group in self._cache:
                continue
            place = self.row_groups[group]
            shard = self._shards.get(place.shard)
            columns = names or self._columns
            if shard is None or shard.dropped or not shard.is_here(place.group, columns):
                digest = self.receipts[place.shard].sha256
                key = (self.name, digest, place.group, tuple(columns))
                arriving[group] = in_flight.start(key, partial(self._fetch, place, columns))
        return arriving

    def _fetch(self, place: RowGroup, columns: Sequence[str]) -> None:
        self._shard(place.shard).fetch(place.group, columns)

    @cached_property
    def _columns(self) -> list[str]:
        return list(self._no_rows.column_names)

    def _groups_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.row_groups.of(places)

    def _pieces(
        self, places: NDArray[np.int64]
    ) -> tuple[list[int], list[tuple[Encoded, int, int]]]:
        """Row groups of these records, and where there: a piece for each run of neighbours."""
        groups = self._groups_of(places)
        rows = (places - self.row_groups.bounds[groups]).tolist()
        runs: list[list[int]] = []
        # Not by NumPy, whose calls cost more than a batch's few records.
        for group, row in zip(groups.tolist(), rows, strict=True):
            if runs and runs[-1][0] == group and runs[-1][2] == row:
                runs[-1][2] += 1
            else:
                runs.append([group, row, row + 1])
        groups_held = [group for group, _, _ in runs]
        arriving = self._bring(groups_held)
        pieces: list[tuple[Encoded, int, int]] = []
        files: dict[Mapped | None, int] = {}
        for group, first, stop in runs:
            if group in arriving:
                arriving.pop(group).result()
            held = self._encoded(group)
            files[held.mapped] = group
            pieces.append((held, first, stop))
        self._check_whole(files)
        return groups_held, pieces

    def _check_whole(self, files: Mapping[Mapped | None, int]) -> None:
        """Refuse files that were cut while they are mapped, each named by a row group in it."""
        for mapped, group in files.items():
            if mapped is not None and mapped.cut_to is not None:
                self._shard(self.row_groups[group].shard).check_whole()

    def _encoded(self, group: int, names: Sequence[str] | None = None) -> Encoded:
        """A row group, kept for a while.

        Args:
            names: only these columns; all of the format's by default.
        """
        kept = group if names is None else ~group
        with self._lock:
            held = self._cache.get(kept)
            if held is not None:
                self._cache.move_to_end(kept)
        if held is not None:
            return held
        place = self.row_groups[group]
        # Not under the lock: to open a shard may take a request.
        shard = self._shard(place.shard)
        with self._lock:
            if kept in self._cache:
                return self._cache[kept]
            encoded = shard.encoded(place.group, self.codec, names)
            self._cache[kept] = encoded
            self._cached_bytes += encoded.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes
            return encoded

    def get(self, key: str | int, *, part: int = 0, view: int = 0) -> Labels:
        """Labels of a record by its identity.

        Raises:
            JoinError: there is no such record.
        """
        return self[self.index(key, part=part, view=view)]

    def index(self, key: str | int, *, part: int = 0, view: int = 0) -> int:
        """The number of a record; raises `JoinError` (a KeyError) if there is none."""
        for number, row in self._rows(key):
            if row["part"] == part and row["view"] == view:
                return number
        _ = self._keys_checked
        if self.parts(key):
            raise JoinError(
                f"key {quoted(key)} has no record of part {part}, view {view} in {self.name}; it "
                f"has {self._places_of(key)}"
            )
        first = [row["key"] for row in self._identity(0)] if len(self) else []
        raise JoinError(
            f"no record with key {quoted(key)} in {self.name}; keys are "
            f"{self.plan.data.key_type}, the first is {quoted(first[0]) if first else 'missing'}"
        )

    def _places_of(self, key: str | int) -> str:
        """The parts, or views, of a key, in words."""
        rows = [row for _, row in self._rows(key)]
        views = sorted({row["view"] for row in rows})
        if self.plan.views is not None:
            return f"views {', '.join(map(str, views))}"
        return f"parts {', '.join(map(str, self.parts(key)))}"

    def parts(self, key: str | int) -> list[int]:
        """The parts of a key that were labelled, ascending; empty if there is no such key."""
        # That there is no other part is proven only by an index that is whole.
        _ = self._keys_checked
        return sorted({row["part"] for _, row in self._rows(key)})

    @cached_property
    def rejected(self) -> frozenset[str | int]:
        """Keys of samples that were not labelled, or not whole, for a reason that is stored."""
        shards = map(self._shard, np.flatnonzero(self.receipts.numbers("rejects")).tolist())
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
        for index, group in enumerate(self.row_groups):
            arriving = self._bring(range(index, min(index + _AHEAD, len(self.row_groups))))
            if index in arriving:
                arriving[index].result()
            yield self._shard(group.shard).records(group.group, self.codec)

    def _rows(self, key: str | int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number, key, part and view of each record that has a key."""
        key_type = self.plan.data.key_type
        wanted = str if key_type == "string" else (int, np.integer)
        if not isinstance(key, wanted) or isinstance(key, bool):
            raise JoinError(
                f"key {quoted(key)} is a {type(key).__name__}; keys of this set are {key_type}"
            )
        try:
            value = pa.array([key], pa.string() if key_type == "string" else pa.int64())
            candidates = self.key_index.candidates(value)
        except (OverflowError, UnicodeEncodeError):
            return  # beyond int64, or half a surrogate pair: no record can have it
        # A number that no record has is a miss, which the index as a whole must account for.
        for number in (number for number in candidates if number < len(self)):
            for row in self._identity(number):
                if row["key"] == key:
                    yield number, row

    def match(self, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The records that keys may have, by hash: each is to be confirmed by the key itself.

        Returns:
            places in `keys`, ascending, and records, ascending where places are equal.
        """
        places, records = self.key_index.match(key_hashes(keys))
        known = (records >= 0) & (records < len(self))
        if not known.all() or len(np.unique(places)) < len(keys):
            _ = self._keys_checked
        return places[known], records[known]

    def identity(self, numbers: Sequence[int] | NDArray[np.int64]) -> pa.Table:
        """key, part, view, source_start, source_length and digests of records, in that order."""
        _, pieces = self._pieces(self._places(numbers))
        found = [held.identity.slice(start, stop - start) for held, start, stop in pieces]
        table = pa.Table.from_batches(found) if found else self._no_rows
        return table.select(IDENTITY)

    def _identity(self, number: int) -> list[dict[str, Any]]:
        """Key, part and view of one record."""
        rows: list[dict[str, Any]] = self.identity([number]).to_pylist()
        return rows

    @cached_property
    def key_index(self) -> KeyIndex:
        """From keys to the records that may have them; memory-mapped where the set is finished."""
        path = self._store.find(layout.KEYS) if self.finished else None
        if path is not None and path.stat().st_size == 16 * len(self):
            return KeyIndex.map(path)
        return KeyIndex.build([self.identities["key"]])

    @cached_property
    def _keys_checked(self) -> bool:
        """A hit is proven by the key itself; a miss only by an index that is whole."""
        if self.finished:
            self._store.check_keys()
        return True

    @property
    def _no_rows(self) -> pa.Table:
        plan, views = self.plan, self.plan.views is not None
        columns = schema(plan.data.key_type, self.codec, token_type=pa.uint32(), views=views)
        return columns.empty_table()

    def _shard(self, index: int) -> Shard:
        with self._lock:
            if shard := self._open(index):
                return shard
            opening = self._opening.setdefault(index, threading.Lock())
        with opening:
            # A footer is fetched once, and readers of other shards do not wait for it.
            with self._lock:
                if shard := self._open(index):
                    return shard
            shard = self._store.shard(self.receipts[index])
            self._check_keys_of(shard)
            with self._lock:
                self._shards[index] = shard
                self._shards.move_to_end(index)
                self._opening.pop(index, None)
                while self._too_many_open():
                    self._shards.popitem(last=False)
            return shard

    def _too_many_open(self) -> bool:
        held = [shard.receipt.footer_bytes for shard in self._shards.values() if shard.receipt]
        many = len(held) > _OPEN_SHARDS or sum(held) > _OPEN_FOOTER_BYTES
        return many and len(held) > 1

    def _check_keys_of(self, shard: Shard) -> None:
        wanted = pa.string() if self.plan.data.key_type == "string" else pa.int64()
        at = shard.schema.get_field_index("key")
        if at < 0 or shard.schema.field(at).type != wanted:
            raise CorruptShardError(
                f"{shard.name}: its keys are not {wanted}, as the plan says; run `softlabels "
                "verify DIR --repair`, then the same `softlabels precompute` command"
            )

    def _open(self, index: int) -> Shard | None:
        shard = self._shards.get(index)
        if shard is None or shard.dropped:
            return None
        self._shards.move_to_end(index)
        return shard

    def _check_sizes(self) -> None:
        """Missing and cut files are found at open, before an hour of training."""
        root, listed = str(self.root), set[str]()
        for index, (path, size) in enumerate(self.receipts.sizes()):
            # Over a network, to list a folder brings the sizes of many of its files in one answer.
            if (folder := path.rpartition("/")[0]) not in listed:
                listed.add(folder)
                _list(f"{root}/{folder}")
            if _size(f"{root}/{path}") != size:
                self._shard(index)


def _list(folder: str) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for _ in entries:
            pass


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _reopen(
    kind: type[LabelSet], store: Store, plan: Plan, shards: Sequence[Receipt], finished: bool
) -> LabelSet:
    return kind(store, plan, shards, finished=finished)


def _forget_all() -> None:
    for labels in list(_sets):
        labels._forget()


os.register_at_fork(after_in_child=_forget_all)

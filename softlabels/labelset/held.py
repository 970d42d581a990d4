"""What of a label set is open and in memory: its shards, and row groups that are still encoded."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from itertools import compress, count

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError
from softlabels.format.encoded import Encoded
from softlabels.format.groups import RowGroup, RowGroups
from softlabels.format.mapped import Mapped
from softlabels.format.plan import Plan
from softlabels.format.receipts import Receipts
from softlabels.format.records import IDENTITY, Records, schema
from softlabels.format.shard import Shard
from softlabels.stores.store import Store, in_flight

# Row groups, still encoded, that stay in memory: 256 MiB serve random reading within many shards.
_CACHE_BYTES = 256 << 20
# Each holds its footer, of which each byte takes 16 when it is parsed: those of large shards have a
# third of a megabyte.
_OPEN_SHARDS, _OPEN_FOOTER_BYTES = 64, 4 << 20
# Row groups of a remote set that are under way while one is used in a pass over all of them.
_AHEAD = 8
_held: weakref.WeakSet[Held] = weakref.WeakSet()


class Held:
    """Shards and row groups of one set, by number: opened, fetched and checked when asked for.

    It may be read from several threads. After a fork the other process begins with nothing.
    """

    def __init__(self, store: Store, plan: Plan, receipts: Receipts) -> None:
        self._store, self._plan, self._receipts = store, plan, receipts
        self.codec = plan.make_codec()
        self._forget()
        _held.add(self)

    def _forget(self) -> None:
        """In a forked process, another thread's lock would stay locked."""
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._cache: OrderedDict[int, Encoded] = OrderedDict()
        self._cached_bytes = 0
        # Records are unpacked in parallel, and looked up one after another.
        self._lock = threading.RLock()
        self._opening: dict[int, threading.Lock] = {}
        self._receipts.forget()

    @cached_property
    def row_groups(self) -> RowGroups:
        """Every row group that holds records, in record order."""
        return RowGroups(*self._receipts.groups())

    @property
    def groups_in_memory(self) -> int:
        """How many row groups can be read in turn, record by record, each read only once."""
        rows, counts = self._receipts.groups()
        records = self._receipts.numbers("rows")
        filled = np.flatnonzero(records)
        largest = 0.0
        if len(filled):
            # Some row group of each of these shards holds records, so none has no row group.
            most = np.maximum.reduceat(rows, (np.cumsum(counts) - counts)[filled])
            largest = float((most * (self._encoded_bytes()[filled] / records[filled])).max())
        # An eighth is left for row groups whose records are longer than their shard's average.
        return max(1, int((_CACHE_BYTES - _CACHE_BYTES // 8) // max(1.0, largest)))

    def _encoded_bytes(self) -> NDArray[np.int64]:
        """Every shard in memory, still encoded: as it lies on disk, or as flat lists."""
        if self.codec.packed_columns:
            return self._receipts.numbers("bytes")
        return 8 * self._receipts.numbers("entries") + 33 * self._receipts.numbers("positions")

    @property
    def no_rows(self) -> pa.Table:
        """A table of the format's columns without a record."""
        plan, views = self._plan, self._plan.views is not None
        columns = schema(plan.data.key_type, self.codec, token_type=pa.uint32(), views=views)
        return columns.empty_table()

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of the shards, of every record, in order; raises `CorruptShardError`."""
        arriving = self.bring(range(len(self.row_groups)), names)
        tables = []
        for index, group in enumerate(self.row_groups):
            if index in arriving:
                arriving.pop(index).result()
            # One after another: to hand a short column to a thread takes longer than to read it.
            tables.append(self.shard(group.shard).read(group.group, names, threads=False))
        none = self.no_rows.select(names)
        return pa.concat_tables(tables or [none]).select(names).combine_chunks()

    def identity(self, records: NDArray[np.int64]) -> pa.Table:
        """key, part, view, source_start, source_length and digests of records, in that order."""
        _, pieces = self.pieces(records)
        found = [group.identity.slice(start, stop - start) for group, start, stop in pieces]
        table = pa.Table.from_batches(found) if found else self.no_rows
        return table.select(IDENTITY)

    def in_order(self) -> Iterator[Records]:
        """Every row group, decoded, in record order, and none of them kept."""
        for index, group in enumerate(self.row_groups):
            arriving = self.bring(range(index, min(index + _AHEAD, len(self.row_groups))))
            if index in arriving:
                arriving[index].result()
            yield self.shard(group.shard).records(group.group, self.codec)

    def bring(
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
                digest = self._receipts[place.shard].sha256
                key = (self._store.name, digest, place.group, tuple(columns))
                arriving[group] = in_flight.start(key, partial(self._fetch, place, columns))
        return arriving

    def _fetch(self, place: RowGroup, columns: Sequence[str]) -> None:
        self.shard(place.shard).fetch(place.group, columns)

    @cached_property
    def _columns(self) -> list[str]:
        return list(self.no_rows.column_names)

    def pieces(
        self, records: NDArray[np.int64]
    ) -> tuple[list[int], list[tuple[Encoded, int, int]]]:
        """Row groups of these records, and where there: a piece for each run of neighbours."""
        groups = self.row_groups.of(records)
        rows = (records - self.row_groups.bounds[groups]).tolist()
        runs: list[list[int]] = []
        # Not by NumPy, whose calls cost more than a batch's few records.
        for group, row in zip(groups.tolist(), rows, strict=True):
            if runs and runs[-1][0] == group and runs[-1][2] == row:
                runs[-1][2] += 1
            else:
                runs.append([group, row, row + 1])
        groups_of_runs = [group for group, _, _ in runs]
        arriving = self.bring(groups_of_runs)
        pieces: list[tuple[Encoded, int, int]] = []
        files: dict[Mapped | None, int] = {}
        for group, first, stop in runs:
            if group in arriving:
                arriving.pop(group).result()
            encoded = self.encoded(group)
            files[encoded.mapped] = group
            pieces.append((encoded, first, stop))
        self.check_whole(files)
        return groups_of_runs, pieces

    def check_whole(self, files: Mapping[Mapped | None, int]) -> None:
        """Refuse files that were cut while they are mapped, each named by a row group in it."""
        for mapped, group in files.items():
            if mapped is not None and mapped.cut_to is not None:
                self.shard(self.row_groups[group].shard).check_whole()

    def __contains__(self, group: int) -> bool:
        """Whether a row group is in memory."""
        return group in self._cache

    def encoded(self, group: int, names: Sequence[str] | None = None) -> Encoded:
        """A row group, kept for a while.

        Args:
            names: only these columns; all of the format's by default.

        Raises:
            CorruptShardError: its bytes are not the ones that were written.
        """
        kept = group if names is None else ~group
        with self._lock:
            found = self._cache.get(kept)
            if found is not None:
                self._cache.move_to_end(kept)
        if found is not None:
            return found
        place = self.row_groups[group]
        # Not under the lock: to open a shard may take a request.
        shard = self.shard(place.shard)
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

    def shard(self, index: int) -> Shard:
        """A shard by number, kept open for a while; raises `CorruptShardError`."""
        with self._lock:
            if shard := self._open(index):
                return shard
            opening = self._opening.setdefault(index, threading.Lock())
        with opening:
            # A footer is fetched once, and readers of other shards do not wait for it.
            with self._lock:
                if shard := self._open(index):
                    return shard
            shard = self._store.shard(self._receipts[index])
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
        wanted = pa.string() if self._plan.data.key_type == "string" else pa.int64()
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

    def check_sizes(self) -> None:
        """Missing and cut files of a local set are found at open, before an hour of training."""
        root, listed, first = f"{self._store.root}/", set[str](), 0
        for paths, sizes in self._receipts.sizes():
            # Over a network, to list a folder brings the sizes of many of its files in one answer.
            for folder in {path.rpartition("/")[0] for path in (paths[0], paths[-1])} - listed:
                listed.add(folder)
                _list(root + folder)
            found = _sizes([root + path for path in paths])
            if found != sizes:
                wrong = (was != is_ for was, is_ in zip(sizes, found, strict=True))
                for index in compress(count(first), wrong):
                    self.shard(index)
            first += len(paths)


def _list(folder: str) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for _ in entries:
            pass


def _sizes(paths: list[str]) -> list[int | None]:
    """Bytes of files; None of one that is not there."""
    try:
        return [found.st_size for found in map(os.stat, paths)]
    except OSError:
        return [_size(path) for path in paths]


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _forget_all() -> None:
    for held in list(_held):
        held._forget()


os.register_at_fork(after_in_child=_forget_all)

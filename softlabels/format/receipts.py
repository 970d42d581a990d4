"""Where receipts are found: in the shard table of a finished set, else one file a unit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from softlabels.arrow import numpy_of
from softlabels.errors import CorruptShardError, LabelSetError
from softlabels.format import layout, manifest
from softlabels.format.digested import DigestedTable, Footer
from softlabels.format.manifest import Receipt, Totals
from softlabels.format.plan import first_problem
from softlabels.format.shard import file_sha256

# Of the table, that are made receipts of at a time.
_ROWS = 64
# Of the table, whose paths are texts at a time.
_PATHS = 4096


class Receipts(Sequence[Receipt]):
    """The receipts of a set's shards, in order: a column of all, or one by one when asked for.

    What is long (`group_rows`, `chunk_digests`) is read with the receipt that it belongs to. It may
    be read from several threads; pickled, it is the same receipts or fails.

    Args:
        table: shards.parquet.

    Raises:
        LabelSetError: a path leads out of the set, or a count is none.
    """

    def __init__(self, table: DigestedTable) -> None:
        self._table = table
        self._columns: dict[str, NDArray[np.int64]] = {}
        self._check_paths()
        self.starts: NDArray[np.int64] = np.append(0, np.cumsum(self.numbers("rows")))

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Receipts:
        """Of shards.parquet, whose bytes were checked as a whole; raises `LabelSetError`."""
        return cls(DigestedTable(data, where=where, footer=None))

    @classmethod
    def of(cls, found: Iterable[Receipt]) -> Receipts:
        """Receipts that are in no table yet."""
        return cls(DigestedTable(manifest.shard_table(found), where="receipts", footer=None))

    def __reduce__(self) -> tuple[Any, ...]:
        return Receipts, (self._table,)

    def forget(self) -> None:
        """In a forked process, another thread's lock would stay locked."""
        self._table.forget()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | list[Receipt]:
        """By place; raises `CorruptShardError` or `LabelSetError` if it is not a whole receipt."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"receipt {index} of {len(self)}")
        place = index % len(self)
        group = int(np.searchsorted(self._table.ends, place, side="right"))
        start = int(self._table.ends[group - 1]) if group else 0
        (row,) = self._table.group(group).slice(place - start, 1).to_pylist()
        return self._parsed(row)

    def __iter__(self) -> Iterator[Receipt]:
        for group in range(self._table.metadata.num_row_groups):
            for batch in self._table.group(group).to_batches(max_chunksize=_ROWS):
                yield from map(self._parsed, batch.to_pylist())

    def _parsed(self, row: dict[str, Any]) -> Receipt:
        try:
            return manifest.parse_row(row)
        except ValidationError as error:
            raise LabelSetError(f"{self._table.where}: {first_problem(error)}") from None

    def numbers(self, name: str) -> NDArray[np.int64]:
        """A count of every shard, such as `rows` or `bytes`, (shards,) int64.

        Raises:
            CorruptShardError: the column is not the one that was written.
            LabelSetError: it holds something else than counts.
        """
        if name not in self._columns:
            self._columns[name] = self._read_numbers(name)
        return self._columns[name]

    def texts(self, name: str) -> list[str]:
        """A text of every shard, such as `path` or `sha256`; raises as `numbers`."""
        found: list[str] = self._column(name).to_pylist()
        return found

    def sizes(self) -> Iterator[tuple[list[str], list[int]]]:
        """Paths and bytes of all shards, some at a time: all would take 150 bytes a shard."""
        paths, sizes = self._column("path"), self.numbers("bytes")
        for start in range(0, len(self), _PATHS):
            some = slice(start, start + _PATHS)
            yield paths[some].to_pylist(), sizes[some].tolist()

    def seconds(self) -> NDArray[np.float64]:
        """What each shard took to make, NaN where that is not known, (shards,) float64.

        Raises:
            CorruptShardError: the column is not the one that was written.
            LabelSetError: it holds something else.
        """
        if "seconds" not in self._table.names:  # a table older than this column
            return np.full(len(self), np.nan)
        column = self._column("seconds")
        if not pa.types.is_floating(column.type):
            self._refuse("seconds")
        found: NDArray[np.float64] = numpy_of(column.cast(pa.float64()), null=np.nan)
        if (found < 0).any() or np.isinf(found).any():
            self._refuse("seconds")
        return found

    def accelerators(self) -> list[str | None]:
        """Where each shard's teacher ran, None where that is not known; raises as `numbers`."""
        if "accelerator" not in self._table.names:  # a table older than this column
            return [None] * len(self)
        column = self._column("accelerator")
        if not pa.types.is_string(column.type):
            self._refuse("accelerator")
        found: list[str | None] = column.to_pylist()
        return found

    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Records of every row group, (groups,), and how many each shard has, (shards,); int64.

        Raises:
            CorruptShardError: the column is not the one that was written.
            LabelSetError: they are not the shards' rows.
        """
        column = self._column("group_rows")
        try:
            counts = numpy_of(pc.list_value_length(column))
            rows = numpy_of(pc.list_flatten(column))
        except pa.ArrowException:
            self._refuse("group_rows")
        if rows.dtype != np.int64 or (rows < 0).any():
            self._refuse("group_rows")
        sums = np.append(0, np.cumsum(rows))[np.append(0, np.cumsum(counts))]
        if not np.array_equal(sums, self.starts):
            self._refuse("group_rows")
        return rows, counts.astype(np.int64)

    @property
    def totals(self) -> Totals:
        """Sums over the shards."""
        names = [name for name in Totals.model_fields if name not in ("shards", "records")]
        sums = {name: int(self.numbers(name).sum()) for name in names}
        return Totals(shards=len(self), records=int(self.starts[-1]), **sums)

    def _read_numbers(self, name: str) -> NDArray[np.int64]:
        if name not in self._table.names and not Receipt.model_fields[name].is_required():
            return np.zeros(len(self), np.int64)  # of a table older than this column
        column = self._column(name)
        if not pa.types.is_integer(column.type) or column.null_count:
            self._refuse(name)
        found: NDArray[np.int64] = numpy_of(column).astype(np.int64)
        # So that their sum is one, too.
        if (found < 0).any() or (found > manifest.MOST // max(1, len(found))).any():
            self._refuse(name)
        return found

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._table.names:
            raise LabelSetError(f"{self._table.where}: it has no column {name}")
        return self._table.column(name)

    def _check_paths(self) -> None:
        try:
            # Of ASCII alone, which is what a writer's own names are.
            plain = pc.match_substring_regex(self._column("path"), manifest.PATH)
            usual = pc.all(plain, skip_nulls=False).as_py()
        except pa.ArrowException:
            usual = False
        if not usual:
            for _ in self:
                pass

    def _refuse(self, name: str) -> NoReturn:
        """Say what is wrong with a column, as the receipt it is wrong in says it."""
        for _ in self:
            pass
        raise LabelSetError(f"{self._table.where}: {name}: it does not hold what it should")


def finished(root: Path, plan_digest: str) -> Receipts:
    """The shard table, checked against the manifest.

    Raises:
        CorruptShardError: it, or the plan, is not what the manifest names.
        LabelSetError: the manifest is none.
    """
    where = root / layout.MANIFEST
    found = manifest.parse(where.read_bytes(), where=str(where))
    if found.plan_sha256 != plan_digest:
        raise CorruptShardError(
            f"{root / layout.PLAN}: its digest {plan_digest[:8]}… is not the manifest's "
            f"{found.plan_sha256[:8]}…; the plan was changed after the set was made"
        )
    table = root / layout.SHARDS
    if found.shards_footer is None:
        data = table.read_bytes() if table.is_file() else b""
        if hashlib.sha256(data).hexdigest() != found.files.get(layout.SHARDS):
            raise _changed(table)
        return Receipts.parse(data, where=str(table))
    footer = Footer(found.shards_footer.bytes, found.shards_footer.sha256)
    return Receipts(DigestedTable(table, where=str(table), footer=footer))


def check_keys(root: Path) -> None:
    """Raise `CorruptShardError` if the key index of a finished set is not what was written."""
    where = root / layout.MANIFEST
    files = manifest.parse(where.read_bytes(), where=str(where)).files
    if layout.KEYS in files:
        check_file(root / layout.KEYS, files[layout.KEYS])


def check_folder(root: Path, folder: str) -> None:
    """Raise `CorruptShardError` if a file below a folder of a finished set is not what it was."""
    where = root / layout.MANIFEST
    files = manifest.parse(where.read_bytes(), where=str(where)).files
    for name, digest in files.items():
        if name.startswith(f"{folder}/"):
            check_file(root / name, digest)


def check_file(file: Path, expected: str | None) -> None:
    """Raise `CorruptShardError` if a file does not have its sha256."""
    if not file.is_file() or file_sha256(file) != expected:
        raise _changed(file)


def _changed(file: Path) -> CorruptShardError:
    return CorruptShardError(
        f"{file}: it is missing or not the one the manifest names; run `softlabels verify DIR "
        "--repair`, then the same `softlabels precompute` command, to rebuild it"
    )


def _by_number(file: Path) -> tuple[int, str]:
    return len(file.stem), file.stem  # 99999 before 100000


def unfinished(root: Path) -> Receipts:
    """The receipts of the units that are done, in order."""
    files = sorted((root / layout.RECEIPTS).glob("*.json"), key=_by_number)
    return Receipts.of(manifest.parse_receipt(file.read_bytes(), where=str(file)) for file in files)

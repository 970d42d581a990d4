"""Work units to be labelled, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from softlabels import ranks
from softlabels.inputs.sources import Source


@dataclass(frozen=True)
class Share:
    """Which work units are ours: unit i is rank i % world_size's.

    Attributes:
        rank: of world_size.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def find(cls, rank: int | None, world_size: int | None) -> Share:
        """The user's, else torch.distributed's or torchrun's, else Slurm's, else everything.

        Raises:
            InputError: only one is given, or they do not fit each other; or which task of a Slurm
                array this is cannot be told.
        """
        default = "the environments of torchrun and of Slurm are the default"
        found = ranks.given(rank, world_size, default=default)
        return cls(*(found or ranks.of_torch() or ranks.of_slurm() or (0, 1)))

    @property
    def is_first(self) -> bool:
        """Whether what need be done only once is ours."""
        return self.rank == 0


@dataclass(frozen=True)
class Task:
    """A work unit to be labelled.

    Attributes:
        number: of the unit.
        rows: of the source.
        table: these rows, of a stream; None where they are read by their numbers.
    """

    number: int
    rows: range
    table: pa.Table | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled slice would hold the whole table that it is of.
        sent = None if self.table is None else _to_bytes(self.table)
        return _arrived, (self.number, self.rows, sent)


def _arrived(number: int, rows: range, sent: bytes | None) -> Task:
    return Task(number, rows, None if sent is None else pa.ipc.open_stream(sent).read_all())


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


class Tasks:
    """The tasks of a share, in order, once.

    Attributes:
        units: of all shares; of a stream, those that were walked past so far.
        source_rows: likewise.
    """

    def __init__(self, source: Source, unit_rows: int, share: Share) -> None:
        self._source, self._unit_rows, self._share = source, unit_rows, share
        self.source_rows = source.rows or 0
        self.units = -(-self.source_rows // unit_rows)

    @property
    def rows(self) -> int | None:
        """Source rows of the share; None of a stream."""
        share, rows = self._share, self._source.rows
        if rows is None:
            return None
        numbers = range(share.rank, self.units, share.world_size)
        short = self.units * self._unit_rows - rows if self.units - 1 in numbers else 0
        return len(numbers) * self._unit_rows - short

    def __iter__(self) -> Iterator[Task]:
        share, rows = self._share, self._source.rows
        if self._source.read is None or rows is None:
            yield from self._of_stream()
            return
        for number in range(share.rank, self.units, share.world_size):
            start = number * self._unit_rows
            yield Task(number, range(start, min(start + self._unit_rows, rows)))

    def _of_stream(self) -> Iterator[Task]:
        row = 0
        for table in self._source.units(self._unit_rows):
            number, rows = self.units, range(row, row + len(table))
            self.units, self.source_rows, row = number + 1, rows.stop, rows.stop
            if number % self._share.world_size == self._share.rank:
                yield Task(number, rows, table)

"""Rows of a shard whose labels are still encoded: cut and joined first, then decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs.needs import Made
from softlabels.labels import Labels


class Held(Protocol):
    """Rows as a codec keeps them, checked as far as that takes no decoding."""

    @property
    def nbytes(self) -> int:
        """What they take, with what they refer to."""

    @classmethod
    def picked(cls, parts: Sequence[tuple[Self, int, int]]) -> Self:
        """Rows start up to stop of each part, one part after another; at least one part."""

    def labels(self, device: torch.device) -> tuple[Labels, NDArray[np.int64]]:
        """As `Codec.decode` gives them.

        Raises:
            CorruptShardError: they are no labels.
        """


@dataclass(frozen=True)
class Columns:
    """Rows of a codec that decodes columns as they are.

    Attributes:
        codec: whose they are.
        batch: its columns, and `positions`.
    """

    codec: Any
    batch: pa.RecordBatch

    @property
    def nbytes(self) -> int:
        return int(self.batch.nbytes)

    @classmethod
    def picked(cls, parts: Sequence[tuple[Self, int, int]]) -> Self:
        # At once: column by column, where each is decoded, it takes three times as long.
        slices = [part.batch.slice(start, stop - start) for part, start, stop in parts]
        return cls(parts[0][0].codec, pa.concat_batches(slices))

    def labels(self, device: torch.device) -> tuple[Labels, NDArray[np.int64]]:
        table = pa.Table.from_batches([self.batch])
        found: tuple[Labels, NDArray[np.int64]] = self.codec.decode(table, device)
        return found


class ByColumns(Made):
    """What codecs have in common that decode columns as they are."""

    dictionary_columns: ClassVar[list[str]] = []

    def hold(self, table: pa.Table) -> Columns:
        """Their columns of some rows."""
        fields: list[pa.Field] = self.fields  # type: ignore[attr-defined]
        return Columns(self, one_batch(table.select(["positions", *(f.name for f in fields)])))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table's rows in one piece; of one chunk nothing is copied."""
    columns = [
        column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        for column in table.itercolumns()
    ]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)

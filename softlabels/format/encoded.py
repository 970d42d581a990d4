"""Rows of a shard, read and checked, their labels still encoded; a row group is kept as one.

What is picked of several of them becomes one value, and only that is decoded: all that can be
checked, parsed or looked up once for a row group is not done again for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.arrow import nulls_of, numpy_of
from softlabels.codecs import CPU, Codec, Held
from softlabels.codecs.held import one_batch
from softlabels.errors import CorruptShardError
from softlabels.format.mapped import Mapped
from softlabels.format.records import IDENTITY, VIEW_PARAMS, Records, ends_of, scatter
from softlabels.labels import Labels

Int64s = NDArray[np.int64]

# What the labels of records are read from, beside the codec's columns.
LABELLED = ("length", "positions", "label_spans")
# Of a record: a mask of them takes a byte each, whatever the file's size.
_MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class Encoded:
    """R records.

    Attributes:
        identity: as that of `Records`, or fewer of its columns.
        lengths: tokens of each, (R,) int64.
        token_offsets: as those of `Records`, (R + 1,).
        token_ids: (tokens,), as they are stored; None where the set does not carry them, or they
            were not read.
        next_ids: as those of `Records`.
        wanted: as that of `Records`; None where every token's position is labelled.
        held: the labels.
        mapped: the file in which they lie; None where nothing of them lies in one.
    """

    identity: pa.RecordBatch
    lengths: Int64s
    token_offsets: Int64s
    token_ids: NDArray[np.unsignedinteger] | None
    next_ids: Int64s | None
    wanted: NDArray[np.bool_] | None
    held: Held
    mapped: Mapped | None = None

    @classmethod
    def of(cls, table: pa.Table, codec: Codec, *, mapped: Mapped | None = None) -> Encoded:
        """Rows of a shard.

        Args:
            table: the codec's columns and those of `LABELLED`; others where they are wanted.
            mapped: the file that views among them are of.

        Raises:
            CorruptShardError: columns contradict each other.
        """
        held = codec.hold(table)
        # Lengths are held to what is there before a mask of so many tokens is made.
        lengths = _lengths(table)
        offsets = ends_of(lengths)
        token_ids, next_ids = _tokens(table, offsets)
        identity = table.select([n for n in (*IDENTITY, VIEW_PARAMS) if n in table.column_names])
        return cls(
            identity=one_batch(identity),
            lengths=lengths,
            token_offsets=offsets,
            token_ids=token_ids,
            next_ids=next_ids,
            wanted=_where(table, lengths, offsets),
            held=held,
            # A process has 65,530 mappings: of a small row group none is kept.
            mapped=mapped if any(map(pa.types.is_binary_view, table.schema.types)) else None,
        )

    @classmethod
    def picked(cls, parts: Sequence[tuple[Encoded, int, int]]) -> Encoded:
        """Records start up to stop of each part, one part after another; at least one part."""
        lengths = np.concatenate([part.lengths[start:stop] for part, start, stop in parts])
        bounds = [(part, part.token_offsets[a], part.token_offsets[b]) for part, a, b in parts]
        first, wanted = parts[0][0], None
        if any(part.wanted is not None for part, _, _ in parts):
            wanted = np.concatenate([_mask(part)[a:b] for part, a, b in bounds])
        return cls(
            identity=pa.concat_batches([p.identity.slice(a, b - a) for p, a, b in parts]),
            lengths=lengths,
            token_offsets=ends_of(lengths),
            token_ids=_joined([(part.token_ids, a, b) for part, a, b in bounds]),
            next_ids=_joined([(part.next_ids, a, b) for part, a, b in parts]),
            wanted=wanted,
            held=type(first.held).picked([(part.held, a, b) for part, a, b in parts]),
        )

    @property
    def nbytes(self) -> int:
        """What it takes, with what it refers to."""
        arrays = (self.lengths, self.token_offsets, self.token_ids, self.next_ids, self.wanted)
        own = sum(array.nbytes for array in arrays if array is not None)
        return own + int(self.identity.nbytes) + self.held.nbytes

    def records(self, device: torch.device = CPU) -> Records:
        """Decoded, the labels on `device`.

        Raises:
            CorruptShardError: they are no labels.
        """
        labels, label_offsets = self.held.labels(device)
        token_ids = self.token_ids
        return Records(
            identity=pa.Table.from_batches([self.identity]),
            token_offsets=self.token_offsets,
            token_ids=None if token_ids is None else token_ids.astype(np.int64),
            next_ids=self.next_ids,
            wanted=_mask(self),
            labels=labels,
            label_offsets=label_offsets,
        )

    def labels(self) -> Labels:
        """Labels of one record, batch shape (T,), masked where unlabelled.

        Raises:
            CorruptShardError: they are no labels.
        """
        labels, _ = self.held.labels(CPU)
        return scatter(labels, torch.from_numpy(_mask(self)))


def from_table(table: pa.Table, codec: Codec, device: torch.device = CPU) -> Records:
    """Rows of a shard as records, their labels on `device`.

    Raises:
        CorruptShardError: columns contradict each other.
    """
    return Encoded.of(table, codec).records(device)


def _mask(encoded: Encoded) -> NDArray[np.bool_]:
    if encoded.wanted is None:
        return np.ones(int(encoded.token_offsets[-1]), bool)
    return encoded.wanted


def _joined(parts: Sequence[tuple[NDArray[Any] | None, int, int]]) -> NDArray[Any] | None:
    """Values start up to stop of each part; None where one has none."""
    found = [values[start:stop] for values, start, stop in parts if values is not None]
    return np.concatenate(found) if len(found) == len(parts) else None


def _lengths(table: pa.Table) -> Int64s:
    lengths: Int64s = numpy_of(table.column("length")).astype(np.int64)
    if (lengths < 0).any() or (lengths > _MOST_TOKENS).any():
        raise CorruptShardError(f"a length is negative, or above {_MOST_TOKENS}")
    return lengths


def _tokens(
    table: pa.Table, offsets: Int64s
) -> tuple[NDArray[np.unsignedinteger] | None, Int64s | None]:
    """`token_ids` and `next_ids` of records; None where they are not there."""
    if "input_ids" not in table.column_names:
        return None, None
    lists = table.column("input_ids").combine_chunks()
    if lists.null_count == len(lists):
        return None, None
    bounds = numpy_of(lists.offsets)
    first, last = int(bounds[0]), int(bounds[-1])
    flat = lists.values.slice(first, last - first)
    if lists.null_count or flat.null_count or not np.array_equal(bounds - bounds[0], offsets):
        raise CorruptShardError("the lists of input_ids do not fit the lengths, or hold nulls")
    return numpy_of(flat), numpy_of(table.column("next_id"), null=-1).astype(np.int64)


def _where(table: pa.Table, lengths: Int64s, offsets: Int64s) -> NDArray[np.bool_] | None:
    """Which tokens' positions are labelled, None for all; held to how many labels there are."""
    positions = numpy_of(table.column("positions")).astype(np.int64)
    spans = table.column("label_spans")
    # Records without spans have a position for each token, and are looked at before a mask is made.
    if spans.null_count == len(spans):
        wanted, wrong = None, lengths != positions
    else:
        wrong = (lengths != positions) & nulls_of(spans)
        wanted = None if wrong.any() else _wanted(spans.combine_chunks(), offsets)
    if wanted is not None:
        counts = np.diff(np.concatenate([[0], np.cumsum(wanted, dtype=np.int64)])[offsets])
        wrong = counts != positions
    if wrong.any():
        raise CorruptShardError("label_spans do not cover as many tokens as there are positions")
    return wanted


def _wanted(spans: pa.Array, offsets: Int64s) -> NDArray[np.bool_]:
    """The inverse of what `records.to_table` writes."""
    everything = nulls_of(spans)
    lengths = np.diff(offsets)
    change = np.zeros(int(offsets[-1]) + 1, np.int64)
    np.add.at(change, offsets[:-1][everything], 1)
    np.add.at(change, offsets[1:][everything], -1)
    values = spans.flatten()
    if len(values):
        counts = numpy_of(spans.value_lengths(), null=0)
        record = np.repeat(np.arange(len(spans)), counts)
        start = numpy_of(values.field("start")).astype(np.int64)
        length = numpy_of(values.field("length")).astype(np.int64)
        if (start < 0).any() or (length < 0).any() or (start + length > lengths[record]).any():
            raise CorruptShardError("label_spans reach outside their record")
        np.add.at(change, offsets[record] + start, 1)
        np.add.at(change, offsets[record] + start + length, -1)
    return np.cumsum(change[:-1]) > 0

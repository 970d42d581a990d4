"""Records: labels with the identity and inputs they belong to; one row of a shard each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels import memory
from softlabels.codecs import Codec
from softlabels.errors import CorruptShardError
from softlabels.inputs.digests import DIGEST_TYPE
from softlabels.labels import Batched, Labels, SoftLabels, concatenate, soft

SPAN_TYPE = pa.struct(
    [pa.field("start", pa.int32(), nullable=False), pa.field("length", pa.int32(), nullable=False)]
)

Int64s = NDArray[np.int64]
L = TypeVar("L", bound=Batched)


@dataclass(frozen=True)
class Records:
    """R records, ragged: tokens and labelled positions lie one after another.

    Attributes:
        identity: table with one row a record: key, part, view, source_start, source_length,
            input_digest, prepared_digest, and where there are views, view_params.
        token_offsets: record i has tokens token_offsets[i] up to token_offsets[i + 1], (R + 1,).
        token_ids: (tokens,) int64; None where the set does not carry them.
        next_ids: the token after each record's last, −1 where it was not seen, (R,).
        wanted: which tokens' positions are labelled, bool, (tokens,).
        labels: of the labelled positions only, in order; batch shape (positions,).
        label_offsets: record i has positions label_offsets[i] up to label_offsets[i + 1], (R + 1,).
        arrays: of records that are arrays, joined from data; None of others. A token of those is
            a position.
    """

    identity: pa.Table
    token_offsets: Int64s
    token_ids: Int64s | None
    next_ids: Int64s | None
    wanted: NDArray[np.bool_]
    labels: Labels
    label_offsets: Int64s
    arrays: tuple[NDArray[Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def soft(self) -> SoftLabels:
        """`labels`, where they are distributions over classes; else raises `KindError`."""
        return soft(self.labels)

    def slice(self, start: int, stop: int) -> Records:
        """Records start up to stop."""
        tokens = slice(int(self.token_offsets[start]), int(self.token_offsets[stop]))
        positions = slice(int(self.label_offsets[start]), int(self.label_offsets[stop]))
        return Records(
            identity=self.identity.slice(start, stop - start),
            token_offsets=self.token_offsets[start : stop + 1] - tokens.start,
            token_ids=None if self.token_ids is None else self.token_ids[tokens],
            next_ids=None if self.next_ids is None else self.next_ids[start:stop],
            wanted=self.wanted[tokens],
            labels=self.labels[positions],
            label_offsets=self.label_offsets[start : stop + 1] - positions.start,
            arrays=None if self.arrays is None else self.arrays[start:stop],
        )

    def take(self, order: Int64s) -> Records:
        """Records by their places, in that order."""
        return replace(
            self,
            identity=self.identity.take(pa.array(order)),
            token_offsets=ends_of(np.diff(self.token_offsets)[order]),
            token_ids=_ragged(self.token_ids, self.token_offsets, order),
            next_ids=None if self.next_ids is None else self.next_ids[order],
            wanted=self.wanted[_spread(self.token_offsets, order)],
            labels=self.labels[torch.from_numpy(_spread(self.label_offsets, order))],
            label_offsets=ends_of(np.diff(self.label_offsets)[order]),
            arrays=None if self.arrays is None else tuple(self.arrays[i] for i in order.tolist()),
        )

    def cut(self, length: int) -> Records:
        """Each record's first `length` tokens, and their labels; the next token is known then."""
        starts, lengths = self.token_offsets[:-1], np.diff(self.token_offsets)
        long = lengths > length
        if not long.any():
            return self
        within = np.arange(len(self.wanted)) - np.repeat(starts, lengths)
        kept = within < length
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, length))])
        token_ids, next_ids = self.token_ids, self.next_ids
        if token_ids is not None and next_ids is not None:
            next_ids = next_ids.copy()
            next_ids[long] = token_ids[starts[long] + length]
            token_ids = token_ids[kept]
        wanted = self.wanted[kept]
        places = torch.from_numpy(np.flatnonzero(kept[self.wanted])).to(self.labels.device)
        return replace(
            self,
            token_offsets=offsets,
            token_ids=token_ids,
            next_ids=next_ids,
            wanted=wanted,
            labels=self.labels[places],
            label_offsets=np.concatenate([[0], np.cumsum(wanted, dtype=np.int64)])[offsets],
        )

    def without_labels(self) -> Records:
        """The same tokens, no position labelled."""
        return replace(
            self,
            wanted=np.zeros_like(self.wanted),
            labels=self.labels[:0],
            label_offsets=np.zeros_like(self.label_offsets),
        )

    def record_labels(self, index: int) -> Labels:
        """Labels of one record over all its tokens, batch shape (T,), masked where unlabelled."""
        tokens = slice(int(self.token_offsets[index]), int(self.token_offsets[index + 1]))
        positions = slice(int(self.label_offsets[index]), int(self.label_offsets[index + 1]))
        wanted = torch.from_numpy(self.wanted[tokens])
        alone = positions == slice(0, len(self.labels))
        return scatter(self.labels if alone else self.labels[positions], wanted)


def _spread(offsets: Int64s, order: Int64s) -> Int64s:
    """Where the values of some records lie, one record after another."""
    lengths = np.diff(offsets)[order]
    places: Int64s = np.repeat(offsets[:-1][order] - ends_of(lengths)[:-1], lengths)
    return places + np.arange(len(places))


def _ragged(values: Int64s | None, offsets: Int64s, order: Int64s) -> Int64s | None:
    return None if values is None else values[_spread(offsets, order)]


def ends_of(lengths: Int64s) -> Int64s:
    """Offsets of parts of these lengths, one after another, (R + 1,)."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=ends[1:])
    return ends


def join(parts: Sequence[Records]) -> Records:
    """Records one after another; at least one part, all with the same fields."""
    first = parts[0]

    def stacked(name: str) -> Int64s:
        ends = np.cumsum([0, *(getattr(part, name)[-1] for part in parts)])
        shifted = [getattr(p, name)[1:] + end for p, end in zip(parts, ends, strict=False)]
        return np.concatenate([[0], *shifted])

    def joined(name: str) -> Any:
        if getattr(first, name) is None:
            return None
        return np.concatenate([getattr(part, name) for part in parts])

    return Records(
        identity=pa.concat_tables([part.identity for part in parts]),
        token_offsets=stacked("token_offsets"),
        token_ids=joined("token_ids"),
        next_ids=joined("next_ids"),
        wanted=joined("wanted"),
        labels=concatenate([part.labels for part in parts]),
        label_offsets=stacked("label_offsets"),
        arrays=None if first.arrays is None else tuple(a for p in parts for a in p.arrays or ()),
    )


def scatter(labels: L, mask: torch.Tensor) -> L:
    """Spread labels of batch shape (positions,) over the true places of `mask`.

    Elsewhere is what the kind of label says, 0 in most: finite in every formula, and masked.

    Args:
        mask: bool, any shape, as many true places as there are positions.
    """
    device, flat = labels.device, mask.flatten()
    given = {name: value for name, value in labels.tensors().items() if name != "mask"}
    spread = given
    if not flat.numpy().all():  # of few tokens, faster than torch's
        to = _by_run if device.type == "cpu" else _by_index
        spread = to(given, flat, labels.FILL)
    shaped = {name: value.view(*mask.shape, *value.shape[1:]) for name, value in spread.items()}
    return labels.with_fitting({**shaped, "mask": mask.to(device)})


def _by_run(
    given: Mapping[str, Tensor], mask: Tensor, fill: Mapping[str, float]
) -> dict[str, Tensor]:
    """Rows at the true places of `mask`, (N,), a copy for each run: a quarter of `_by_index`."""
    edges = np.flatnonzero(np.diff(mask.numpy(), prepend=False, append=False)).tolist()
    starts, stops = edges[::2], edges[1::2]
    if len(starts) * 16 > len(mask):
        return _by_index(given, mask, fill)
    gaps = list(zip([0, *stops], [*starts, len(mask)], strict=True))
    spread = {}
    for name, value in given.items():
        spread[name] = _empty(len(mask), value)
        out, rows = _plain(spread[name]), _plain(value)
        done = 0
        for start, stop in zip(starts, stops, strict=True):
            out[start:stop] = rows[done : done + stop - start]
            done += stop - start
        for start, stop in gaps:
            out[start:stop] = fill.get(name, 0)
    return spread


def _by_index(
    given: Mapping[str, Tensor], mask: Tensor, fill: Mapping[str, float]
) -> dict[str, Tensor]:
    """Rows at the true places of `mask`, (N,), on their own device."""
    device = next(iter(given.values())).device
    places = mask.nonzero().squeeze(1).to(device)
    others = (~mask).nonzero().squeeze(1).to(device)
    return {
        name: _empty(len(mask), value)
        .index_copy_(0, places, value)
        .index_fill_(0, others, fill.get(name, 0))
        for name, value in given.items()
    }


def _plain(values: Tensor) -> Any:
    """NumPy's view where it knows the dtype: of small slices it is faster."""
    return values if values.dtype == torch.bfloat16 else values.numpy()


def _empty(length: int, like: torch.Tensor) -> torch.Tensor:
    shape = (length, *like.shape[1:])
    if like.device.type != "cpu" or like.dtype == torch.bfloat16:
        return like.new_empty(shape)
    return torch.from_numpy(memory.empty(shape, like.numpy().dtype))


def schema(
    key_type: str, codec: Codec, *, token_type: pa.DataType, views: bool = False
) -> pa.Schema:
    """Columns of a shard, in order; docs/FORMAT.md describes each."""
    return pa.schema(
        [
            pa.field("key", pa.string() if key_type == "string" else pa.int64(), nullable=False),
            pa.field("part", pa.int32(), nullable=False),
            pa.field("view", pa.int32(), nullable=False),
            pa.field("source_start", pa.int32(), nullable=False),
            pa.field("source_length", pa.int32(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("positions", pa.int32(), nullable=False),
            pa.field("label_spans", pa.list_(SPAN_TYPE)),
            pa.field("input_digest", DIGEST_TYPE, nullable=False),
            pa.field("prepared_digest", DIGEST_TYPE, nullable=False),
            pa.field("input_ids", pa.list_(token_type)),
            pa.field("next_id", token_type),
            *([pa.field(VIEW_PARAMS, pa.string())] if views else []),
            *codec.fields,
        ]
    )


def to_table(
    records: Records, encoded: Mapping[str, pa.Array | pa.ChunkedArray], wanted_schema: pa.Schema
) -> pa.Table:
    """Records as rows of a shard.

    Args:
        encoded: the codec's columns of their labels.
    """
    token_type = wanted_schema.field("next_id").type
    columns: dict[str, Any] = {
        name: records.identity.column(name) for name in records.identity.column_names
    }
    columns["length"] = pa.array(np.diff(records.token_offsets), pa.int32())
    columns["positions"] = pa.array(np.diff(records.label_offsets), pa.int32())
    columns["label_spans"] = _spans(records.wanted, records.token_offsets)
    columns["input_ids"] = pa.nulls(len(records), pa.list_(token_type))
    columns["next_id"] = pa.nulls(len(records), token_type)
    if records.token_ids is not None and records.next_ids is not None:
        offsets = pa.array(records.token_offsets.astype(np.int32))
        columns["input_ids"] = pa.ListArray.from_arrays(
            offsets, pa.array(records.token_ids).cast(token_type)
        )
        unseen = records.next_ids < 0
        columns["next_id"] = pa.array(records.next_ids, mask=unseen).cast(token_type)
    columns |= encoded
    return pa.table([columns[field.name] for field in wanted_schema], schema=wanted_schema)


VIEW_PARAMS = "view_params"
IDENTITY = (
    "key",
    "part",
    "view",
    "source_start",
    "source_length",
    "input_digest",
    "prepared_digest",
)


# Of every codec and version.
NEVER_NULL = frozenset({*IDENTITY, "length", "positions", "entries"})


def check_columns(found: pa.Schema, codec: Codec) -> list[str]:
    """The names of the format's columns.

    Raises:
        CorruptShardError: they are missing or of other types.
    """

    def type_of(name: str) -> pa.DataType | None:
        at = found.get_field_index(name)
        return found.field(at).type if at >= 0 else None

    wanted = schema(
        "int64" if type_of("key") == pa.int64() else "string",
        codec,
        token_type=pa.uint32() if type_of("next_id") == pa.uint32() else pa.uint16(),
        views=type_of(VIEW_PARAMS) is not None,
    )
    for field in wanted:
        if type_of(field.name) != field.type:
            raise CorruptShardError(
                f"column {field.name} is {type_of(field.name)}, in the format it is {field.type}"
            )
    names: list[str] = wanted.names
    return names


def _spans(wanted: NDArray[np.bool_], offsets: Int64s) -> pa.Array:
    """Runs of wanted tokens in each record, as (start, length); null where all are wanted."""
    records = len(offsets) - 1
    # A false guard between records keeps a run from crossing from one into the next.
    guarded = np.zeros(len(wanted) + records + 1, np.int8)
    owner = np.repeat(np.arange(records), np.diff(offsets))
    guarded[np.arange(len(wanted)) + owner + 1] = wanted
    edges = np.diff(guarded)
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    bounds = offsets + np.arange(records + 1)
    record = np.searchsorted(bounds, starts, side="right") - 1
    span_offsets = np.searchsorted(starts, bounds).astype(np.int32)
    everything = _counts(wanted, offsets) == np.diff(offsets)
    values = pa.StructArray.from_arrays(
        [
            pa.array((starts - bounds[record]).astype(np.int32)),
            pa.array((stops - starts).astype(np.int32)),
        ],
        fields=list(SPAN_TYPE),
    )
    return pa.ListArray.from_arrays(pa.array(span_offsets), values, mask=pa.array(everything))


def _counts(wanted: NDArray[np.bool_], offsets: Int64s) -> Int64s:
    return np.diff(np.concatenate([[0], np.cumsum(wanted, dtype=np.int64)])[offsets])

"""Derive one unit: a pure function of the recipe and the unit's number, for any executor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.codecs import Codec
from softlabels.deriving.choice import Choice
from softlabels.deriving.sources import Sources
from softlabels.format import layout, probes
from softlabels.format.manifest import Receipt
from softlabels.format.probes import Probes
from softlabels.format.records import Records, join
from softlabels.format.shard import Shard
from softlabels.format.summary import UnitSummary
from softlabels.inputs.digests import unit_digest
from softlabels.labels import Labels, SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.writer import LabelSetWriter

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """Everything that deriving a unit depends on, beside its number.

    Attributes:
        sources, choice: what is taken of what.
        bounds: as `derive_bounds.bounds` gives them.
        k: entries at each position.
    """

    sources: Sources
    choice: Choice
    bounds: Int64s
    k: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def source_rows(self) -> Int64s:
        """Source rows before each bound, those of a unit that is cut shared out by records."""
        rows, source_rows = (self.sources.counts(name) for name in ("rows", "source_rows"))
        before = np.append(0, np.cumsum(source_rows))
        share = [
            source_rows[unit] * row // rows[unit] if row else 0
            for unit, row in self.bounds.tolist()
        ]
        found: Int64s = before[self.bounds[:, 0]] + np.asarray(share, np.int64)
        return found


@dataclass(frozen=True)
class _Piece:
    """What a derived unit takes of one unit of a source.

    Attributes:
        labels, receipt: the source unit.
        rows: of its shard, ascending.
        records: these, of which only the number of entries is kept.
        columns: the codec's, encoded.
        summary: of the source unit.
        rejects: those that come along.
        whole: whether this is all that the source unit holds.
    """

    labels: LabelSet
    receipt: Receipt
    rows: Int64s
    records: Records
    columns: pa.Table
    summary: UnitSummary
    rejects: tuple[dict[str, Any], ...]
    whole: bool


def derive_unit(recipe: Recipe, unit: int, writer: LabelSetWriter) -> Receipt:
    """Make and publish one unit of a derived set.

    Args:
        writer: of the new set; several units may be published at a time.

    Raises:
        CorruptShardError: the source is damaged.
    """
    (first, start), (last, stop) = recipe.bounds[unit].tolist(), recipe.bounds[unit + 1].tolist()
    pieces = []
    for number in range(first, last + (stop > 0)):
        begin = start if number == first else 0
        end = stop if number == last else None
        pieces.append(_piece(recipe, number, begin, end, writer.codec))
    _publish_probes(pieces, unit, writer)
    # Where nothing is left, fields that records may lack cannot be told.
    full = [piece for piece in pieces if len(piece.records)] or pieces[:1]
    records = join([piece.records for piece in full])
    encoded = pa.concat_tables([piece.columns for piece in full])
    return writer.publish(records, _summary(pieces, records, unit), encoded=encoded)


def _piece(recipe: Recipe, unit: int, start: int, stop: int | None, codec: Codec) -> _Piece:
    labels, receipt, shard = recipe.sources.open(unit)
    stop = receipt.rows if stop is None else stop
    parts: list[tuple[Int64s, Records, pa.Table]] = []
    first = 0
    for group, count in enumerate(receipt.group_rows):
        within = range(max(start, first), min(stop, first + count))
        if within:
            table = shard.read(group, shard.columns(labels.codec, group))
            table = table.slice(within.start - first, len(within))
            taken = _taken(recipe, labels, shard, table, group, codec)
            if taken is not None:
                parts.append((taken[0] + within.start, *taken[1:]))
        first += count
    if not parts:
        columns = pa.schema(codec.fields).empty_table()
        parts = [(np.empty(0, np.int64), _without_entries(labels.take([])), columns)]
    rows = np.concatenate([rows for rows, _, _ in parts])
    records = join([records for _, records, _ in parts])
    rejects = _rejects(recipe.choice, shard, range(start, stop), records)
    return _Piece(
        labels=labels,
        receipt=receipt,
        rows=rows,
        records=records,
        columns=pa.concat_tables([columns for _, _, columns in parts]),
        summary=shard.summary(),
        rejects=rejects,
        whole=len(rows) == receipt.rows and len(rejects) == receipt.rejects,
    )


def _taken(
    recipe: Recipe, labels: LabelSet, shard: Shard, table: pa.Table, group: int, codec: Codec
) -> tuple[Int64s, Records, pa.Table] | None:
    """What is taken of some rows: which, the records without their entries, and these encoded."""
    rows = np.arange(len(table))
    mask = recipe.choice.of_keys(table["key"])
    if not mask.all():
        rows, table = rows[mask], table.filter(pa.array(mask))
    if not len(rows):
        return None
    records = shard.decode(table, labels.codec, row_group=group)
    mask = recipe.choice.of_records(records)
    if not mask.all():
        rows, table = rows[mask], table.filter(pa.array(mask))
        records = records.take(np.flatnonzero(mask))
    as_stored = (labels.plan.codec, labels.plan.selection.k) == (codec.to_json(), recipe.k)
    if as_stored:
        # What was rounded once and is rounded again may fall one step beside.
        columns = table.select([field.name for field in codec.fields])
    else:
        kept = fewer(labels, records.labels, recipe.k)
        encoded = codec.encode(kept, records.label_offsets)
        columns = pa.table([encoded[f.name] for f in codec.fields], schema=pa.schema(codec.fields))
    return rows, _without_entries(records), columns


def fewer(source: LabelSet, labels: Labels, k: int) -> Labels:
    """The k likeliest entries at each position, in the order in which codecs take them."""
    if not isinstance(labels, SoftLabels):
        return labels  # all of them: `derive` asks for no fewer
    return labels.first(k) if source.codec.ordered else labels.top(k)


def _without_entries(records: Records) -> Records:
    shape = len(records.labels), 1
    nothing = torch.zeros(1, 1).expand(shape)
    return replace(records, labels=SoftLabels(ids=nothing.long(), log_probs=nothing))


def _rejects(
    choice: Choice, shard: Shard, rows: range, records: Records
) -> tuple[dict[str, Any], ...]:
    """The rejects that come along with these rows: with their samples, else with the first row.

    Nothing is known of the labels of a sample that has none, so that no condition holds for it.
    """
    rejects = shard.summary().rejects
    if not rejects:
        return ()
    kept = set(records.identity["key"].to_pylist())
    if not rows.start and choice.where is None:
        keys = pa.array([reject["key"] for reject in rejects], records.identity["key"].type)
        groups = range(shard.metadata.num_row_groups)
        labelled = {key for g in groups for key in shard.read(g, ["key"])["key"].to_pylist()}
        kept |= set(keys.filter(pa.array(choice.of_keys(keys))).to_pylist()) - labelled
    return tuple(reject for reject in rejects if reject["key"] in kept)


def _summary(pieces: list[_Piece], records: Records, unit: int) -> UnitSummary:
    if len(pieces) == 1 and pieces[0].whole:
        return replace(pieces[0].summary, unit=unit)
    rejects = tuple(reject for piece in pieces for reject in piece.rejects)
    digests: dict[Any, bytes] = {}
    identity = records.identity
    for key, digest in zip(
        identity["key"].to_pylist(), identity["input_digest"].to_pylist(), strict=True
    ):
        digests.setdefault(key, digest)
    return UnitSummary(
        unit=unit,
        source_rows=len(digests.keys() | {reject["key"] for reject in rejects}),
        input_digest=unit_digest(list(digests), list(digests.values())),
        rejects=rejects,
        truncated=sum(map(_truncated, pieces)),
    )


def _truncated(piece: _Piece) -> int:
    """How many of the samples lost their end."""
    preparation = piece.labels.plan.preparation
    if piece.whole or preparation.on_long != "truncate":
        return piece.summary.truncated
    length = np.diff(piece.records.token_offsets)
    whole = numpy_of(piece.records.identity["source_length"])
    # Special tokens around a window are none of the sample's; a sample that is whole shows them.
    around = 0
    if preparation.special_tokens == "window" and len(length):
        around = max(0, int((length - whole).max()))
    return min(piece.summary.truncated, int((length - around < whole).sum()))


def _publish_probes(pieces: list[_Piece], unit: int, writer: LabelSetWriter) -> None:
    if len(pieces) == 1 and pieces[0].whole:
        (piece,) = pieces
        if piece.receipt.probes:
            file = piece.labels.probes_file(piece.receipt)
            writer.publish_probes(unit, partial(shutil.copyfile, file))
        return
    found = list(_probes(pieces))
    if found:
        joined = Probes(
            np.concatenate([part.records for part in found]),
            np.concatenate([part.positions for part in found]),
            torch.cat([part.logits for part in found]),
        )
        writer.publish_probes(unit, partial(probes.write, probes=joined))


def _probes(pieces: list[_Piece]) -> Iterator[Probes]:
    """Those of the records that are taken, with the records' new numbers."""
    start = 0
    for piece in pieces:
        places = np.full(piece.receipt.rows, -1)
        places[piece.rows] = start + np.arange(len(piece.rows))
        start += len(piece.rows)
        if piece.receipt.probes:
            plan = piece.labels.plan
            name = layout.probes_path(plan.split, piece.receipt.unit)
            file = piece.labels.probes_file(piece.receipt)
            for part in probes.read(file, classes=plan.teacher.classes, name=name):
                records = places[part.records]
                kept = records >= 0
                if kept.any():
                    yield Probes(records[kept], part.positions[kept], part.logits[kept])

"""The record that compact, lossless and sampled share: planes of entries, then of positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.codecs import engines
from softlabels.codecs.frames import (
    Frames,
    as_binary,
    byte_planes,
    frames_of,
    from_byte_planes,
    sizes_of,
)
from softlabels.codecs.ranks import LARGE, Gaps
from softlabels.errors import CorruptShardError
from softlabels.memory import empty

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Planes:
    """Bytes of many records, each plane running through all of them.

    Attributes:
        gaps: of the class ids, position after position, by ascending rank within one.
        by_entry: n of (E,), in the same order.
        by_position: m of (P,).
        counts: entries of each position, (P,).
    """

    gaps: Gaps
    by_entry: Sequence[Bytes] | Bytes
    by_position: Sequence[Bytes] | Bytes
    counts: Int64s

    def repeat(self, values: NDArray[Any]) -> NDArray[Any]:
        """The value of each position, (P,), for each of its entries, (E,)."""
        counts = self.counts
        # Twice as fast as by an array of equal counts.
        equal = len(counts) and (counts == counts[0]).all()
        return np.repeat(values, counts[0] if equal else counts)

    @cached_property
    def starts(self) -> Int64s:
        """Position i owns entries starts[i]:starts[i + 1], (P + 1,)."""
        return np.append(0, np.cumsum(self.counts))


@dataclass(frozen=True)
class Sealed:
    """R records, each a frame.

    Attributes:
        frames: where each is a part of, (R,).
        places: (R, 2) int64, where it starts and stops there.
        shapes: (R, 5) int64: its bytes when decompressed; positions; entries; entries whose gap has
            a rest; and whether it says how many entries each position has.
    """

    frames: list[memoryview]
    places: Int64s
    shapes: Int64s

    @property
    def nbytes(self) -> int:
        """Frames, and what is known of them."""
        frames = int((self.places[:, 1] - self.places[:, 0]).sum())
        return frames + self.places.nbytes + self.shapes.nbytes + 8 * len(self.frames)

    @classmethod
    def picked(cls, parts: Sequence[tuple[Self, int, int]]) -> Self:
        """Records start up to stop of each part, one part after another; at least one part."""
        return cls(
            [frame for part, start, stop in parts for frame in part.frames[start:stop]],
            np.concatenate([part.places[start:stop] for part, start, stop in parts]),
            np.concatenate([part.shapes[start:stop] for part, start, stop in parts]),
        )

    @property
    def offsets(self) -> Int64s:
        """Record i has positions offsets[i]:offsets[i + 1], (R + 1,)."""
        ends = np.zeros(len(self.shapes) + 1, np.int64)
        self.shapes[:, 1].cumsum(out=ends[1:])
        return ends


@dataclass(frozen=True)
class Opened:
    """R records, decompressed.

    Attributes:
        data: the planes of each, record after record.
        shapes: as those of `Sealed`.
    """

    data: Bytes
    shapes: Int64s


@dataclass(frozen=True)
class Layout:
    """How many planes a record's frame holds, and the columns that it is written to.

    In this order: the first bytes of the gaps; the rest of those that have one, lowest byte first;
    the planes of entries; those of positions; and, where positions have fewer than k entries
    somewhere, four planes that say how many each has.

    Attributes:
        k: entries at a position, at most.
        of_rests: planes of what is left of large gaps.
        of_entries, of_positions: planes of each.
        dictionary: of the frames of short records.
    """

    k: int
    of_rests: int
    of_entries: int
    of_positions: int
    dictionary: bytes = b""
    frames: Frames = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", Frames(self.dictionary))

    def pack(self, planes: Planes, offsets: Int64s) -> dict[str, pa.Array]:
        """The columns `entries` and `packed`; record i owns positions offsets[i]:offsets[i + 1]."""
        entries = np.diff(planes.starts[offsets])
        blobs = [
            self.frames.pack(record, positions=positions)
            for record, positions in zip(
                self.records(planes, offsets), np.diff(offsets).tolist(), strict=True
            )
        ]
        return {"entries": pa.array(entries, pa.int32()), "packed": as_binary(blobs)}

    def records(self, planes: Planes, offsets: Int64s) -> Iterator[list[memoryview]]:
        """The planes of each record: what its frame holds."""
        rests = [plane.data for plane in byte_planes(planes.gaps.rest, self.of_rests)]
        by_entry = [plane.data for plane in planes.by_entry]
        by_position = [plane.data for plane in planes.by_position]
        counted = [p.data for p in byte_planes(planes.counts.astype(np.uint32), 4)]
        bounds = planes.starts[offsets]
        large = np.searchsorted(np.flatnonzero(planes.gaps.first == LARGE), bounds)
        for (start, stop), (first, last), (low, high) in zip(
            *(pairwise(ends.tolist()) for ends in (offsets, bounds, large)), strict=True
        ):
            record = [planes.gaps.first.data[first:last]]
            record += [plane[low:high] for plane in rests]
            record += [plane[first:last] for plane in by_entry]
            record += [plane[start:stop] for plane in by_position]
            if last - first != (stop - start) * self.k:
                record += [plane[start:stop] for plane in counted]
            yield record

    def seal(self, table: pa.Table) -> Sealed:
        """Records from the columns of `pack` and `positions`, where they lie.

        Raises:
            CorruptShardError: something is no frame, or does not fit its record.
        """
        positions = numpy_of(table.column("positions")).astype(np.int64)
        entries = numpy_of(table.column("entries")).astype(np.int64)
        most = positions * self.k
        if min(positions.min(initial=0), entries.min(initial=0)) < 0 or (entries > most).any():
            raise CorruptShardError("positions and entries contradict each other")
        ragged = entries != most
        least = entries * (1 + self.of_entries) + positions * (self.of_positions + 4 * ragged)
        frames, places = frames_of(table.column("packed"))
        most = least + entries * self.of_rests
        sizes = sizes_of(frames, places, least=least, most=most)
        large, over = np.divmod(sizes - least, max(1, self.of_rests))
        if over.any():
            raise CorruptShardError("a frame holds bytes that are in no plane")
        return Sealed(frames, places, np.stack([sizes, positions, entries, large, ragged], 1))

    def open(self, sealed: Sealed) -> Opened:
        """Records decompressed.

        Raises:
            CorruptShardError: a frame is damaged.
        """
        shapes = sealed.shapes
        data = self.frames.unpack(
            sealed.frames, sealed.places, sizes=shapes[:, 0], positions=shapes[:, 1]
        )
        return Opened(data, shapes)

    def unpack(self, opened: Opened) -> Planes:
        """The inverse of `pack`.

        Raises:
            CorruptShardError: a record's counts do not fit it.
        """
        _, positions, entries, large, ragged = opened.shapes.T
        numbers = [1, self.of_rests, self.of_entries, self.of_positions, 4]
        kinds = [entries, large, entries, positions, positions * ragged]
        lengths = np.repeat(kinds, numbers, 0)
        flat = by_plane(opened.data, lengths)
        planes = np.split(flat, np.cumsum(lengths.sum(1))[:-1])
        first, *rests = planes[: 1 + self.of_rests]
        rest = from_byte_planes(rests) if rests else np.zeros((first == LARGE).sum(), np.uint32)
        middle = 1 + self.of_rests + self.of_entries
        return Planes(
            gaps=Gaps(first, rest),
            by_entry=planes[1 + self.of_rests : middle],
            by_position=planes[middle:-4],
            counts=self._counts(planes[-4:], ragged.astype(bool), positions, entries),
        )

    def _counts(
        self, planes: Sequence[Bytes], ragged: NDArray[np.bool_], positions: Int64s, entries: Int64s
    ) -> Int64s:
        """Entries of each position, which a record says only where they are fewer than k."""
        counts = np.full(int(positions.sum()), self.k, np.int64)
        if ragged.any():
            counts[np.repeat(ragged, positions)] = from_byte_planes(planes)
            ends = np.append(0, np.cumsum(counts))[np.cumsum(positions)]
            if (counts > self.k).any() or (ends != np.cumsum(entries)).any():
                raise misfit()
        return counts


def misfit() -> CorruptShardError:
    """What unpacking raises where counts of entries are not what their record has."""
    return CorruptShardError("the entries of a record do not fit its positions")


def by_plane(data: Bytes, lengths: Int64s) -> Bytes:
    """The bytes of records, each its planes one after another, plane by plane.

    Args:
        lengths: of each plane in each record, (planes, records).
    """
    if lengths.shape[1] == 1:
        return data
    ends = np.cumsum(lengths.T).reshape(lengths.shape[::-1]).T
    out = empty(data.shape, np.uint8)
    engines.cpu().copy(data, (ends - lengths).ravel(), lengths.ravel(), out)
    return out


def join(parts: Sequence[Planes]) -> Planes:
    """Positions one after another."""
    if len(parts) == 1:
        return parts[0]

    def each(planes: Iterable[Sequence[Bytes] | Bytes]) -> list[Bytes]:
        return [np.concatenate(plane) for plane in zip(*planes, strict=True)]

    return Planes(
        gaps=Gaps(
            np.concatenate([part.gaps.first for part in parts]),
            np.concatenate([part.gaps.rest for part in parts]),
        ),
        by_entry=each(part.by_entry for part in parts),
        by_position=each(part.by_position for part in parts),
        counts=np.concatenate([part.counts for part in parts]),
    )


PACKED_FIELDS = [
    pa.field("entries", pa.int32(), nullable=False),
    pa.field("packed", pa.binary(), nullable=False),
]

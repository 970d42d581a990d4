"""The record that compact, lossless and sampled share: planes of entries, then of positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.codecs.frames import Frames, as_binary, byte_planes, from_byte_planes
from softlabels.errors import CorruptShardError

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Planes:
    """Bytes of many records, each plane running through all of them.

    Attributes:
        by_entry: n of (E,); position after position, by ascending rank of the class id within one.
        by_position: m of (P,).
        counts: entries of each position, (P,).
    """

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
class Layout:
    """How many planes a record's frame holds, and the columns that it is written to.

    A record whose positions have fewer than k entries somewhere says how many each has, in four
    more planes of positions.

    Attributes:
        k: entries at a position, at most.
        of_entries, of_positions: planes of each.
        dictionary: of the frames of short records.
    """

    k: int
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
        by_entry = [plane.data for plane in planes.by_entry]
        by_position = [plane.data for plane in planes.by_position]
        counted = [p.data for p in byte_planes(planes.counts.astype(np.uint32), 4)]
        firsts = planes.starts[offsets].tolist()
        for (start, stop), (first, last) in zip(
            pairwise(offsets.tolist()), pairwise(firsts), strict=True
        ):
            record = [plane[first:last] for plane in by_entry]
            record += [plane[start:stop] for plane in by_position]
            if last - first != (stop - start) * self.k:
                record += [plane[start:stop] for plane in counted]
            yield record

    def unpack(self, table: pa.Table) -> tuple[Planes, Int64s]:
        """The inverse of `pack`, from these columns and `positions`; with the offsets.

        Raises:
            CorruptShardError: a frame is damaged, or does not fit its record.
        """
        positions = table.column("positions").to_numpy().astype(np.int64)
        entries = table.column("entries").to_numpy().astype(np.int64)
        if (positions < 0).any() or (entries < 0).any() or (entries > positions * self.k).any():
            raise CorruptShardError("positions and entries contradict each other")
        ragged = entries != positions * self.k
        sizes = entries * self.of_entries + positions * (self.of_positions + 4 * ragged)
        frames = self.frames.unpack(table.column("packed").combine_chunks(), sizes, positions)

        by_entry = np.empty((self.of_entries, int(entries.sum())), np.uint8)
        by_position = np.empty((self.of_positions, int(positions.sum())), np.uint8)
        counts = np.full(by_position.shape[1], self.k, np.int64)
        entry = position = 0
        for frame, held, total, is_ragged in zip(
            frames, positions.tolist(), entries.tolist(), ragged.tolist(), strict=True
        ):
            middle = total * self.of_entries
            end = middle + held * self.of_positions
            inside = slice(position, position + held)
            by_entry[:, entry : entry + total] = frame[:middle].reshape(self.of_entries, total)
            by_position[:, inside] = frame[middle:end].reshape(self.of_positions, held)
            if is_ragged:
                counts[inside] = from_byte_planes(list(frame[end:].reshape(4, held)))
                if (counts[inside] > self.k).any() or counts[inside].sum() != total:
                    raise CorruptShardError("the entries of a record do not fit its positions")
            entry, position = entry + total, position + held
        return Planes(by_entry, by_position, counts), np.append(0, np.cumsum(positions))


def join(parts: Sequence[Planes]) -> Planes:
    """Positions one after another."""
    if len(parts) == 1:
        return parts[0]

    def joined(planes: Iterable[Sequence[Bytes] | Bytes]) -> list[Bytes]:
        return [np.concatenate(each) for each in zip(*planes, strict=True)]

    return Planes(
        by_entry=joined(part.by_entry for part in parts),
        by_position=joined(part.by_position for part in parts),
        counts=np.concatenate([part.counts for part in parts]),
    )


PACKED_FIELDS = [
    pa.field("entries", pa.int32(), nullable=False),
    pa.field("packed", pa.binary(), nullable=False),
]

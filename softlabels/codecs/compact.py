"""The default: id-sorted byte planes, one frame a record, a third of `plain`'s bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs import curves
from softlabels.codecs.frames import Frames, as_binary, byte_planes, from_byte_planes
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.unpack import unpack
from softlabels.errors import CorruptShardError, InputError
from softlabels.labels import SoftLabels

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]

# Added KL of all fields together about 1.2e-4 nats at k = 64 (benchmarks/bench_storage.py).
SCALE = 172
# Levels above 1 save nothing: the planes hold no repetitions, and Huffman codes are all it takes.
_LEVEL = 1
MAX_CLASSES = 1 << 31


@dataclass(frozen=True)
class Compact:
    """Entries by ascending rank of their id; a record is one zstd frame in the column `packed`.

    Error bounds: ids none; a probability p is stored as round(scale · p^⅓), and the kept ones are
    rescaled to 1 − tail; a tail mass sin²θ with θ within 0.0047; logsumexps and hard-label
    log-probs within 2⁻¹¹ nats. Entries of log-prob −∞ are not stored.

    Attributes:
        classes: V, at most 2³¹.
        k: entries at a position, at most.
        temperatures: one log tail a position for each.
        table: class ids by descending frequency.
        logits_known: whether there are logsumexps.
        scale: of the value codes, 1 to 255.
    """

    classes: int
    k: int
    temperatures: tuple[float, ...]
    table: IdTable
    logits_known: bool = True
    scale: int = SCALE
    frames: Frames = field(init=False, repr=False, compare=False)

    ordered: ClassVar[bool] = False
    split_columns: ClassVar[list[str]] = []
    packed_columns: ClassVar[list[str]] = ["packed"]

    def __post_init__(self) -> None:
        if not (1 <= self.k <= self.classes <= MAX_CLASSES and 1 <= self.scale <= 255):
            raise ValueError(
                f"k = {self.k}, {self.classes} classes, scale {self.scale}: k is at most the "
                f"classes, they at most {MAX_CLASSES}, the scale from 1 to 255"
            )
        object.__setattr__(self, "frames", Frames(_LEVEL))

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field("entries", pa.int32(), nullable=False),
            pa.field("packed", pa.binary(), nullable=False),
        ]

    def encode(self, labels: SoftLabels, offsets: Int64s) -> dict[str, pa.Array]:
        counts, gaps, codes = self._entries(labels)
        starts = np.concatenate([[0], np.cumsum(counts)])
        floors = _floors(codes, starts)
        by_entry = [*byte_planes(gaps, self._id_planes), codes - np.repeat(floors, counts)]
        by_position = [floors, *self._scalars(labels)]
        counted = byte_planes(counts.astype(np.uint32), 4)
        entries = starts[offsets[1:]] - starts[offsets[:-1]]
        blobs = []
        for start, stop, total in zip(offsets[:-1], offsets[1:], entries, strict=True):
            inside = slice(starts[start], starts[stop])
            planes = [plane[inside] for plane in by_entry]
            planes += [plane[start:stop] for plane in by_position]
            if total != (stop - start) * self.k:
                planes += [plane[start:stop] for plane in counted]
            blobs.append(self.frames.pack(planes, positions=int(stop - start)))
        return {"entries": pa.array(entries, pa.int32()), "packed": as_binary(blobs)}

    def decode(self, table: pa.Table) -> tuple[SoftLabels, Int64s]:
        positions = table.column("positions").to_numpy().astype(np.int64)
        entries = table.column("entries").to_numpy().astype(np.int64)
        if (positions < 0).any() or (entries < 0).any() or (entries > positions * self.k).any():
            raise CorruptShardError("positions and entries contradict each other")
        ragged = entries != positions * self.k
        scalar_planes = 1 + len(self.temperatures) + 4 * self.logits_known + 4
        sizes = entries * (self._id_planes + 1) + positions * (scalar_planes + 4 * ragged)
        frames = self.frames.unpack(table.column("packed").combine_chunks(), sizes)

        by_entry = np.empty((self._id_planes + 1, int(entries.sum())), np.uint8)
        by_position = np.empty((scalar_planes, int(positions.sum())), np.uint8)
        counts = np.full(by_position.shape[1], self.k, np.int64)
        entry = position = 0
        for frame, held, total, is_ragged in zip(frames, positions, entries, ragged, strict=True):
            middle, end = total * len(by_entry), total * len(by_entry) + held * scalar_planes
            inside = slice(position, position + held)
            by_entry[:, entry : entry + total] = frame[:middle].reshape(len(by_entry), total)
            by_position[:, inside] = frame[middle:end].reshape(scalar_planes, held)
            if is_ragged:
                counts[inside] = from_byte_planes(list(frame[end:].reshape(4, held)))
                if (counts[inside] > self.k).any() or counts[inside].sum() != total:
                    raise CorruptShardError("the entries of a record do not fit its positions")
            entry, position = entry + total, position + held
        return self._labels(by_entry, by_position, counts), np.append(0, np.cumsum(positions))

    def _entries(self, labels: SoftLabels) -> tuple[Int64s, NDArray[np.uint32], Bytes]:
        """Used entries of each position, (N,); gaps of their sorted ranks and codes, (E,)."""
        ids, log_probs = labels.ids.numpy(), labels.log_probs.numpy()
        if labels.k > self.k:
            raise InputError(f"{labels.k} entries at a position; the codec was made for {self.k}")
        used = log_probs != -np.inf
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.classes):
            raise InputError(
                f"class ids from {int(ids.min())} to {int(ids.max())} are not within the codec's "
                f"0 … {self.classes - 1}"
            )
        # One sort of numbers in place of a sort of indices: the rank above, the code below.
        kind = np.uint32 if self.classes < 1 << 24 else np.uint64
        both = self.table.ranks[ids].astype(kind) << kind(8)
        both |= curves.prob_codes(log_probs, self.scale)
        both[~used] = np.iinfo(kind).max
        both.sort(axis=-1)
        ranks, codes = (both >> kind(8)).astype(np.uint32), both.astype(np.uint8)
        gaps = ranks.copy()
        gaps[:, 1:] -= ranks[:, :-1] + np.uint32(1)
        counts = used.sum(-1)
        kept = np.arange(labels.k) < counts[:, None]
        if bool((kept[:, 1:] & (ranks[:, 1:] == ranks[:, :-1])).any()):
            raise InputError("a class is kept twice at one position")
        return counts, gaps[kept], codes[kept]

    def _scalars(self, labels: SoftLabels) -> list[Bytes]:
        """Planes of what a position has once."""
        count = len(labels)
        planes: list[Bytes] = []
        if self.temperatures:
            if labels.log_tails is None or labels.temperatures != self.temperatures:
                raise InputError(
                    f"labels hold log tails at {labels.temperatures}, the codec writes "
                    f"{self.temperatures}"
                )
            planes += list(np.ascontiguousarray(curves.tail_codes(labels.log_tails.numpy()).T))
        if self.logits_known:
            if labels.logsumexp is None:
                raise InputError("labels without logsumexp, but the teacher's logits are known")
            planes += byte_planes(curves.logsumexp_codes(labels.logsumexp.numpy()), 4)
        hard = labels.hard_log_probs
        unknown = np.full(count, np.nan, np.float32)
        return planes + byte_planes(curves.hard_codes(unknown if hard is None else hard.numpy()), 4)

    def _labels(self, by_entry: Bytes, by_position: Bytes, counts: Int64s) -> SoftLabels:
        starts = np.append(0, np.cumsum(counts))
        codes = by_entry[-1] + np.repeat(by_position[0], counts)
        ids, log_probs, cubes = unpack(by_entry[:-1], codes, starts, self.table.ids, self.k)
        tails = curves.code_log_tails()[by_position[1 : 1 + len(self.temperatures)].T]
        rest = by_position[1 + len(self.temperatures) :]
        logsumexp = None
        if self.logits_known:
            logsumexp = torch.from_numpy(curves.code_logsumexps(from_byte_planes(list(rest[:4]))))
        log_probs += self._shift(cubes, tails)[:, None]
        return SoftLabels(
            ids=torch.from_numpy(ids),
            log_probs=torch.from_numpy(log_probs),
            logsumexp=logsumexp,
            log_tails=torch.from_numpy(tails) if self.temperatures else None,
            temperatures=self.temperatures,
            hard_log_probs=torch.from_numpy(curves.code_hard(from_byte_planes(list(rest[-4:])))),
        )

    def _shift(self, cubes: Int64s, tails: NDArray[np.float32]) -> NDArray[np.float32]:
        """What turns the log of a code's cube into a log-prob, (N,)."""
        if 1.0 not in self.temperatures:
            return np.full(len(cubes), -3 * np.log(self.scale), np.float32)
        tail = tails[:, self.temperatures.index(1.0)].astype(np.float64)
        kept = np.log(-np.expm1(tail)) - np.log(np.maximum(cubes, 1))
        return kept.astype(np.float32)

    @property
    def _id_planes(self) -> int:
        return max(1, -(-(self.classes - 1).bit_length() // 8))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": "compact",
            "classes": self.classes,
            "k": self.k,
            "temperatures": list(self.temperatures),
            "table": self.table.to_text(),
            "logits_known": self.logits_known,
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        classes = int(data["classes"])
        return cls(
            classes=classes,
            k=int(data["k"]),
            temperatures=tuple(float(t) for t in data["temperatures"]),
            table=IdTable.from_text(classes, data["table"]),
            logits_known=bool(data["logits_known"]),
            scale=int(data["scale"]),
        )


def _floors(codes: Bytes, starts: Int64s) -> Bytes:
    """The smallest code of each position, 0 where it has none."""
    counts = np.diff(starts)
    floors = np.zeros(len(counts), np.uint8)
    some = counts > 0
    if some.any():
        floors[some] = np.minimum.reduceat(codes, starts[:-1][some])
    return floors

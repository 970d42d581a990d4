"""Probes: a few positions kept dense and lossless, to measure a set whose teacher is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.codecs.frames import SHORT_POSITIONS, Frames, frames_of, sizes_of
from softlabels.codecs.lossless import DTYPES
from softlabels.errors import CorruptShardError

Int64s = NDArray[np.int64]

# Dense logits are large: this many are in memory together.
_ROW_GROUP = 64
_DTYPE = "softlabels.dtype"
_SCHEMA = pa.schema(
    [
        pa.field("record", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("logits", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Probes:
    """Dense logits of n positions.

    Attributes:
        records: number of the record, in the set or, in a file, in its shard, (n,).
        positions: which of its tokens, (n,).
        logits: in the teacher's dtype, bit for bit, (n, V).
    """

    records: Int64s
    positions: Int64s
    logits: torch.Tensor

    def __len__(self) -> int:
        return len(self.records)


def quota(probes: int, rows: range, total: int) -> int:
    """A unit's share of a number of probes, by its source rows of a total."""
    return probes * rows.stop // total - probes * rows.start // total


def choose(positions: int, count: int, unit: int) -> NDArray[np.bool_]:
    """Which of a unit's positions are probed, bool, (positions,): a function of these numbers."""
    raw = np.random.PCG64(np.random.SeedSequence(unit)).random_raw(positions)
    chosen = np.zeros(positions, bool)
    chosen[np.argsort(raw, kind="stable")[:count]] = True
    return chosen


def write(path: Path, probes: Probes) -> None:
    """Write a unit's probes to a new file."""
    frames = Frames()
    name = {dtype: name for name, dtype in DTYPES.items()}[probes.logits.dtype]
    width = probes.logits.dtype.itemsize
    metadata = {_DTYPE: name}
    with pq.ParquetWriter(
        path, _SCHEMA.with_metadata(metadata), compression="NONE", use_dictionary=False,
        write_statistics=False, write_page_checksum=True,
    ) as writer:  # fmt: skip
        for start in range(0, len(probes), _ROW_GROUP):
            rows = slice(start, start + _ROW_GROUP)
            raw = probes.logits[rows].contiguous().view(torch.uint8).numpy()
            blobs = [
                frames.pack(
                    [plane.data for plane in np.ascontiguousarray(row.reshape(-1, width).T)],
                    positions=SHORT_POSITIONS,
                )
                for row in raw
            ]
            columns = [
                pa.array(probes.records[rows]),
                pa.array(probes.positions[rows].astype(np.int32)),
                pa.array(blobs, pa.binary()),
            ]
            writer.write_table(pa.table(columns, schema=_SCHEMA.with_metadata(metadata)))


def read(path: Path, *, classes: int, name: str) -> Iterator[Probes]:
    """A unit's probes, a row group at a time; record numbers are those of the shard.

    Args:
        classes: V.
        name: how errors call the file.

    Raises:
        CorruptShardError: it is missing, or not what was written.
    """
    try:
        file = pq.ParquetFile(pa.memory_map(str(path)), page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        found = metadata.get(_DTYPE.encode(), b"").decode(errors="replace")
        if found not in DTYPES or file.schema_arrow.remove_metadata() != _SCHEMA:
            raise CorruptShardError(f"{name}: these are no probes")
        width = DTYPES[found].itemsize
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            count = len(table)
            frames, places = frames_of(table["logits"])
            size = np.full(count, classes * width)
            sizes_of(frames, places, least=size, most=size)
            positions = np.full(count, SHORT_POSITIONS)
            data = Frames().unpack(frames, places, sizes=size, positions=positions)
            raw = data.reshape(count, width, classes).transpose(0, 2, 1).reshape(count, -1)
            logits = torch.from_numpy(raw).view(DTYPES[found])
            yield Probes(
                numpy_of(table["record"]),
                numpy_of(table["position"]).astype(np.int64),
                logits,
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptShardError(f"{name}: it cannot be read ({error})") from None
    except CorruptShardError as error:
        raise CorruptShardError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None

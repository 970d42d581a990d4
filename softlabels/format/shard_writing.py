"""Writing a shard: a Parquet file of one work unit's records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from softlabels.codecs import Codec
from softlabels.format.records import Records, to_table
from softlabels.format.summary import META, UnitSummary
from softlabels.parallel import in_order

# Smaller row groups cost compression and speed; larger ones cost memory per random lookup.
ROW_GROUP_POSITIONS = 16_384
_MOST_THREADS, _ENTRIES_AT_A_TIME = 4, 1 << 25
_KEY = ("key", "part", "view")


def write(
    path: Path,
    records: Records,
    summary: UnitSummary,
    *,
    schema: pa.Schema,
    codec: Codec,
    plan_digest: str,
    encoded: pa.Table | None = None,
) -> None:
    """Write a unit's records to a new file.

    Args:
        encoded: the codec's columns of all records, where they are encoded already: the labels of
            `records` are not looked at then.
    """

    def table_of(bounds: tuple[int, int]) -> pa.Table:
        """A row group; several threads make some at a time."""
        start, stop = bounds
        part = records.slice(start, stop)
        if encoded is None:
            return to_table(part, codec.encode(part.labels, part.label_offsets), schema)
        columns = encoded.slice(start, stop - start)
        return to_table(part, dict(zip(columns.column_names, columns.columns, strict=True)), schema)

    split, listed = (
        [name for name in names if name.split(".")[0] in schema.names]
        for names in (codec.split_columns, codec.dictionary_columns)
    )
    with pq.ParquetWriter(
        path,
        schema,
        compression={
            leaf: "NONE" if leaf in codec.packed_columns else "ZSTD" for leaf in _leaves(schema)
        },
        use_dictionary=listed or False,
        write_statistics=False,
        use_byte_stream_split=[*split, "input_ids.list.element"],
        write_page_checksum=True,
        use_content_defined_chunking=True,
    ) as writer:
        for table in in_order(table_of, _row_groups(records), workers=_threads(records)):
            writer.write_table(table, row_group_size=max(1, len(table)))
        ends = [0, len(records) - 1] if len(records) else []
        first_last = [[records.identity.column(c)[i].as_py() for c in _KEY] for i in ends]
        metadata = {
            "plan": plan_digest,
            "unit": str(summary.unit),
            "source_rows": str(summary.source_rows),
            "input_digest": summary.input_digest,
            "first": json.dumps(first_last[0] if ends else None),
            "last": json.dumps(first_last[-1] if ends else None),
            "rejects": json.dumps(summary.rejects),
            "truncated": str(summary.truncated),
        }
        writer.add_key_value_metadata({META + k: v for k, v in metadata.items()})


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(index).path for index in range(len(columns))]


def _threads(records: Records) -> int:
    """How many row groups are encoded or decoded at a time.

    The last unit of a job is written while no teacher runs; before, the teacher needs the cores.
    """
    entries = records.labels.entries // max(1, len(records.labels)) * ROW_GROUP_POSITIONS
    some = min(_MOST_THREADS, torch.get_num_threads() // 2)
    return max(1, min(some, _ENTRIES_AT_A_TIME // max(1, entries)))


def _row_groups(records: Records) -> Iterable[tuple[int, int]]:
    start = 0
    for stop in range(1, len(records) + 1):
        held = records.label_offsets[stop] - records.label_offsets[start]
        if held >= ROW_GROUP_POSITIONS or stop == len(records):
            yield start, stop
            start = stop

"""Makes the golden sets from the literals by docs/FORMAT.md alone: no softlabels here.

    python tests/golden/make.py NAME …       # writes into tests/golden/; run only for a new set

Sets that were released are never made again: they are what must stay readable.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from frames import with_frames
from golden import SETS, GoldenSet, Unit
from golden_packed import PACKED

COUNTS = ("positions", "entries", "source_rows", "bytes", "rejects", "truncated")


def main() -> None:
    for name in sys.argv[1:]:
        golden = with_frames(PACKED[name]) if name in PACKED else SETS[name]
        write_set(Path(__file__).parent / name, golden)


def write_set(root: Path, golden: GoldenSet) -> None:
    (root / "data").mkdir(parents=True)
    plan = json.dumps(golden.plan, indent=2).encode()
    (root / "plan.json").write_bytes(plan)
    units = enumerate(golden.units)
    receipts = [write_shard(root, golden, number, unit, sha256(plan)) for number, unit in units]
    table = digested(receipts) if golden.digested else parquet(receipts, RECEIPT)
    files = {"shards.parquet": table}
    rejects = [{"unit": n, **r} for n, unit in enumerate(golden.units) for r in unit.rejects]
    if rejects:
        key = golden.schema.field("key").type
        columns = [("unit", pa.int64()), ("key", key), ("part", pa.int32()), ("reason", "string")]
        files["rejects.parquet"] = parquet(rejects, pa.schema(columns))
    files["README.md"] = golden.card.encode()
    files["keys.index"] = keys_index([row["key"] for unit in golden.units for row in unit.rows])
    for name, data in files.items():
        (root / name).write_bytes(data)
    totals = {name: sum(r[name] for r in receipts) for name in ("rows", *COUNTS)}
    manifest = {
        "format": golden.plan["format"],
        "plan_sha256": sha256(plan),
        "totals": {"shards": len(receipts), "records": totals.pop("rows"), **totals},
        "files": {name: sha256(data) for name, data in files.items()},
    }
    if golden.digested:
        end = table[-footer_bytes(table) :]
        manifest["shards_footer"] = {"bytes": len(end), "sha256": sha256(end)}
    (root / "manifest.json").write_text(json.dumps(manifest, indent=2))


def write_shard(
    root: Path, golden: GoldenSet, number: int, unit: Unit, plan_digest: str
) -> dict[str, Any]:
    name = f"data/train-{number:05d}.parquet"
    path = root / name
    rows = [
        {
            **row,
            "input_digest": input_digest(unit.sources[row["key"]]),
            "prepared_digest": prepared_digest(row.pop("tokens")),
        }
        for row in map(dict, unit.rows)
    ]
    digests = ((canonical(key) + input_digest(values)) for key, values in unit.sources.items())
    of_unit = xxhash.xxh3_128_hexdigest(b"".join(digests))
    ends = [[row["key"], row["part"], row["view"]] for row in rows] or [None]
    footer = {
        "plan": plan_digest,
        "unit": str(number),
        "source_rows": str(len(unit.sources)),
        "input_digest": of_unit,
        "first": json.dumps(ends[0]),
        "last": json.dumps(ends[-1]),
        "rejects": json.dumps(unit.rejects),
        "truncated": "0",
    }
    with pq.ParquetWriter(
        path, golden.schema, compression="zstd", use_dictionary=False, write_page_checksum=True
    ) as writer:
        if rows:  # a unit without records has no row group
            writer.write_table(pa.Table.from_pylist(rows, golden.schema))
        writer.add_key_value_metadata({f"softlabels.{k}": v for k, v in footer.items()})
    data = path.read_bytes()
    end = data[-footer_bytes(data) :]
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    chunks = [[group.column(c) for c in range(group.num_columns)] for group in groups]
    return {
        "path": name,
        "unit": number,
        "rows": len(rows),
        "positions": sum(row["positions"] for row in rows),
        "entries": sum(row["positions"] for row in rows) * golden.plan["selection"]["k"],
        "source_rows": len(unit.sources),
        "bytes": len(data),
        "sha256": sha256(data),
        "footer_bytes": len(end),
        "footer_sha256": sha256(end),
        "group_rows": [group.num_rows for group in groups],
        "chunk_digests": [[chunk_digest(data, chunk) for chunk in group] for group in chunks],
        "input_digest": of_unit,
        "rejects": len(unit.rejects),
        "truncated": 0,
    }


def keys_index(keys: list[Any]) -> bytes:
    def key_hash(key: Any) -> int:
        data = struct.pack("<q", key) if isinstance(key, int) else key.encode()
        return xxhash.xxh3_64_intdigest(data)

    pairs = sorted((key_hash(key), record) for record, key in enumerate(keys))
    columns = [*(hashed for hashed, _ in pairs), *(record for _, record in pairs)]
    return struct.pack(f"<{len(columns)}Q", *columns)


def chunk_digest(data: bytes, chunk: Any) -> str:
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    return xxhash.xxh3_64_hexdigest(data[start : start + chunk.total_compressed_size])


def footer_bytes(data: bytes) -> int:
    return int(struct.unpack("<I", data[-8:-4])[0]) + 8


def input_digest(values: list[Any]) -> bytes:
    return xxhash.xxh3_64_digest(b"".join(map(canonical, values)))


def prepared_digest(tokens: list[int]) -> bytes:
    return xxhash.xxh3_64_digest(struct.pack(f"<{len(tokens)}I", *tokens))


def canonical(value: Any) -> bytes:
    if isinstance(value, int):
        return b"\x02" + struct.pack("<q", value)
    if isinstance(value, str):
        data = value.encode()
        return b"\x04" + struct.pack("<Q", len(data)) + data
    assert isinstance(value, list)
    return b"\x06" + struct.pack("<Q", len(value)) + b"".join(map(canonical, value))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, write_page_checksum=True)
    return bytes(sink.getvalue())


def digested(receipts: list[dict[str, Any]]) -> bytes:
    """A shard table of one shard a row group, with the digests of its own chunks in the footer."""
    packed = [
        {**one, "chunk_digests": bytes.fromhex("".join(map("".join, one["chunk_digests"])))}
        for one in receipts
    ]
    place = RECEIPT.get_field_index("chunk_digests")
    schema = RECEIPT.set(place, pa.field("chunk_digests", pa.binary()))
    table = pa.Table.from_pylist(packed, schema)

    def written(metadata: dict[str, str]) -> bytes:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, write_page_checksum=True) as writer:
            writer.write_table(table, row_group_size=1)
            writer.add_key_value_metadata(metadata)
        return bytes(sink.getvalue())

    draft = written({})
    metadata = pq.ParquetFile(pa.BufferReader(draft)).metadata
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    digests = "".join(chunk_digest(draft, chunk) for chunk in chunks)
    return written({"softlabels.chunk_digests": digests})


RECEIPT = pa.schema(
    [
        ("path", pa.string()),
        *((name, pa.int64()) for name in ("unit", "rows", "positions", "entries", "source_rows")),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("footer_bytes", pa.int64()),
        ("footer_sha256", pa.string()),
        ("group_rows", pa.list_(pa.int64())),
        ("chunk_digests", pa.list_(pa.list_(pa.string()))),
        ("input_digest", pa.string()),
        ("rejects", pa.int64()),
        ("truncated", pa.int64()),
    ]
)


if __name__ == "__main__":
    main()

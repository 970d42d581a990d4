"""manifest.json and shards.parquet: totals and a receipt of every shard; written last."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from softlabels.errors import LabelSetError
from softlabels.labelset.plan import first_problem

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
# Relative, below the set, and without "..": a manifest cannot point anywhere else.
_NAME = r"\w[\w-]*(\.[\w-]+)*"
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(/{_NAME})*$")]


class Receipt(BaseModel):
    """One shard as it was published; a row of shards.parquet.

    Attributes:
        path: relative to the set, "data/train-00003.parquet".
        unit: number of the work unit it holds.
        rows: records; positions and entries are counted over them.
        source_rows: source rows of the unit, rejected ones included.
        bytes: size of the file; `sha256` is of the whole file, `footer_sha256` of its last
            footer_bytes bytes.
        group_rows: records in each row group.
        chunk_digests: xxh3-64, hex, of each column chunk's bytes, row group by row group.
        input_digest: of the unit's keys and source columns.
        rejects, truncated: samples not labelled, and samples that lost their end.
        probes: positions whose dense logits are in the unit's file of probes, and its digest.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: RelativePath
    unit: Count
    rows: Count
    positions: Count
    entries: Count
    source_rows: Count
    bytes: Count
    sha256: Sha256
    footer_bytes: Count
    footer_sha256: Sha256
    group_rows: tuple[Count, ...]
    chunk_digests: tuple[tuple[str, ...], ...]
    input_digest: str
    rejects: Count = 0
    truncated: Count = 0
    probes: Count = 0
    probes_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if sum(self.group_rows) != self.rows or len(self.group_rows) != len(self.chunk_digests):
            raise ValueError("group_rows fit neither rows nor chunk_digests")
        return self


class Totals(BaseModel):
    """Sums over the shards."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    shards: Count
    records: Count
    positions: Count
    entries: Count
    source_rows: Count
    bytes: Count
    rejects: Count
    truncated: Count
    probes: Count = 0


class Manifest(BaseModel):
    """What makes a set finished.

    Attributes:
        plan_sha256: of plan.json.
        totals: over all shards.
        files: sha256 of every other file of the set, shards.parquet among them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: str
    plan_sha256: Sha256
    totals: Totals
    files: dict[RelativePath, Sha256]

    def to_bytes(self) -> bytes:
        """manifest.json, byte for byte."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse(data: bytes, *, where: str) -> Manifest:
    """Validate manifest.json; raises `LabelSetError`."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise LabelSetError(f"{where}: {first_problem(error)}") from None


def parse_receipt(data: bytes, *, where: str) -> Receipt:
    """Validate a receipt; raises `LabelSetError`."""
    try:
        return Receipt.model_validate_json(data)
    except ValidationError as error:
        raise LabelSetError(f"{where}: {first_problem(error)}") from None


def total(receipts: Sequence[Receipt]) -> Totals:
    """Sum the shards."""
    return Totals(
        shards=len(receipts),
        records=sum(r.rows for r in receipts),
        positions=sum(r.positions for r in receipts),
        entries=sum(r.entries for r in receipts),
        source_rows=sum(r.source_rows for r in receipts),
        bytes=sum(r.bytes for r in receipts),
        rejects=sum(r.rejects for r in receipts),
        truncated=sum(r.truncated for r in receipts),
        probes=sum(r.probes for r in receipts),
    )


_SCHEMA = pa.schema(
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
        ("probes", pa.int64()),
        ("probes_sha256", pa.string()),
    ]
)


def shard_table(receipts: Sequence[Receipt]) -> bytes:
    """shards.parquet."""
    rows = [receipt.model_dump(mode="json") for receipt in receipts]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, _SCHEMA)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def parse_shard_table(data: bytes, *, where: str) -> list[Receipt]:
    """Validate shards.parquet; raises `LabelSetError`."""
    try:
        # No thread, and no Python file: one of Arrow's that still lets go of a Python object when
        # the interpreter ends aborts the process ("terminate called without an active exception").
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read(use_threads=False)
        rows: list[dict[str, Any]] = table.to_pylist()
        return [Receipt.model_validate(row) for row in rows]
    except (pa.ArrowException, OSError) as error:
        raise LabelSetError(f"{where}: cannot be read: {error}") from None
    except ValidationError as error:
        raise LabelSetError(f"{where}: {first_problem(error)}") from None

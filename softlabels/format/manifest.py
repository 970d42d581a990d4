"""manifest.json and shards.parquet: totals and a receipt of every shard; written last."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from softlabels.errors import LabelSetError
from softlabels.format import digested
from softlabels.format.digested import Footer
from softlabels.format.plan import first_problem

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
# Sums of them stay within int64, and len() of a set below its limit.
MOST = 1 << 53
Count = Annotated[int, Field(ge=0, le=MOST)]
# Relative, below the set, and without "..": a manifest cannot point anywhere else.
_NAME = r"\w[\w-]*(\.[\w-]+)*"
PATH = rf"^{_NAME}(/{_NAME})*$"
RelativePath = Annotated[str, StringConstraints(pattern=PATH)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        seconds: that labelling and writing it took whoever published it, while other units may
            have been read or written; None where that is not known, as of a receipt that was
            rebuilt from its shard. It says how the shard was made, and not what it is.
        accelerator: where the teacher ran, such as "cpu" or the CUDA device's name; likewise.
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
    chunk_digests: tuple[tuple[Digest, ...], ...]
    input_digest: str
    rejects: Count = 0
    truncated: Count = 0
    probes: Count = 0
    probes_sha256: Sha256 | None = None
    seconds: Seconds | None = None
    accelerator: str | None = None

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if sum(self.group_rows) != self.rows or len(self.group_rows) != len(self.chunk_digests):
            raise ValueError("group_rows fit neither rows nor chunk_digests")
        if len({len(digests) for digests in self.chunk_digests}) > 1:
            raise ValueError("chunk_digests are of another number of columns in each row group")
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


class TableFooter(BaseModel):
    """The end of shards.parquet, which has the digests of everything before it.

    Attributes:
        bytes: the Parquet metadata with its length and the closing magic.
        sha256: of these.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    bytes: Count
    sha256: Sha256


class Manifest(BaseModel):
    """What makes a set finished.

    Attributes:
        plan_sha256: of plan.json.
        totals: over all shards.
        files: sha256 of every other file of the set, shards.parquet among them.
        shards_footer: by which parts of shards.parquet are checked; None: only as a whole.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: str
    plan_sha256: Sha256
    totals: Totals
    files: dict[RelativePath, Sha256]
    shards_footer: TableFooter | None = None

    def to_bytes(self) -> bytes:
        """manifest.json, byte for byte."""
        return (self.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


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


_SUMMED = ("positions", "entries", "source_rows", "bytes", "rejects", "truncated", "probes")


def total(receipts: Iterable[Receipt]) -> Totals:
    """Sum the shards."""
    shards = records = 0
    sums = dict.fromkeys(_SUMMED, 0)
    for receipt in receipts:
        shards += 1
        records += receipt.rows
        for name in _SUMMED:
            sums[name] += getattr(receipt, name)
    return Totals(shards=shards, records=records, **sums)


_NUMBERS = ("unit", "rows", "positions", "entries", "source_rows", "bytes")
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        *((name, pa.int64()) for name in _NUMBERS),
        ("sha256", pa.string()),
        ("footer_bytes", pa.int64()),
        ("footer_sha256", pa.string()),
        ("group_rows", pa.list_(pa.int64())),
        ("chunk_digests", pa.binary()),
        ("input_digest", pa.string()),
        ("rejects", pa.int64()),
        ("truncated", pa.int64()),
        ("probes", pa.int64()),
        ("probes_sha256", pa.string()),
        ("seconds", pa.float64()),
        ("accelerator", pa.string()),
    ]
)
_LEAVES = [f"{f.name}.list.element" if f.name == "group_rows" else f.name for f in _SCHEMA]
_DIGEST_HEX = 16
# To open one shard a row group of the table is read: 2 MiB of digests take a millisecond.
_GROUP_SHARDS, _GROUP_DIGESTS = 1024, 1 << 18
_SETTINGS: dict[str, Any] = {
    "compression": {name: "NONE" if name == "chunk_digests" else "ZSTD" for name in _LEAVES},
    "use_dictionary": ["group_rows.list.element"],
}


def shard_table(receipts: Iterable[Receipt]) -> bytes:
    """shards.parquet, in memory."""
    draft, final = io.BytesIO(), io.BytesIO()
    digested.write(draft, _tables(receipts), _SCHEMA, **_SETTINGS)
    digested.sign(pa.BufferReader(draft.getvalue()), final, **_SETTINGS)
    return final.getvalue()


def write_shard_table(file: Path, receipts: Iterable[Receipt]) -> TableFooter:
    """shards.parquet, in memory that does not grow with it.

    Args:
        file: is made; beside it, for a while, one with ".draft" after its name.

    Returns:
        what the manifest says of it in `shards_footer`.
    """
    draft = file.with_name(f"{file.name}.draft")
    try:
        digested.write(draft, _tables(receipts), _SCHEMA, **_SETTINGS)
        with pa.OSFile(str(draft)) as source:
            digested.sign(source, file, **_SETTINGS)
    finally:
        draft.unlink(missing_ok=True)
    with pa.OSFile(str(file)) as written:
        return TableFooter(**asdict(Footer.of(written)))


def _tables(receipts: Iterable[Receipt]) -> Iterator[pa.Table]:
    """Row groups of the table."""
    rows: list[dict[str, Any]] = []
    digests = 0
    for receipt in receipts:
        packed = bytes.fromhex("".join(itertools.chain.from_iterable(receipt.chunk_digests)))
        rows.append(receipt.model_dump(exclude={"chunk_digests"}) | {"chunk_digests": packed})
        digests += 2 * len(packed) // _DIGEST_HEX
        if len(rows) == _GROUP_SHARDS or digests >= _GROUP_DIGESTS:
            yield pa.Table.from_pylist(rows, _SCHEMA)
            rows, digests = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, _SCHEMA)


def parse_row(row: dict[str, Any]) -> Receipt:
    """A row of the table, of this layout or an earlier one; raises `ValidationError`."""
    packed = row.get("chunk_digests")
    if isinstance(packed, bytes):  # in earlier tables, lists of hex as in a receipt's JSON
        groups = len(row["group_rows"] or ())
        row = row | {"chunk_digests": _digests_of(packed, groups)}
    return Receipt.model_validate(row)


def _digests_of(packed: bytes, groups: int) -> list[list[str]]:
    """Of each row group; what does not fit comes out so that a receipt refuses it."""
    text = packed.hex()
    each = [text[at : at + _DIGEST_HEX] for at in range(0, len(text), _DIGEST_HEX)]
    columns = max(1, -(-len(each) // groups) if groups else len(each))
    return [each[at : at + columns] for at in range(0, len(each), columns)]

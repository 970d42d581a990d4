"""What a finished set says of its shards: the shard table, the key index, rejects and the card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.errors import quoted
from softlabels.format import layout, manifest
from softlabels.format.digested import DigestedTable, Footer
from softlabels.format.keys import write_index
from softlabels.format.manifest import Receipt, TableFooter, Totals
from softlabels.format.plan import Plan
from softlabels.format.receipts import Receipts
from softlabels.format.shard import Shard, keys_of_samples
from softlabels.inputs.sources import check_unique
from softlabels.labelset.card import card


@dataclass(frozen=True)
class Tables:
    """The tables, in a folder.

    Attributes:
        names: of its files, in the order in which they are to be published.
        totals: over all shards.
        footer: of the shard table.
    """

    names: tuple[str, ...]
    totals: Totals
    footer: TableFooter


def write_tables(
    folder: Path,
    made: Iterable[Receipt],
    *,
    plan: Plan,
    key_type: pa.DataType,
    open_shard: Callable[[Receipt], Shard],
) -> Tables:
    """Write them, in memory that does not grow with the number of shards.

    Args:
        folder: for them, and for unfinished files.
        made: the receipts of all shards, in order; walked through once.

    Raises:
        DuplicateKeyError: a stream brought a key twice.
    """
    table = folder / layout.SHARDS
    footer = manifest.write_shard_table(table, made)
    expected = Footer(footer.bytes, footer.sha256)
    shards = Receipts(DigestedTable(table, where=layout.SHARDS, footer=expected))
    totals = shards.totals
    if plan.data.key is not None:
        _check_unique(shards, plan, open_shard)
    keys = _keys(shards, open_shard)
    write_index(folder / layout.KEYS, keys, records=totals.records, scratch=folder)
    (folder / layout.CARD).write_bytes(card(plan, totals, split=plan.split).encode())
    names = [layout.SHARDS, layout.KEYS, layout.CARD]
    if totals.rejects:
        _write_rejects(folder / layout.REJECTS, shards, key_type, open_shard)
        names.append(layout.REJECTS)
    return Tables(tuple(names), totals, footer)


def _check_unique(shards: Receipts, plan: Plan, open_shard: Callable[[Receipt], Shard]) -> None:
    def keys() -> Iterator[pa.Array]:
        for receipt in shards:
            yield from keys_of_samples(open_shard(receipt))

    rows = shards.totals.source_rows
    check_unique(keys, rows, where=f"the stream's column {quoted(plan.data.key)}")


def _keys(shards: Receipts, open_shard: Callable[[Receipt], Shard]) -> Iterator[pa.ChunkedArray]:
    """The key of every record."""
    for receipt in shards:
        yield open_shard(receipt).keys()


def _write_rejects(
    file: Path, shards: Receipts, key_type: pa.DataType, open_shard: Callable[[Receipt], Shard]
) -> None:
    rows: list[dict[str, Any]] = []
    for place in shards.numbers("rejects").nonzero()[0].tolist():
        receipt = shards[place]
        found = open_shard(receipt).summary().rejects
        rows.extend({"unit": receipt.unit, **reject} for reject in found)
    columns = pa.schema(
        [("unit", pa.int64()), ("key", key_type), ("part", pa.int32()), ("reason", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist(rows, columns), file, write_page_checksum=True)

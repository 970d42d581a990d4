"""axolotl's columns: `target_token_ids`, `target_logprobs` and `target_mask`, k at every token.

Row j is the distribution over token j + 1, as axolotl's own documentation has it now; in sets made
for its first versions it is the one over token j, which the check of alignment finds. A mask of 0
takes an entry out. Log-probs may have been scaled to sum to 1 over the k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.format.records import Records
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.formats import parquet
from softlabels.sharing.formats.sample import Sample, check_exportable, samples
from softlabels.sharing.formats.windows import COLUMNS

_COLUMNS = ("input_ids", "target_token_ids", "target_logprobs", "target_mask")
# What it pads log-probs with, because −inf makes NaN of a masked loss.
_PADDING = np.float32(-1e9)
_IGNORED = -100


@dataclass(frozen=True)
class Axolotl:
    """Parquet files with its columns.

    Attributes:
        source: a file, or a folder of them.
        key: the column of keys, if rows are to have other keys than their numbers.
        part: as of `FloatLists`.
    """

    source: Path
    key: str | None = None
    part: str | None = None
    classes: ClassVar[int | None] = None
    rounding: ClassVar[float] = 1e-2

    def longest(self) -> int:
        """See `Format`."""
        return parquet.longest(self.source, "input_ids")

    def read(self) -> Iterator[Sample]:
        """See `Format`."""
        named = parquet.windows_columns(self.source, key=self.key, part=self.part)
        own = [*named.values(), *([self.key] if self.key else [])]
        columns = [*_COLUMNS, *own]
        for file, first, table in parquet.batches(self.source, columns):
            where = f"{file}, rows {first} to {first + len(table) - 1}"
            ids, values, mask = (parquet.nested(file, table[n], n) for n in _COLUMNS[1:])
            if not (ids.fits(values) and ids.fits(mask)):
                raise InputError(f"{where}: the columns have lists of different lengths")
            used = mask.padded(0) != 0
            kept = np.where(used, parquet.whole(ids.padded(0), f"{where}: target_token_ids"), 0)
            logs = values.padded(-np.inf).astype(np.float32)
            if np.isnan(logs[used]).any():
                raise InputError(f"{where}: a value of target_logprobs is NaN")
            logs = np.where(used & (logs > _PADDING), logs, -np.inf).astype(np.float32)
            yield from samples(
                str(file),
                first,
                keys=parquet.keys(table, self.key, file=file, first=first),
                windows=parquet.windows_of(table, named, file=file, first=first),
                tokens=parquet.token_lists(file, first, table["input_ids"]),
                rows=ids.rows,
                ids=kept,
                log_probs=logs,
            )

    def write(self, labels: LabelSet, out: Path) -> int:
        """See `Format`; what is said of a token that a record does not hold has no place in it."""
        check_exportable(labels, "axolotl's columns")
        numbers, lists = pa.list_(pa.int64()), pa.list_(pa.list_(pa.int64()))
        schema = pa.schema(
            [
                ("key", pa.string() if labels.plan.data.key_type == "string" else pa.int64()),
                *((name, pa.int32()) for name in COLUMNS),
                ("input_ids", numbers),
                ("attention_mask", numbers),
                ("labels", numbers),
                ("target_token_ids", lists),
                ("target_logprobs", pa.list_(pa.list_(pa.float32()))),
                ("target_mask", lists),
            ]
        )
        out.mkdir(parents=True, exist_ok=True)
        count = 0
        with pq.ParquetWriter(out / "data_0.parquet", schema, compression="zstd") as writer:
            for records in labels.groups():
                writer.write_table(pa.table(_columns(records), schema=schema))
                count += len(records)
        return count


def _columns(records: Records) -> list[pa.Array]:
    tokens = records.token_ids
    assert tokens is not None
    k, ends = records.soft.k, records.token_offsets
    last = np.zeros(len(tokens), bool)
    last[ends[1:][np.diff(ends) > 0] - 1] = True
    ids = np.zeros((len(tokens), k), np.int64)
    logs = np.full((len(tokens), k), _PADDING, np.float32)
    found = records.soft.log_probs.numpy().astype(np.float32)
    ids[records.wanted] = records.soft.ids.numpy()
    logs[records.wanted] = np.where(found > _PADDING, found, _PADDING)
    mask: NDArray[np.bool_] = (logs > _PADDING) & ~last[:, None]
    # The last row of a record is masked, so that of the one before tells nothing of a first token.
    told = np.append(False, mask.any(1))[: len(tokens)]
    outer = pa.array(ends.astype(np.int32))

    def flat(values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(outer, pa.array(values))

    def rows(values: Any) -> pa.Array:
        inner = pa.array((np.arange(len(tokens) + 1) * k).astype(np.int32))
        return flat(pa.ListArray.from_arrays(inner, pa.array(values.reshape(-1))))

    return [
        *(records.identity[name].combine_chunks() for name in ("key", *COLUMNS)),
        flat(tokens),
        flat(np.ones(len(tokens), np.int64)),
        flat(np.where(told, tokens, _IGNORED)),
        rows(ids),
        rows(logs),
        rows(mask.astype(np.int64)),
    ]

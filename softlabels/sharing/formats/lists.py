"""Plain lists: a row has token ids, and at each position a list of classes and one of values.

The way of DistillKit without compression (`token_ids`, `top_values`), and of most sets that people
publish. Values are log-probs or probabilities; which, is seen from them.
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

from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.formats import parquet
from softlabels.sharing.formats.sample import Sample, check_exportable, samples
from softlabels.sharing.formats.windows import COLUMNS

# What float16 makes of 1.
_ABOVE = 2e-3


@dataclass(frozen=True)
class FloatLists:
    """Parquet files with such columns.

    Attributes:
        source: a file, or a folder of them.
        tokens, ids, values: names of the columns.
        key: of the column of keys, if rows are to have other keys than their numbers.
        part: of the column that numbers the windows of a key, which stand one after another; by
            default "part", where there is one of whole numbers, and `source_start` and
            `source_length` beside it.
    """

    source: Path
    tokens: str = "input_ids"
    ids: str = "token_ids"
    values: str = "top_values"
    key: str | None = None
    part: str | None = None
    classes: ClassVar[int | None] = None
    rounding: ClassVar[float] = 1e-2

    def longest(self) -> int:
        """See `Format`."""
        return parquet.longest(self.source, self.tokens)

    def read(self) -> Iterator[Sample]:
        """See `Format`."""
        named = parquet.windows_columns(self.source, key=self.key, part=self.part)
        own = [*named.values(), *([self.key] if self.key else [])]
        columns = [self.tokens, self.ids, self.values, *own]
        kind: str | None = None
        for file, first, table in parquet.batches(self.source, columns):
            where = f"{file}, rows {first} to {first + len(table) - 1}"
            ids = parquet.nested(file, table[self.ids], self.ids)
            values = parquet.nested(file, table[self.values], self.values)
            if not ids.fits(values):
                raise InputError(
                    f"{where}: {quoted(self.ids)} and {quoted(self.values)} have lists of "
                    "different lengths"
                )
            kind = _kind(values.values, kind, where)
            yield from samples(
                str(file),
                first,
                keys=parquet.keys(table, self.key, file=file, first=first),
                windows=parquet.windows_of(table, named, file=file, first=first),
                tokens=parquet.token_lists(file, first, table[self.tokens]),
                rows=ids.rows,
                ids=parquet.whole(ids.padded(0), f"{where}: {self.ids}"),
                log_probs=log_probs(values, kind),
            )

    def write(self, labels: LabelSet, out: Path) -> int:
        """See `Format`; log-probs in float32, an empty list where nothing is labelled."""
        check_exportable(labels, "plain lists")
        key = pa.string() if labels.plan.data.key_type == "string" else pa.int64()
        schema = pa.schema(
            [
                ("key", key),
                *((name, pa.int32()) for name in COLUMNS),
                (self.tokens, pa.list_(pa.int64())),
                (self.ids, pa.list_(pa.list_(pa.int64()))),
                (self.values, pa.list_(pa.list_(pa.float32()))),
            ]
        )
        out.mkdir(parents=True, exist_ok=True)
        count = 0
        with pq.ParquetWriter(out / "data_0.parquet", schema, compression="zstd") as writer:
            for records in labels.groups():
                writer.write_table(pa.table(list(self._columns(records)), schema=schema))
                count += len(records)
        return count

    def _columns(self, records: Any) -> Iterator[pa.Array]:
        found = records.labels
        used = (found.log_probs > -np.inf).numpy()
        lengths = np.zeros(len(records.wanted), np.int64)
        lengths[records.wanted] = used.sum(1)
        outer = pa.array(records.token_offsets.astype(np.int32))
        inner = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        for name in ("key", *COLUMNS):
            yield records.identity[name].combine_chunks()
        yield pa.ListArray.from_arrays(outer, pa.array(records.token_ids))
        for values in (found.ids.numpy(), found.log_probs.numpy().astype(np.float32)):
            yield pa.ListArray.from_arrays(
                outer, pa.ListArray.from_arrays(inner, pa.array(values[used]))
            )


def _kind(values: NDArray[Any], before: str | None, where: str) -> str:
    """Whether values are log-probs or probabilities; "" where there are none yet."""
    if not len(values):
        return before or ""
    if np.isnan(values).any():
        raise InputError(f"{where}: a value is NaN")
    low, high = float(values.min()), float(values.max())
    fits = [] if high > _ABOVE else ["log_probs"]
    if low >= 0 and high <= 1 + _ABOVE:
        fits.append("probs")
    if before in fits:
        return str(before)
    if before or not fits:
        wanted = {"log_probs": "log-probs", "probs": "probabilities"}.get(before or "")
        raise InputError(
            f"{where}: values from {low:g} to {high:g} are no {wanted or 'log-probs'}"
            f"{', as those before' if wanted else ' and no probabilities'}; logits of some classes "
            "tell nothing of their probabilities without the logsumexp"
        )
    return fits[-1] if high > 0 else fits[0]


def log_probs(values: parquet.Lists, kind: str) -> NDArray[np.float32]:
    """(positions, k) natural logs in float32, −inf where unused or impossible."""
    logs = values.values
    if kind == "probs":
        with np.errstate(divide="ignore"):
            logs = np.log(logs.astype(np.float64))
    narrow = parquet.Lists(values.rows, values.lengths, logs.astype(np.float32))
    return narrow.padded(-np.inf)

"""DistillKit's compressed Parquet: log-probs as numbers and a curve, ids as bits.

`compression_config.yaml` beside the files says how. A position's bytes are the first `exact_k` of
the descending log-probs, the coefficients of a sum of terms that stands for the others by their
place, and what is left between the two in bins of a few bits. Row t of a sample is the distribution
over token t + 1; there is none for the last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.format.records import Records
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.formats import parquet
from softlabels.sharing.formats.compression import (
    Compression,
    compressed,
    expanded,
    log_prob_bytes,
    packed,
    parse,
    unpacked,
)
from softlabels.sharing.formats.sample import Float32s, Int64s, Sample, check_exportable, samples
from softlabels.sharing.formats.windows import ALONE

CONFIG = "compression_config.yaml"
_LOGS, _IDS = "compressed_logprobs", "bytepacked_indices"


@dataclass(frozen=True)
class DistillKit:
    """Its Parquet files.

    Attributes:
        source: a folder of them.
        settings: its config; by default the one beside the files, or, to write, all k log-probs
            in float32.
    """

    source: Path
    settings: Path | None = None
    rounding: ClassVar[float] = 1e-2

    @cached_property
    def config(self) -> Compression:
        """How the files are compressed; raises `InputError` where that is not told."""
        folder = self.source if self.source.is_dir() else self.source.parent
        file = self.settings or folder / CONFIG
        if not file.is_file():
            raise InputError(
                f"{file}: there is no such file, and nothing else says how the log-probs are "
                "compressed; name DistillKit's config with --settings"
            )
        return parse(file.read_text(), str(file))

    @property
    def classes(self) -> int | None:
        """See `Format`."""
        return self.config.d

    def longest(self) -> int:
        """See `Format`."""
        return parquet.longest(self.source, "input_ids")

    def read(self) -> Iterator[Sample]:
        """See `Format`."""
        config = self.config
        for file, first, table in parquet.batches(self.source, ["input_ids", _LOGS, _IDS]):
            where = f"{file}, rows {first} to {first + len(table) - 1}"
            ids, logs = (parquet.nested(file, table[name], name) for name in (_IDS, _LOGS))
            if not np.array_equal(ids.rows, logs.rows):
                raise InputError(f"{where}: the columns have lists of different lengths")
            sizes = (-(-config.k * config.id_bits // 8), log_prob_bytes(config))
            if (ids.lengths != sizes[0]).any() or (logs.lengths != sizes[1]).any():
                raise InputError(
                    f"{where}: a position does not have {sizes[0]} bytes of ids and {sizes[1]} of "
                    f"log-probs, as {CONFIG} says; this config belongs to another set"
                )
            kept, values = self._decoded(
                _bytes(ids, sizes[0], where), _bytes(logs, sizes[1], where), where
            )
            yield from samples(
                str(file),
                first,
                keys=[None] * len(table),
                windows=[ALONE] * len(table),
                tokens=parquet.token_lists(file, first, table["input_ids"]),
                rows=ids.rows,
                ids=kept,
                log_probs=values,
            )

    def _decoded(
        self, ids: NDArray[np.uint8], logs: NDArray[np.uint8], where: str
    ) -> tuple[Int64s, Float32s]:
        values = expanded(torch.from_numpy(logs), self.config).numpy().astype(np.float32)
        kept = unpacked(ids, self.config.id_bits, self.config.k)
        if np.isnan(values).any():
            raise InputError(f"{where}: a log-prob is NaN")
        # Where it has no entry, DistillKit leaves whatever was in memory for an id.
        return np.where(values > -np.inf, kept, 0), values

    def write(self, labels: LabelSet, out: Path) -> int:
        """See `Format`; every position but a record's last has k entries, or it is refused."""
        check_exportable(labels, "DistillKit's Parquet")
        plan = labels.plan
        config = Compression(
            d=plan.teacher.classes, k=plan.selection.k, exact_k=plan.selection.k,
            delta_encoding=False,
        )  # fmt: skip
        if self.settings is not None:
            config = parse(self.settings.read_text(), str(self.settings))
        _check_writable(config, labels)
        lists = pa.list_(pa.list_(pa.uint8()))
        schema = pa.schema([("input_ids", pa.list_(pa.uint64())), (_LOGS, lists), (_IDS, lists)])
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        count = 0
        with pq.ParquetWriter(out / "data_0.parquet", schema, compression="zstd") as writer:
            for records in labels.groups():
                columns = _columns(records, config, f"{labels.name}, record {count} and on")
                writer.write_table(pa.table(columns, schema=schema))
                count += len(records)
        return count


def _bytes(lists: parquet.Lists, width: int, where: str) -> NDArray[np.uint8]:
    """(positions, width); there may be none, as of samples of one token."""
    found = parquet.whole(lists.values, where)
    if (found > 255).any():
        raise InputError(f"{where}: {found[found > 255][0]} is no byte")
    return found.astype(np.uint8).reshape(-1, width)


def _check_writable(config: Compression, labels: LabelSet) -> None:
    plan = labels.plan
    if config.residual_bins:
        raise InputError(f"{CONFIG}: residual_bins can be read, not written; leave them out")
    if config.exact_k < config.k and not config.polynomial_terms:
        raise InputError(f"{CONFIG}: exact_k is below k, and polynomial_terms are missing")
    if config.k != plan.selection.k or config.d < plan.teacher.classes:
        raise InputError(
            f"{CONFIG}: k = {config.k} of d = {config.d} classes, and the set has "
            f"{plan.selection.k} of {plan.teacher.classes}; derive a set of that k, or change it"
        )


def _columns(records: Records, config: Compression, where: str) -> list[pa.Array]:
    ends, lengths = records.token_offsets, np.diff(records.token_offsets)
    assert records.token_ids is not None
    last = np.zeros(len(records.wanted), bool)
    last[ends[1:][lengths > 0] - 1] = True
    found = records.soft.sorted()
    full = records.wanted.copy()
    full[full] = (found.log_probs > -torch.inf).all(-1).numpy()
    if len(found) and (found.k != config.k or not (full | last).all()):
        raise InputError(
            f"{where}: a position has no labels, or fewer entries than k; DistillKit has no way to "
            "say so, and its losses make NaN of it: export plain lists"
        )
    kept = torch.from_numpy(~last[records.wanted])
    outer = pa.array(np.append(0, np.cumsum(np.maximum(lengths - 1, 0))).astype(np.int32))
    values = compressed(found.log_probs[kept].float(), config).numpy()
    ids = packed(found.ids[kept].numpy(), config.id_bits)

    def rows(data: NDArray[np.uint8]) -> pa.Array:
        inner = pa.array((np.arange(len(data) + 1) * data.shape[1]).astype(np.int32))
        flat = pa.ListArray.from_arrays(inner, pa.array(data.reshape(-1)))
        return pa.ListArray.from_arrays(outer, flat)

    tokens = pa.array(records.token_ids.astype(np.uint64))
    offsets = pa.array(ends.astype(np.int32))
    return [pa.ListArray.from_arrays(offsets, tokens), rows(values), rows(ids)]

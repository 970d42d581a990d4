"""`softlabels precompute` and `derive`: commands that make a set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from softlabels.cli.arguments import DeriveArguments, PrecomputeArguments
from softlabels.cli.screen import Screen
from softlabels.labelset.derive import derive
from softlabels.labelset.reader import LabelSet
from softlabels.precompute.run import precompute
from softlabels.selection import TopK
from softlabels.teachers import causal_lm


def label(arguments: PrecomputeArguments) -> int:
    """Label, and say what was made and what to do with it."""
    began = time.perf_counter()
    selection = None if arguments.k is None else TopK(arguments.k)
    teacher = causal_lm(
        arguments.teacher,
        device=arguments.device,
        dtype=arguments.dtype,
        revision=arguments.revision,
    )
    _silence()
    labels = precompute(
        arguments.data,
        teacher,
        arguments.out,
        selection=selection,
        column=arguments.column,
        key=arguments.key,
        max_length=arguments.max_length,
        overlap=arguments.overlap,
        on_long=arguments.on_long,
        assistant_only=arguments.assistant_only,
        temperatures=arguments.temperatures,
        codec=arguments.codec,
        store_inputs=arguments.store_inputs,
        probes=arguments.probes,
        limit=arguments.limit,
        on_error=arguments.on_error,
        unit_rows=arguments.unit_rows,
        batch_tokens=arguments.batch_tokens,
        progress=not arguments.quiet,
    )
    return _tell(labels, arguments.out, began, as_json=arguments.json)


def derive_set(arguments: DeriveArguments) -> int:
    """Derive, and say what was made."""
    began = time.perf_counter()
    labels = derive(
        arguments.source,
        arguments.out,
        codec=arguments.codec,
        k=arguments.k,
        progress=not arguments.quiet,
    )
    return _tell(labels, arguments.out, began, as_json=arguments.json)


def _tell(labels: LabelSet, out: Path, began: float, *, as_json: bool) -> int:
    totals = labels.totals
    if as_json:
        print(totals.model_dump_json())
        return 0
    console = Screen()
    console.print(
        f"{out}: {totals.records:,} records of {totals.source_rows:,} samples, "
        f"{totals.positions:,} positions, {totals.bytes / 1e6:.1f} MB "
        f"({totals.bytes / max(1, totals.positions):.0f} bytes a position), "
        f"{time.perf_counter() - began:.0f} s"
    )
    if totals.rejects:
        console.print(f"{totals.rejects:,} samples were rejected; rejects.parquet says why")
    if totals.truncated:
        longest = labels.plan.preparation.max_length
        console.print(f"{totals.truncated:,} samples were cut at {longest} tokens")
    console.print(f"next: softlabels show {out}")
    return 0


def _silence() -> None:
    """One bar is enough; those of the libraries count other things."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()

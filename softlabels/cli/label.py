"""`softlabels precompute`."""

from __future__ import annotations

import time
from typing import Any

from softlabels.cli.arguments import PrecomputeArguments
from softlabels.cli.screen import Screen
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
        limit=arguments.limit,
        on_error=arguments.on_error,
        unit_rows=arguments.unit_rows,
        batch_tokens=arguments.batch_tokens,
        progress=not arguments.quiet,
    )
    totals = labels.totals
    if arguments.json:
        print(totals.model_dump_json())
        return 0
    console = Screen()
    console.print(
        f"{arguments.out}: {totals.records:,} records of {totals.source_rows:,} samples, "
        f"{totals.positions:,} positions, {totals.bytes / 1e6:.1f} MB "
        f"({totals.bytes / max(1, totals.positions):.0f} bytes a position), "
        f"{time.perf_counter() - began:.0f} s"
    )
    if totals.rejects:
        console.print(f"{totals.rejects:,} samples were rejected; rejects.parquet says why")
    if totals.truncated:
        console.print(f"{totals.truncated:,} samples were cut at {arguments.max_length} tokens")
    console.print(f"next: softlabels show {arguments.out}")
    return 0


def _silence() -> None:
    """One bar is enough; those of the libraries count other things."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()

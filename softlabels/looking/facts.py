"""What a set is, in words, line by line."""

from __future__ import annotations

from softlabels.labelset.reader import LabelSet
from softlabels.looking.text import safe


def facts(labels: LabelSet) -> dict[str, str]:
    """Names and values, the values' control characters escaped."""
    plan, totals = labels.plan, labels.totals
    teacher, data, preparation = plan.teacher, plan.data, plan.preparation
    state = "finished" if labels.finished else f"unfinished, {totals.shards} units done"
    rows = {
        "state": state,
        "teacher": _joined(teacher.name, teacher.revision, teacher.dtype, teacher.engine),
        "weights": teacher.weights or "not known: a callable",
        "data": _joined(data.name, data.revision, data.split, f"column {', '.join(data.columns)}"),
        "key": data.key or "row number",
        "prepared": _joined(
            preparation.kind, f"at most {preparation.max_length} tokens", preparation.on_long
        ),
        "kept": plan.selection.words(teacher.classes),
        "tail mass at": ", ".join(f"T = {t:g}" for t in plan.temperatures) or "none",
        "codec": str(plan.codec["name"]),
        "token ids": "stored" if plan.store_inputs else "not stored",
        "samples": f"{totals.source_rows:,}, {totals.rejects:,} rejected, "
        f"{totals.truncated:,} truncated",
        "records": f"{totals.records:,} in {totals.shards:,} shards",
        "positions": f"{totals.positions:,}, {totals.entries:,} entries",
        "bytes": f"{totals.bytes:,}, {totals.bytes / max(1, totals.positions):.1f} a position",
        "probes": f"{totals.probes:,} positions with dense logits" if totals.probes else "none",
        "derived from": " ← ".join(
            _joined(f"{origin.codec}, k = {origin.k}", origin.words())
            for origin in reversed(plan.derived_from)
        )
        or "the teacher itself",
        "format": f"{plan.format}, written by {plan.writer}",
    }
    return {name: safe(value) for name, value in rows.items()}


def _joined(*values: str | None) -> str:
    return ", ".join(value for value in values if value)

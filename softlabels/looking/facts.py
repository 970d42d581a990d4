"""What a set is, in words, line by line."""

from __future__ import annotations

from softlabels.format.plan import Plan
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.views import ViewsIdentity
from softlabels.labelset.reader import LabelSet
from softlabels.looking.text import safe

_SHOWN_CLASSES = 5


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
        "prepared": _prepared(preparation),
        "views": "none" if plan.views is None else _views(plan.views),
        "kind": plan.kind,
        "classes": _classes(plan),
        "kept": plan.selection.words(teacher.classes),
        "floors at" if plan.kind == "binary" else "tail mass at": ", ".join(
            f"T = {t:g}" for t in plan.temperatures
        )
        or "none",
        "codec": str(plan.codec["name"]),
        "arrays" if preparation.kind == "array" else "token ids": "stored"
        if plan.store_inputs
        else "not stored",
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
    hidden = {name for name in _HIDDEN if rows.get(name) in (None, "none", _HIDDEN[name])}
    return {name: safe(value) for name, value in rows.items() if name not in hidden}


# Lines that say nothing where they say this.
_HIDDEN = {"views": "none", "kind": "categorical", "classes": None}


def _prepared(preparation: Preparation) -> str:
    if preparation.kind == "array":
        whose = {"first": "one label each", "every": "a label at each index of the first axis"}
        return f"arrays, {whose.get(preparation.positions or '', 'as many labels as they have')}"
    length = f"at most {preparation.max_length} tokens"
    if preparation.answers is None:
        return _joined(preparation.kind, length, preparation.on_long)
    return _joined(f"prompts ({preparation.kind})", preparation.answers.words, length)


def _views(views: ViewsIdentity) -> str:
    clean = ", the first as it is" if views.clean else ""
    libraries = "".join(f", {name} {version}" for name, version in views.libraries.items())
    return f"{views.count} of each sample{clean}, by {views.name} {views.version}{libraries}"


def _classes(plan: Plan) -> str | None:
    if plan.class_names is None:
        return None
    some = ", ".join(plan.class_names[:_SHOWN_CLASSES])
    more = len(plan.class_names) - _SHOWN_CLASSES
    return f"{some} and {more:,} more" if more > 0 else some


def _joined(*values: str | None) -> str:
    return ", ".join(value for value in values if value)

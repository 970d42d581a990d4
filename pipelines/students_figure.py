"""The table and the figure of `students.py` and `grid.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from students_labels import bytes_of

import softlabels as sl
from softlabels.training import Trained

MEASURES = {
    "cross_entropy": "held-out loss, nats",
    "kl": "KL to the teacher, nats",
    "top1_agreement": "agrees with the teacher, %",
    "calibration_error": "calibration error, %",
}


def summary(name: str, labels: sl.LabelSet, runs: Sequence[Trained]) -> dict[str, Any]:
    """A line of the table: students of several seeds, each measured on held-out labels."""
    line: dict[str, Any] = {"arm": name, "entries": labels.plan.selection.k}
    line |= {"bytes": bytes_of(labels), "positions": labels.totals.positions}
    for measure in MEASURES:
        values = [getattr(trained.after, measure) for trained in runs]
        line[measure] = statistics.mean(values)
        line[f"{measure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return line


def draw(made: dict[str, Any], path: Path) -> str:
    """Save the figure; returns the table as Markdown."""
    figure(made, path)
    head = ["labels", "entries", "positions", "bytes each", *MEASURES.values()]
    rows = [head, ["--"] * len(head)]
    for arm in made["arms"]:
        values = [shown(arm, name) for name in MEASURES]
        counts = f"{arm['entries']:,}", f"{arm['positions']:,}", f"{arm['bytes']:,.1f}"
        rows.append([arm["arm"], *counts, *values])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    what = f"{made['parameters'] / 1e6:.1f}M parameters, {made['steps']:,} steps"
    return f"Students of {what}, {made['seeds']} seeds, mean ± deviation.\n\n{table}"


def shown(arm: dict[str, Any], name: str) -> str:
    percent = name in ("top1_agreement", "calibration_error")
    scale, digits = (100, 2) if percent else (1, 4)
    spread = arm[f"{name}_sd"]
    value = f"{scale * arm[name]:.{digits}f}"
    return value if spread is None else f"{value} ± {scale * spread:.{digits}f}"


def figure(made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    arms = made["arms"][::-1]
    names = [f"{arm['arm']}, {arm['bytes']:.0f} B" for arm in arms]
    shapes, axes = pyplot.subplots(1, 3, figsize=(13, 0.36 * len(arms) + 1.2), sharey=True)
    measures = ("cross_entropy", "kl", "calibration_error")
    for panel, measure in zip(axes, measures, strict=True):
        scale = 100 if measure == "calibration_error" else 1
        values = [scale * arm[measure] for arm in arms]
        spreads = [scale * (arm[f"{measure}_sd"] or 0) for arm in arms]
        colours = ["tab:orange" if "few texts" in name else "tab:blue" for name in names]
        for place, (value, spread, colour) in enumerate(zip(values, spreads, colours, strict=True)):
            panel.errorbar(value, place, xerr=spread, fmt="o", color=colour, capsize=3)
        panel.set(title=MEASURES[measure], yticks=range(len(arms)), yticklabels=names)
        panel.grid(axis="y", lw=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    shapes.tight_layout()
    shapes.savefig(path, dpi=150)

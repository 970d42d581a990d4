"""A figure of one run: what it minimised, and how it did on held-out text."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from softlabels.errors import InputError
from softlabels.training.journal import METRICS, read

FIGURE = "metrics.png"
_PARTS = {"loss": "tab:blue", "kd": "tab:cyan", "ce": "tab:olive"}


def check_matplotlib() -> None:
    """Fail before a run, not after it.

    Raises:
        InputError: matplotlib is not installed; with the command that installs it.
    """
    if find_spec("matplotlib") is None:
        raise InputError(
            "a figure is drawn by matplotlib; pip install 'softlabels[plot]', or leave it out "
            "(--no-plot)"
        )


def plot(out: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Draw the metrics of a run, finished or not.

    Args:
        out: the run's folder.
        path: of the figure, its kind by its ending; metrics.png in the folder by default.

    Returns:
        where the figure is.

    Raises:
        InputError: matplotlib is not installed, or nothing has been measured.
    """
    check_matplotlib()
    metrics = Path(out) / METRICS
    lines = list(read(metrics)) if metrics.is_file() else []
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not steps:
        raise InputError(f"{out} has no metrics of a step to draw; train into it first")
    final = Path(out) / FIGURE if path is None else Path(path)
    figure = _drawn(steps, evaluations)
    figure.savefig(final, dpi=150)
    return final


def _drawn(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> Any:
    # The object-oriented way: pyplot would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    judged = [line for line in evaluations if line["top1_agreement"] is not None]
    grid = figure.add_gridspec(1, 2 if judged else 1, width_ratios=(2, 1) if judged else (1,))
    left = figure.add_subplot(grid[0])
    mixed = any(line["kd"] is not None and line["ce"] is not None for line in steps)
    for name, colour in _PARTS.items() if mixed else [("loss", "tab:blue")]:
        known = [line for line in steps if line[name] is not None]
        values = [line[name] for line in known]
        label = "training loss" if name == "loss" else f"training {name.upper()}"
        left.plot([line["step"] for line in known], values, lw=1, color=colour, label=label)
    held = [line for line in evaluations if line["kl"] is not None]
    if held:
        label = f"held-out KL: {held[0]['kl']:.2f} → {held[-1]['kl']:.2f}"
        left.plot([line["step"] for line in held], [line["kl"] for line in held], "o--",
                  color="tab:orange", label=label)  # fmt: skip
    left.set(xlabel="step", ylabel="nats a position", title="Loss", ylim=(0, None))
    left.legend(frameon=False)
    if judged:
        right = figure.add_subplot(grid[1])
        ends = [100 * judged[at]["top1_agreement"] for at in (0, -1)]
        bars = right.bar(["before", "after"], ends, color=["tab:gray", "tab:blue"], width=0.6)
        right.bar_label(bars, fmt="%.1f %%")
        right.margins(y=0.12)  # room for the numbers above the bars
        right.set(title="Agrees with the teacher", ylabel="% of held-out positions")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure

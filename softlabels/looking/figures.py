"""Charts as files for a paper, drawn by matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from softlabels.errors import InputError, quoted
from softlabels.looking.charts import Chart

_COLOUR = "#2a6fb0"


def prepare(folder: Path) -> None:
    """Make the folder of figures: fail before a set is read, not after.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise InputError(
            "figures are drawn by matplotlib; pip install 'softlabels[plot]', or leave out "
            "--figures"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--figures {quoted(folder)}: no folder can be made there ({error.strerror}); name "
            "another"
        ) from None


def save(charts: list[Chart], folder: Path) -> list[Path]:
    """Write each chart as PNG and SVG into a folder that `prepare` made; returns the files."""
    made = []
    for chart in charts:
        figure = _figure(chart)
        for kind in ("png", "svg"):
            made.append(folder / f"{chart.name}.{kind}")
            # No date, so that the same set gives the same picture.
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(made[-1], dpi=200, metadata=metadata)
    return made


def _figure(chart: Chart) -> Any:
    # The object-oriented way: pyplot would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    if chart.kind == "bars":
        axes.stairs(chart.ys, chart.edges, fill=True, color=_COLOUR)
    else:
        axes.plot([0, 100], [0, 100], "--", lw=1, color="gray", label="calibrated")
        axes.plot(chart.xs, chart.ys, "o-", ms=4, color=_COLOUR, label="teacher")
        axes.legend(frameon=False)
    axes.set_xticks([at for at, _ in chart.ticks], [words for _, words in chart.ticks])
    if any(len(words) > 4 for _, words in chart.ticks):
        axes.tick_params("x", labelrotation=30)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axes.set_xlim(chart.edges[0], chart.edges[-1])
    axes.set_ylim(0, 100 if chart.kind == "calibration" else None)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

"""Charts as shapes of an SVG whose colours the page chooses."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.looking.charts import Chart, nice_steps

WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 46


@dataclass(frozen=True)
class Mark:
    """A bar, of which x and y are the upper left corner, or a point."""

    x: float
    y: float
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Tick:
    """A number beside an axis."""

    at: float
    words: str


@dataclass(frozen=True)
class Drawn:
    """A chart in pixels of a view of `WIDTH` by `HEIGHT`.

    Attributes:
        bars, points: one of them is empty.
        diagonal: where the points would lie if all were well; None of bars.
        x_ticks, y_ticks: where, and what is written there.
        left, right, top, bottom: of the axes.
    """

    chart: Chart
    bars: tuple[Mark, ...]
    points: tuple[Mark, ...]
    diagonal: tuple[float, float, float, float] | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def drawn(chart: Chart) -> Drawn:
    """Where everything goes."""
    low, high = chart.edges[0], chart.edges[-1]
    most = 100.0 if chart.kind == "calibration" else max(max(chart.ys), 1e-9)

    def x(value: float) -> float:
        share = (value - low) / (high - low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - value / most * (HEIGHT - _TOP - _BOTTOM), 2)

    bars: tuple[Mark, ...] = ()
    points: tuple[Mark, ...] = ()
    if chart.kind == "bars":
        sides = zip(chart.edges, chart.edges[1:], chart.ys, strict=False)
        bars = tuple(
            Mark(x(a) + 0.5, y(v), max(0.5, x(b) - x(a) - 1), y(0) - y(v)) for a, b, v in sides if v
        )
    else:
        points = tuple(Mark(x(a), y(v)) for a, v in zip(chart.xs, chart.ys, strict=True))
    return Drawn(
        chart=chart,
        bars=bars,
        points=points,
        diagonal=(x(0), y(0), x(100), y(100)) if chart.kind == "calibration" else None,
        x_ticks=tuple(Tick(x(at), words) for at, words in chart.ticks),
        y_ticks=tuple(Tick(y(at), _short(at)) for at in nice_steps(0.0, most, 4)),
    )


def _short(value: float) -> str:
    """A round number in the room that there is beside an axis."""
    for unit, words in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{words}"
    return f"{value:g}"

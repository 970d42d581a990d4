"""An audit as charts: what each shows, in numbers, whoever draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from softlabels.looking.audit import Audit
from softlabels.looking.text import safe

Kind = Literal["bars", "calibration"]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its file.
        title, x_label, y_label: in words.
        kind: "bars" from 0 to `ys` between the `edges`; "calibration": points at `xs`, `ys`, the
            diagonal beside them.
        edges: of the bars, one more than they are; of the points, the ends of the axis.
        xs: where each value stands.
        ys: the values, in `unit`.
        ticks: of the x axis, place and words.
        words: what is to be seen, for those who cannot see it.
        unit: what stands after a value.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    kind: Kind
    edges: tuple[float, ...]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]
    words: str
    unit: str = "%"

    def rows(self) -> list[tuple[str, str]]:
        """The chart as a table: x and y of each value that is not 0."""
        if self.kind == "calibration":
            return [(f"{x:.1f} %", f"{y:.1f} %") for x, y in zip(self.xs, self.ys, strict=True)]
        names = dict(self.ticks)
        return [
            (names.get(x) or f"{low:.6g} to {high:.6g}", f"{y:,.2f} {self.unit}")
            for x, low, high, y in zip(self.xs, self.edges, self.edges[1:], self.ys, strict=False)
            if y
        ]


def charts(found: Audit) -> list[Chart]:
    """Those for which the set has numbers."""
    others = _lengths(found.lengths), _throughput(found.throughput)
    return [*belief_charts(found.distributions), *(chart for chart in others if chart is not None)]


def belief_charts(given: Mapping[str, Any]) -> list[Chart]:
    """Of what the teacher believes.

    Args:
        given: as `Distributions.to_json` says it, or `Spreads.to_json`.
    """
    made = [
        *_spread_charts(given),
        _histogram(given.get("entropy"), "entropy", "Entropy", "nats", _plain_ticks),
        _histogram(given.get("kept_mass"), "kept-mass", "Kept mass", "probability", _plain_ticks),
        _histogram(
            given.get("log10_tail_mass"), "tail-mass", "Tail mass",
            "probability of the classes not kept", _power_ticks,
        ),
        _histogram(
            given.get("hard_log_probs"), "hard-log-probs", "Log-prob of the hard label", "nats",
            _plain_ticks,
        ),
        _ranks(given.get("ranks")),
        _calibration(given.get("calibration")),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def _spread_charts(given: Mapping[str, Any]) -> list[Chart | None]:
    """Of independent classes, and of vectors."""
    return [
        _histogram(
            given.get("log10_expected_labels"), "expected-labels", "Expected labels",
            "classes of a position, by their probabilities", _power_ticks,
        ),
        _histogram(
            given.get("first_probability"), "first-probability", "Likeliest class", "probability",
            _plain_ticks,
        ),
        _histogram(
            given.get("log10_floor"), "floor", "Floor", "mean probability of the classes not kept",
            _power_ticks,
        ),
        _histogram(
            given.get("log10_length"), "vector-lengths", "Length of vectors", "length", _power_ticks
        ),
        _histogram(
            given.get("cosine"), "cosines", "Likeness of vectors", "cosine of two of them",
            _plain_ticks,
        ),
    ]  # fmt: skip


def _plain_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    return tuple((at, f"{at:g}") for at in nice_steps(low, high))


def _power_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    powers = range(math.ceil(low), math.floor(high) + 1, 2)
    return tuple((float(p), "1" if p == 0 else f"1e{p}") for p in powers)


def nice_steps(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends, at most so many."""
    rough = (high - low) / most
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _histogram(given: Any, name: str, title: str, x_label: str, ticks: Any) -> Chart | None:
    if given is None:
        return None
    edges, middle = given["edges"], given["quantiles"]
    values = [f"{10**v:.3g}" if ticks is _power_ticks else f"{v:.3g}" for v in middle.values()]
    words = f"Median {values[2]}; nine in ten positions from {values[0]} to {values[4]}."
    return Chart(
        name=name,
        title=title,
        x_label=x_label,
        y_label="% of positions",
        kind="bars",
        edges=tuple(edges),
        xs=_middles(edges),
        ys=_percent(given["counts"]),
        ticks=ticks(edges[0], edges[-1]),
        words=words,
    )


def _lengths(given: dict[str, Any]) -> Chart | None:
    if not given["count"]:
        return None
    edges = given["edges"]
    return Chart(
        name="lengths",
        title="Length of records",
        x_label=given["of"],
        y_label="% of records",
        kind="bars",
        edges=tuple(edges),
        xs=_middles(edges),
        ys=_percent(given["counts"]),
        ticks=_plain_ticks(edges[0], edges[-1]),
        words=f"Median {given['median']:g} {given['of']}, {given['longest']:,} at most.",
    )


def _throughput(given: dict[str, Any] | None) -> Chart | None:
    if given is None:
        return None
    known = [rate for rate in given["rates"] if rate is not None]
    where = f" on {', '.join(map(safe, given['accelerators']))}" if given["accelerators"] else ""
    mean = given["positions"] / given["seconds"]
    return Chart(
        name="throughput",
        title="Speed of labelling",
        x_label="work unit",
        y_label="positions a second",
        kind="bars",
        edges=tuple(given["edges"]),
        xs=_middles(given["edges"]),
        ys=tuple(rate or 0.0 for rate in given["rates"]),
        ticks=_plain_ticks(given["edges"][0], given["edges"][-1]),
        words=f"{mean:,.0f} positions a second{where}, between {min(known):,.0f} and "
        f"{max(known):,.0f}, known of {given['units']:,} of {given['edges'][-1]:,} units.",
        unit="positions/s",
    )


def _ranks(given: Sequence[dict[str, Any]] | None) -> Chart | None:
    if given is None:
        return None
    shares = _percent([row["count"] for row in given])
    places = tuple(float(place) for place in range(len(given)))
    return Chart(
        name="ranks",
        title="Rank of the hard label",
        x_label="place among the kept classes",
        y_label="% of positions",
        kind="bars",
        edges=tuple(place - 0.5 for place in range(len(given) + 1)),
        xs=places,
        ys=shares,
        ticks=tuple(zip(places, (row["rank"] for row in given), strict=True)),
        words=f"The first guess in {shares[0]:.1f} %, not among the kept classes in "
        f"{shares[-1]:.1f} %.",
    )


def _calibration(given: dict[str, Any] | None) -> Chart | None:
    if given is None:
        return None
    error = 100 * given["expected_calibration_error"]
    return Chart(
        name="calibration",
        title="Calibration of the first guess",
        x_label="confidence, %",
        y_label="right, %",
        kind="calibration",
        edges=(0.0, 100.0),
        xs=tuple(100 * row["confidence"] for row in given["bins"]),
        ys=tuple(100 * row["accuracy"] for row in given["bins"]),
        ticks=_plain_ticks(0.0, 100.0),
        words=f"Expected calibration error {error:.2f} %: the first guess is believed to "
        f"{100 * given['confidence']:.1f} % and right in {100 * given['accuracy']:.1f} %. Below "
        "the diagonal the teacher is too sure.",
    )


def _middles(edges: Sequence[float]) -> tuple[float, ...]:
    return tuple((low + high) / 2 for low, high in pairwise(edges))


def _percent(counts: Sequence[int]) -> tuple[float, ...]:
    total = max(1, sum(counts))
    return tuple(100 * count / total for count in counts)

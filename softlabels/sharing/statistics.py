"""What a teacher says in a set, in the few numbers and pictures that a card has room for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softlabels.labelset.reader import LabelSet
from softlabels.looking.beliefs import Distributions, beliefs
from softlabels.looking.blocks import blocks, following
from softlabels.looking.charts import Chart, belief_charts
from softlabels.looking.spreads import Spreads
from softlabels.sharing.preview import spread

# As many positions as say it to two digits, and no more entries than are read in seconds.
_POSITIONS, _ENTRIES = 16_384, 1 << 25
CHARTS = (
    "entropy",
    "kept-mass",
    "calibration",
    "expected-labels",
    "first-probability",
    "vector-lengths",
    "cosines",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of records from one end of a set to the other.

    Attributes:
        table: names and values.
        charts: of `CHARTS`, those, by name, for which the set has numbers that say anything.
    """

    table: Mapping[str, str]
    charts: tuple[Chart, ...]


def statistics(labels: LabelSet) -> Statistics:
    """Read a few records and sum them up; the same for the same set.

    Raises:
        CorruptShardError: bytes are not the ones that were written, or are no labels.
    """
    totals, k = labels.totals, labels.plan.selection.k
    if not totals.positions:
        return Statistics({}, ())
    positions = max(1, min(_POSITIONS, _ENTRIES // k))
    count = max(1, positions * totals.records // totals.positions)
    if labels.plan.kind != "categorical":
        return _of_other_kinds(labels, count)
    distributions = Distributions(labels.plan.teacher.classes)
    kept, first, hard = ([np.empty(0)] for _ in range(3))
    sampled = False
    for _, records in blocks(labels, spread(len(labels), count)):
        found = beliefs(records.soft, following(records, labels.plan))
        distributions.add(found, records.soft.k)
        sampled |= records.soft.sampled
        kept.append(1 - found.tail)
        first.append(found.first_probs)
        hard.append(found.hard_log_probs)
    read = {"measured on": f"{distributions.positions:,} of {totals.positions:,} positions"}
    measured = _rows(*(np.concatenate(values) for values in (kept, first, hard)), sampled=sampled)
    hidden = {"calibration"} if sampled else set()
    if k >= labels.plan.teacher.classes:
        hidden.add("kept-mass")  # all of it, everywhere
    charts = {chart.name: chart for chart in belief_charts(distributions.to_json())}
    return Statistics(
        read | dict(measured),
        tuple(charts[name] for name in CHARTS if name in charts and name not in hidden),
    )


def _of_other_kinds(labels: LabelSet, count: int) -> Statistics:
    """Of independent classes, and of vectors."""
    spreads = Spreads(labels.plan)
    for _, records in blocks(labels, spread(len(labels), count)):
        spreads.add(records.labels)
    read = f"{spreads.positions:,} of {labels.totals.positions:,} positions"
    drawn = tuple(chart for chart in belief_charts(spreads.to_json()) if chart.name in CHARTS)
    rows = {chart.title.lower(): chart.words for chart in drawn}
    return Statistics({"measured on": read} | rows, drawn)


def _rows(kept: Floats, first: Floats, hard: Floats, *, sampled: bool) -> Iterator[tuple[str, str]]:
    """Names and values; of sampled labels, weights are no probabilities."""
    kept, hard = kept[~np.isnan(kept)], hard[~np.isnan(hard)]
    if len(kept):
        yield "mass of the kept classes", f"{kept.mean():.4f} in the mean"
        yield "at the worst position", f"{kept.min():.4f}"
    if not sampled and len(first):
        yield "probability of the first guess", f"{first.mean():.3f} in the mean"
    if len(hard):
        surprise = float(-hard.mean())
        shown = f"{math.exp(surprise):,.2f}" if surprise < 700 else "infinite"
        yield "perplexity of the hard labels", shown

"""Counts over fixed bins, fed piece by piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Quantiles are right to a bin; what is drawn merges this many of them.
_FINE = 20


class Histogram:
    """Bins between two ends; what lies beyond is counted in the first or the last one.

    Args:
        low, high: the ends.
        bins: that are drawn.
    """

    def __init__(self, low: float, high: float, bins: int = 40) -> None:
        self._edges = np.linspace(low, high, bins * _FINE + 1)
        self._counts = np.zeros(bins * _FINE, np.int64)
        self._sum = 0.0

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Count values, (n,); none may be NaN."""
        if not len(values):
            return
        low, high = self._edges[0], self._edges[-1]
        inside = np.clip(values.astype(np.float64), low, high)
        self._counts += np.histogram(inside, self._edges)[0]
        self._sum += float(inside.sum())

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self._counts.sum())

    @property
    def counts(self) -> list[int]:
        """Of each bin that is drawn."""
        found: list[int] = self._counts.reshape(-1, _FINE).sum(1).tolist()
        return found

    @property
    def edges(self) -> list[float]:
        """Of the bins that are drawn, one more than they are."""
        found: list[float] = self._edges[::_FINE].tolist()
        return found

    @property
    def mean(self) -> float:
        """Of the values, those beyond the ends taken as the ends; NaN without any."""
        return self._sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The upper edge of the fine bin in which it lies; NaN without values."""
        if not self.count:
            return math.nan
        place = np.searchsorted(self._counts.cumsum(), share * self.count)
        return float(self._edges[1 + min(int(place), len(self._counts) - 1)])

    def to_json(self, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> dict[str, Any]:
        """Edges, counts, mean and quantiles."""
        return {
            "count": self.count,
            "mean": self.mean,
            "quantiles": {f"{share:g}": self.quantile(share) for share in shares},
            "edges": self.edges,
            "counts": self.counts,
        }

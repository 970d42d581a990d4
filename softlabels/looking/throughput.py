"""How fast a set was made, over the run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from softlabels.labelset.reader import LabelSet

_MOST_BARS = 40


def throughput(labels: LabelSet) -> dict[str, Any] | None:
    """Positions a second, unit after unit.

    Returns:
        `edges`, (n + 1,): unit numbers, neighbours taken together where there are many; `rates`,
        (n,): positions of the units between two edges for each of their seconds, null where none
        of them is known; `positions` and `seconds` of those that are; `units`, how many; and
        `accelerators`, where they were labelled. None where nothing is known of any unit.
    """
    seconds = labels.receipts.seconds()
    known = seconds > 0  # NaN is not
    if not known.any():
        return None
    positions = labels.receipts.numbers("positions")
    width = math.ceil(len(seconds) / _MOST_BARS)
    starts = np.arange(0, len(seconds), width)
    spent = np.add.reduceat(np.where(known, seconds, 0.0), starts)
    made = np.add.reduceat(np.where(known, positions, 0), starts)
    names = {name for name in labels.receipts.accelerators() if name is not None}
    return {
        "edges": [*starts.tolist(), len(seconds)],
        "rates": [m / s if s else None for m, s in zip(made.tolist(), spent.tolist(), strict=True)],
        "positions": int(made.sum()),
        "seconds": float(spent.sum()),
        "units": int(known.sum()),
        "accelerators": sorted(names),
    }

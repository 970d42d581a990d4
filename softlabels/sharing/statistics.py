"""What a teacher says in a set, in the few numbers that a card has room for."""

from __future__ import annotations

import math

from softlabels.labels import SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.preview import spread

_POSITIONS = 16_384


def statistics(labels: LabelSet) -> dict[str, str]:
    """Names and values for a table, from records spread over the set.

    Raises:
        CorruptShardError: bytes are not the ones that were written.
    """
    totals = labels.totals
    if not totals.positions:
        return {}
    count = max(1, _POSITIONS * totals.records // totals.positions)
    found = labels.take(spread(len(labels), count)).labels
    measured = _of(found)
    return {"measured on": f"{len(found):,} of {totals.positions:,} positions", **measured}


def _of(labels: SoftLabels) -> dict[str, str]:
    made = {}
    if not labels.sampled and labels.log_tails is not None and 1.0 in labels.temperatures:
        tail = labels.log_tail(1.0).double().exp()
        made["mass of the kept classes"] = f"{float((1 - tail).mean()):.4f} in the mean"
        made["at the worst position"] = f"{float((1 - tail).min()):.4f}"
    if not labels.sampled:
        first = labels.log_probs.double().amax(-1).exp()
        made["probability of the first guess"] = f"{float(first.mean()):.3f} in the mean"
    if labels.hard_log_probs is not None:
        hard = labels.hard_log_probs.double()
        hard = hard[~hard.isnan()]
        if len(hard):
            perplexity = float((-hard).mean())
            shown = f"{math.exp(perplexity):,.2f}" if perplexity < 700 else "infinite"
            made["perplexity of the tokens"] = shown
    return made

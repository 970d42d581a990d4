"""`softlabels info`: what a set is, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from rich.table import Table
from rich.text import Text

from softlabels.cli.screen import Screen
from softlabels.codecs.limit import Limit, limit
from softlabels.errors import CorruptShardError
from softlabels.labelset.reader import LabelSet
from softlabels.looking.facts import facts

# Enough for an entropy that is right to a hundredth, read in a fraction of a second.
_SAMPLE_POSITIONS = 16_384
# Of neighbours, in how many places: records of one position each may all lie in different shards.
_STRETCHES = 64


def show_info(directory: str, *, as_json: bool) -> int:
    """What a set is."""
    labels = LabelSet.open(directory, unfinished=True)
    plan, totals = labels.plan, labels.totals
    least = _limit(labels)
    if as_json:
        found = {
            "finished": labels.finished,
            "totals": totals.model_dump(),
            "bytes_per_position": totals.bytes / max(1, totals.positions),
            "limit": None if least is None else asdict(least),
            "plan": plan.model_dump(mode="json"),
        }
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    rows = facts(labels) | {"limit": _in_words(least, totals.positions)}
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    Screen(soft_wrap=False).print(table)
    return 0


def _limit(labels: LabelSet) -> Limit | None:
    """From a seeded sample of stretches of records; None of a set without any, or a damaged one.

    What is wrong with it is for `verify` to say.
    """
    positions, records = labels.totals.positions, labels.totals.records
    if not positions:
        return None
    count = min(records, -(-_SAMPLE_POSITIONS * records // positions))
    length = -(-count // _STRETCHES)
    random = np.random.default_rng(0)
    begun = random.choice(-(-records // length), -(-count // length), replace=False, shuffle=False)
    chosen = (np.sort(begun)[:, None] * length + np.arange(length)).ravel()
    try:
        return limit(labels.take(chosen[chosen < records]).labels)
    except CorruptShardError:
        return None


def _in_words(least: Limit | None, positions: int) -> str:
    if least is None:
        return "not known: the labels cannot be read" if positions else "none: there are no labels"
    return (
        f"{least.total:.1f} a position for ids ({least.ids:.1f}) and values ({least.values:.1f}), "
        "by their entropy"
    )

"""`softlabels info`: what a set is, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from softlabels.cli.screen import Screen
from softlabels.codecs.limit import Limit, limit
from softlabels.errors import CorruptShardError
from softlabels.labelset.reader import LabelSet
from softlabels.looking.facts import facts
from softlabels.looking.text import safe

# Enough for an entropy that is right to a hundredth, read in a fraction of a second.
_SAMPLE_POSITIONS = 16_384
# Of neighbours, in how many places: records of one position each may all lie in different shards,
# each of which takes 10 ms to open and read.
_STRETCHES = 32


def show_info(directory: str, *, as_json: bool) -> int:
    """What a set is."""
    labels = LabelSet.open(directory, unfinished=True)
    plan, totals = labels.plan, labels.totals
    least, work = _limit(labels), _work(labels)
    if as_json:
        found = {
            "finished": labels.finished,
            "totals": totals.model_dump(),
            "bytes_per_position": totals.bytes / max(1, totals.positions),
            "limit": None if least is None else asdict(least),
            "labelling": None if work is None else asdict(work),
            "plan": plan.model_dump(mode="json"),
        }
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    rows = facts(labels) | {"limit": _in_words(least, totals.positions)}
    if work is not None:
        rows["labelling"] = work.words(totals.shards)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    Screen(soft_wrap=False).print(table)
    return 0


@dataclass(frozen=True)
class _Work:
    """What making the shards took, of those of which it is known.

    Attributes:
        shards, positions: of these.
        seconds: of the processes that labelled, added up.
        accelerators: on which they did.
    """

    shards: int
    positions: int
    seconds: float
    accelerators: tuple[str, ...]

    def words(self, shards: int) -> str:
        """For people, control characters escaped."""
        part = "" if self.shards == shards else f", of {self.shards:,} of the shards"
        where = f" on {', '.join(map(safe, self.accelerators))}" if self.accelerators else ""
        speed = f", {self.positions / self.seconds:,.0f} positions/s" if self.seconds else ""
        hours = self.seconds / 3600
        time = f"{hours:,.1f} h" if hours >= 1 else f"{self.seconds:,.1f} s"
        return f"{time}{where}{speed}{part}"


def _work(labels: LabelSet) -> _Work | None:
    seconds = labels.receipts.seconds()
    known = ~np.isnan(seconds)
    if not known.any():
        return None
    accelerators = {name for name in labels.receipts.accelerators() if name is not None}
    return _Work(
        shards=int(known.sum()),
        positions=int(labels.receipts.numbers("positions")[known].sum()),
        seconds=float(seconds[known].sum()),
        accelerators=tuple(sorted(accelerators)),
    )


def _limit(labels: LabelSet) -> Limit | None:
    """From a seeded sample of stretches of records; None of a set without any, or a damaged one.

    What is wrong with it is for `verify` to say.
    """
    positions, records = labels.totals.positions, labels.totals.records
    if not positions or labels.plan.kind != "categorical":
        return None
    count = min(records, -(-_SAMPLE_POSITIONS * records // positions))
    length = -(-count // _STRETCHES)
    random = np.random.default_rng(0)
    begun = random.choice(-(-records // length), -(-count // length), replace=False, shuffle=False)
    chosen = (np.sort(begun)[:, None] * length + np.arange(length)).ravel()
    try:
        return limit(labels.take(chosen[chosen < records]).soft)
    except CorruptShardError:
        return None


def _in_words(least: Limit | None, positions: int) -> str:
    if least is None:
        return "not known: the labels cannot be read" if positions else "none: there are no labels"
    return (
        f"{least.total:.1f} a position for ids ({least.ids:.1f}) and values ({least.values:.1f}), "
        "by their entropy"
    )

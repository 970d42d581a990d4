"""A set in pieces that fit in memory: all of it, or a seeded sample of its records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, InputError
from softlabels.format.plan import Plan
from softlabels.format.records import Records
from softlabels.labels import SoftLabels
from softlabels.labels.invariants import problems
from softlabels.labelset.reader import LabelSet

# Entries of a block, whose temporaries stay in cache; and its records, of a few positions each.
_BLOCK_ENTRIES, _BLOCK_RECORDS = 1 << 17, 2048
# Rounded sums of exponentials may come out above 1 by as much.
_HIGHEST = 1e-5


@dataclass(frozen=True)
class Sample:
    """Which records are looked at.

    Attributes:
        numbers: of the records, ascending.
        whole: whether these are all.
    """

    numbers: NDArray[np.int64]
    whole: bool


def sample(labels: LabelSet, *, positions: int, seed: int) -> Sample:
    """All records, or so many that they have about `positions` positions.

    Raises:
        InputError: positions is not at least 1.
    """
    if positions < 1:
        raise InputError(f"sample is {positions}; it must be at least 1 position")
    records, there = len(labels), labels.totals.positions
    if there <= positions:
        return Sample(np.arange(records), whole=True)
    count = max(1, positions * records // there)
    random = np.random.default_rng(seed)
    return Sample(np.sort(random.choice(records, count, replace=False, shuffle=False)), whole=False)


def blocks(
    labels: LabelSet, numbers: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Records]]:
    """The records of these numbers, a few at a time, with their numbers."""
    totals = labels.totals
    entries = totals.positions / max(1, totals.records) * labels.plan.selection.k
    size = int(min(_BLOCK_RECORDS, max(1, _BLOCK_ENTRIES // max(1, entries))))
    for start in range(0, len(numbers), size):
        chosen = numbers[start : start + size]
        records = labels.take(chosen)
        check(records, labels)
        yield chosen, records


def check(records: Records, labels: LabelSet) -> None:
    """Refuse what no checksum covers and no number can be made of.

    Raises:
        CorruptShardError: a class that is none, or a log-prob that is none.
    """
    found = records.labels
    problem = None
    if not isinstance(found, SoftLabels):
        problem = next(problems(found, classes=labels.plan.teacher.classes, ordered=False), None)
    elif len(found):
        classes = labels.plan.teacher.classes
        least, most = int(found.ids.min()), int(found.ids.max())
        if least < 0 or most >= classes:
            problem = f"class id {most if most >= classes else least} is not below {classes}"
        # A weight of a sampled selection may be above 1.
        highest = float(found.log_probs.max())
        if not highest <= (math.inf if found.sampled else _HIGHEST):
            problem = f"a log-prob is {highest}"
    if problem is not None:
        raise CorruptShardError(
            f"{labels.name}: {problem}; the set was not written by this library, or changed since: "
            "run `softlabels verify DIR`"
        )


def distance(plan: Plan) -> int | None:
    """How many tokens on the hard label of a position stands; None where it is no token."""
    if plan.teacher.vocabulary is not None:
        return None
    return 1 if plan.hard_label_alignment == "next" else 0


def following(records: Records, plan: Plan, *, shift: int = 0) -> NDArray[np.int64] | None:
    """The token that each labelled position speaks of, −1 where it was not seen, (positions,).

    Args:
        shift: of tokens further on than the set's own alignment says.

    Returns:
        None where the set has no tokens, or its classes are none.
    """
    tokens, next_ids, ahead = records.token_ids, records.next_ids, distance(plan)
    if tokens is None or next_ids is None or ahead is None:
        return None
    lengths = np.diff(records.token_offsets)
    owner = np.repeat(np.arange(len(records)), lengths)[records.wanted]
    place = np.flatnonzero(records.wanted) + ahead + shift
    first, end = records.token_offsets[:-1][owner], records.token_offsets[1:][owner]
    found = np.full(len(place), -1, np.int64)
    inside = (first <= place) & (place < end)
    found[inside] = tokens[place[inside]]
    last = place == end
    found[last] = next_ids[owner[last]]
    return found

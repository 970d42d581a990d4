"""Records that surprise the teacher most, and hard labels that it does not believe."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.format.records import Records
from softlabels.looking.beliefs import Beliefs

# Short records surprise by chance; those of a set of single positions are as short as all others.
_LEAST_POSITIONS = 8
_SHOWN_TOKENS, _CONTEXT, _GUESSES = 96, 12, 3


@dataclass(frozen=True)
class Surprising:
    """A record.

    Attributes:
        key, part, view: which.
        positions: with a hard label.
        surprise: mean −log-prob of its hard labels, nats.
        tokens: the first of its token ids; empty where the set has none.
        surprises: −log-prob of each of them, None where the teacher said nothing of it.
    """

    key: str | int
    part: int
    view: int
    positions: int
    surprise: float
    tokens: tuple[int, ...]
    surprises: tuple[float | None, ...]


@dataclass(frozen=True)
class Suspect:
    """A position whose hard label is likely wrong.

    Attributes:
        key, part, view, position: which.
        before: token ids up to the position, the last few.
        hard: the hard label; None where the set does not tell.
        hard_prob: its probability.
        guesses: the likeliest classes and their probabilities.
    """

    key: str | int
    part: int
    view: int
    position: int
    before: tuple[int, ...]
    hard: int | None
    hard_prob: float
    guesses: tuple[tuple[int, float], ...]


class Findings:
    """Keeps the worst few of all records and positions that it is shown.

    Suspects are ordered by the margin p(first guess) − p(hard label): Northcutt et al., "Confident
    learning", JAIR 2021.

    Args:
        most: of each kind.
        ahead: how many tokens on a position's hard label stands; None where it is no token.
    """

    def __init__(self, most: int, *, ahead: int | None) -> None:
        self._most, self._ahead = most, ahead
        self._ties = itertools.count()
        self._surprising: list[tuple[float, int, Surprising]] = []
        self._suspects: list[tuple[tuple[float, float], int, Suspect]] = []

    def add(self, records: Records, found: Beliefs, hard: NDArray[np.int64] | None) -> None:
        """Look at some records and what the teacher believed at their positions."""
        for row, score in self._records(records, found):
            made = partial(_surprising, records, found, row, score, self._ahead)
            self._push(self._surprising, score, made)
        for place, margin in self._positions(found):
            self._push(self._suspects, margin, partial(_suspect, records, found, hard, place))

    def _push(self, heap: list[Any], score: Any, make: Callable[[], Any]) -> None:
        # Of equals the first one stays, so that the result does not depend on the blocks.
        if len(heap) < self._most or score > heap[0][0]:
            heapq.heappush(heap, (score, -next(self._ties), make()))
            if len(heap) > self._most:
                heapq.heappop(heap)

    def _records(self, records: Records, found: Beliefs) -> Iterator[tuple[int, float]]:
        owner = np.repeat(np.arange(len(records)), np.diff(records.label_offsets))
        surprise = np.where(found.known, -found.hard_log_probs, 0)
        counts = np.bincount(owner, found.known, len(records))
        sums = np.bincount(owner, surprise, len(records))
        single = records.label_offsets[-1] <= len(records)
        enough = np.flatnonzero(counts >= (1 if single else _LEAST_POSITIONS))
        scores = sums[enough] / counts[enough]
        for place in np.argsort(-scores, kind="stable")[: self._most]:
            yield int(enough[place]), float(scores[place])

    def _positions(self, found: Beliefs) -> Iterator[tuple[int, tuple[float, float]]]:
        wrong = np.flatnonzero(found.known & ~found.right)
        margin = found.first_probs[wrong] - np.exp(found.hard_log_probs[wrong])
        surprise = -found.hard_log_probs[wrong]
        for place in np.lexsort((-surprise, -margin))[: self._most]:
            yield int(wrong[place]), (float(margin[place]), float(surprise[place]))

    @property
    def surprising(self) -> list[Surprising]:
        """The most surprising record first."""
        return [thing for *_, thing in sorted(self._surprising, key=_order, reverse=True)]

    @property
    def suspects(self) -> list[Suspect]:
        """The most suspect position first."""
        return [thing for *_, thing in sorted(self._suspects, key=_order, reverse=True)]


def _order(item: tuple[Any, int, Any]) -> tuple[Any, int]:
    return item[:2]


def _identity(records: Records, row: int) -> dict[str, Any]:
    return {name: records.identity[name][row].as_py() for name in ("key", "part", "view")}


def _surprising(
    records: Records, found: Beliefs, row: int, score: float, ahead: int | None
) -> Surprising:
    start, stop = records.label_offsets[row : row + 2]
    tokens, surprises = token_surprises(records, found, row, ahead=ahead)
    return Surprising(
        **_identity(records, row),
        positions=int(found.known[start:stop].sum()),
        surprise=score,
        tokens=tuple(tokens[:_SHOWN_TOKENS]),
        surprises=tuple(surprises[:_SHOWN_TOKENS]),
    )


def token_surprises(
    records: Records, found: Beliefs, row: int, *, ahead: int | None
) -> tuple[list[int], list[float | None]]:
    """A record's token ids, and the surprise of each: −log-prob of it, where there is a label.

    Args:
        ahead: as `Findings` takes it.
    """
    if records.token_ids is None:
        return [], []
    first, end = (int(at) for at in records.token_offsets[row : row + 2])
    start, stop = (int(at) for at in records.label_offsets[row : row + 2])
    surprises: list[float | None] = [None] * (end - first + 1)
    if ahead is None:
        return records.token_ids[first:end].tolist(), surprises[:-1]
    places = np.flatnonzero(records.wanted[first:end]) + ahead
    for place, log_prob in zip(places, found.hard_log_probs[start:stop], strict=True):
        surprises[place] = None if math.isnan(log_prob) else -float(log_prob)
    return records.token_ids[first:end].tolist(), surprises[:-1]


def _suspect(
    records: Records, found: Beliefs, hard: NDArray[np.int64] | None, place: int
) -> Suspect:
    row = int(np.searchsorted(records.label_offsets, place, side="right")) - 1
    first = int(records.token_offsets[row])
    at = int(np.flatnonzero(records.wanted)[place])
    before: tuple[int, ...] = ()
    if records.token_ids is not None:
        before = tuple(records.token_ids[max(first, at + 1 - _CONTEXT) : at + 1].tolist())
    labels = records.soft[place : place + 1].top(_GUESSES) if not records.soft.sampled else None
    guesses: tuple[tuple[int, float], ...] = ((int(found.first[place]), found.first_probs[place]),)
    if labels is not None:
        probs = labels.log_probs[0].double().exp().tolist()
        guesses = tuple(zip(labels.ids[0].tolist(), probs, strict=True))
    return Suspect(
        **_identity(records, row),
        position=at - first,
        before=before,
        hard=None if hard is None else int(hard[place]),
        hard_prob=math.exp(found.hard_log_probs[place]),
        guesses=guesses,
    )

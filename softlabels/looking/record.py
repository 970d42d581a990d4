"""One record as it is shown: its tokens, and what the teacher believed at each position."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import logsigmoid

from softlabels.errors import InputError, quoted
from softlabels.format.records import Records
from softlabels.labels import BinaryLabels, Embeddings, Labels, SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.looking.beliefs import beliefs
from softlabels.looking.blocks import check, distance, following
from softlabels.looking.findings import token_surprises


@dataclass(frozen=True)
class Window:
    """What of a record is shown: labelled positions from `start` on, `top` classes at each.

    None for `positions` and `top` means all.
    """

    start: int = 0
    positions: int | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("positions", 1), ("top", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} is {value}; it must be at least {least}")

    def of(self, mask: Tensor) -> tuple[list[int], int]:
        """The positions shown, of a record's mask, and how many labelled ones come after them."""
        if self.start >= len(mask):
            raise InputError(
                f"there is no position {self.start}; the record has {len(mask)} positions"
            )
        labelled = [t for t in mask.nonzero().flatten().tolist() if t >= self.start]
        shown = labelled[: self.positions]
        return shown, len(labelled) - len(shown)


@dataclass(frozen=True)
class Line:
    """A position.

    Attributes:
        position: which.
        token, next: its token id, and the hard label; None where not known.
        next_log_prob: of the hard label.
        ids, log_probs: the kept classes, the likeliest first.
        logsumexp: of the logits; None where not known.
        log_tails: of the classes not kept, at each of the set's temperatures; of independent
            classes of each one of them.
        vector: its first numbers, where the labels are vectors.
        length: of the whole vector.
    """

    position: int
    token: int | None
    next: int | None
    next_log_prob: float | None
    ids: list[int]
    log_probs: list[float]
    logsumexp: float | None
    log_tails: list[float]
    vector: list[float] = field(default_factory=list)
    length: float | None = None


@dataclass(frozen=True)
class Shown:
    """A record, or a part of it.

    Attributes:
        identity: key, part, view, source_start, source_length.
        length: its tokens.
        temperatures: of the log tails.
        lines: what is shown of its labelled positions.
        rest: how many labelled positions come after them.
        tokens: its token ids from the first that is shown to the one after the last; empty where
            the set has none.
        surprises: −log-prob of each of them; None where the teacher said nothing of it.
        hard_surprise: mean of all the record's hard labels, nats; None without any.
    """

    identity: dict[str, Any]
    length: int
    temperatures: tuple[float, ...]
    lines: list[Line]
    rest: int
    tokens: list[int]
    surprises: list[float | None]
    hard_surprise: float | None

    def to_json(self) -> dict[str, Any]:
        """As `softlabels show --json` prints it."""
        lines = [vars(line) for line in self.lines]
        return {
            **self.identity,
            "length": self.length,
            "temperatures": self.temperatures,
            "positions": lines,
        }


def find(labels: LabelSet, key: str | None, part: int | None, view: int) -> int:
    """The number of the record asked for; by default the first one, of a key or of the set.

    Raises:
        InputError: the set has no records, or keys are numbers and this is none.
        JoinError: there is no such record.
    """
    if not len(labels):
        rejects = (
            f"; of its samples, {labels.totals.rejects:,} were rejected: see `softlabels audit`"
        )
        why = rejects if labels.finished else " yet"
        raise InputError(f"{labels.name} holds no records{why}")
    if key is None:
        return 0
    wanted = _key(labels, key)
    if part is None:
        # The first windows of a chat may hold nothing to label.
        part = next(iter(labels.parts(wanted)), 0)
    return labels.index(wanted, part=part, view=view)


def shown(labels: LabelSet, number: int, window: Window) -> Shown:
    """What of a record is asked for."""
    records = labels.take([number])
    check(records, labels)
    found = _as_probabilities(records.record_labels(0))
    if not labels.codec.ordered and not isinstance(found, Embeddings):
        found = found.sorted()
    assert found.mask is not None
    places, rest = window.of(found.mask)
    tokens = None if records.token_ids is None else records.token_ids.tolist()
    if isinstance(found, Embeddings):
        lines = _vectors(found, places, window.top)
    else:
        lines = _lines(found, tokens, _hard(records, labels), places, window.top)
    surprises, mean = _surprises(records, labels)
    first, end = (places[0], places[-1] + 2) if places else (0, 0)
    return Shown(
        identity={
            name: records.identity[name][0].as_py()
            for name in ("key", "part", "view", "source_start", "source_length")
        },
        length=len(found),
        temperatures=() if isinstance(found, Embeddings) else found.temperatures,
        lines=lines,
        rest=rest,
        tokens=[] if tokens is None else tokens[first:end],
        surprises=[] if tokens is None else surprises[first:end],
        hard_surprise=mean,
    )


def _as_probabilities(found: Labels) -> SoftLabels | Embeddings:
    """Labels as they are shown: of independent classes each one's own probability."""
    if isinstance(found, BinaryLabels):
        floors = None if found.floors is None else logsigmoid(found.floors)
        return SoftLabels(
            ids=found.ids,
            log_probs=logsigmoid(found.log_odds),
            log_tails=floors,
            temperatures=found.temperatures,
            mask=found.mask,
        )
    return found


def _vectors(found: Embeddings, places: list[int], top: int | None) -> list[Line]:
    return [
        Line(
            position=t,
            token=None,
            next=None,
            next_log_prob=None,
            ids=[],
            log_probs=[],
            logsumexp=None,
            log_tails=[],
            vector=found.vectors[t][:top].tolist(),
            length=float(found.vectors[t].double().norm()),
        )
        for t in places
    ]


def _lines(
    found: SoftLabels,
    tokens: list[int] | None,
    hard: dict[int, int],
    places: list[int],
    top: int | None,
) -> list[Line]:
    used = found.log_probs > -math.inf
    return [
        Line(
            position=t,
            token=None if tokens is None else tokens[t],
            next=hard.get(t),
            next_log_prob=_number(found.hard_log_probs, t),
            ids=found.ids[t][used[t]][:top].tolist(),
            log_probs=found.log_probs[t][used[t]][:top].tolist(),
            logsumexp=_number(found.logsumexp, t),
            log_tails=[] if found.log_tails is None else found.log_tails[t].tolist(),
        )
        for t in places
    ]


def _hard(records: Records, labels: LabelSet) -> dict[int, int]:
    """The hard labels that are known, by position."""
    found = following(records, labels.plan)
    if found is None:
        return {}
    places = np.flatnonzero(records.wanted).tolist()
    return {t: label for t, label in zip(places, found.tolist(), strict=True) if label >= 0}


def _surprises(records: Records, labels: LabelSet) -> tuple[list[float | None], float | None]:
    if not isinstance(records.labels, SoftLabels):
        return [None] * len(records.wanted), None
    believed = beliefs(records.soft, None)
    _, surprises = token_surprises(records, believed, 0, ahead=distance(labels.plan))
    known = believed.hard_log_probs[believed.known]
    return surprises, -float(known.mean()) if len(known) else None


def _key(labels: LabelSet, key: str) -> str | int:
    if labels.plan.data.key_type == "string":
        return key
    try:
        return int(key)
    except ValueError:
        raise InputError(f"keys of this set are whole numbers, {quoted(key)} is none") from None


def _number(values: Tensor | None, position: int) -> float | None:
    if values is None or math.isnan(float(values[position])):
        return None
    return float(values[position])

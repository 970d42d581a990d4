"""Several label sets of the same records: the first one leads, the others follow by identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.arrow import numpy_of
from softlabels.codecs.sampled import Sampled
from softlabels.errors import InputError, JoinError, KindError, VocabularyMismatchError, quoted
from softlabels.format.records import Records, join
from softlabels.inputs.digests import key_hashes
from softlabels.labels import Labels, soft
from softlabels.labelset.reader import LabelSet
from softlabels.loading.choice import drawn
from softlabels.loading.classes import order_of, renumbered
from softlabels.loading.fuse import NO_MIXTURE, alike, disagreement, mixture, normalised

Int64s = NDArray[np.int64]
Uint64s = NDArray[np.uint64]
Fuse = Literal["mixture", "choice"]
FUSE = ("mixture", "choice")
_SAME = ("key", "part", "view", "prepared_digest")


@dataclass(frozen=True)
class Follower:
    """A set whose records are found beside the leader's.

    Attributes:
        labels: the set.
        number_of: its record for each of the leader's, −1 where it has none, (leader's records,).
    """

    labels: LabelSet
    number_of: Int64s

    @classmethod
    def of(cls, leader: LabelSet, labels: LabelSet) -> Follower:
        """Find the records of the same key, part and view."""
        ours, theirs = _identity_hashes(leader), _identity_hashes(labels)
        order = np.argsort(theirs, kind="stable")
        if not len(order):
            return cls(labels, np.full(len(ours), -1))
        places = np.searchsorted(theirs[order], ours).clip(max=len(order) - 1)
        found = order[places]
        return cls(labels, np.where(theirs[found] == ours, found, -1))

    def take(self, numbers: Int64s, beside: Records, device: torch.device) -> Records:
        """Its labels of the leader's records.

        Raises:
            JoinError: it labelled other tokens under the same key.
        """
        records = self.labels.take(self.number_of[numbers], device=device)
        here, there = beside.identity, records.identity
        for name in _SAME:
            if here[name].combine_chunks() != there[name].combine_chunks():
                self._refuse(here.select(_SAME).to_pylist(), there.select(_SAME).to_pylist())
        return records

    def _refuse(self, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
        for one, other in zip(here, there, strict=True):
            if one != other:
                raise JoinError(
                    f"key {quoted(one['key'])}, part {one['part']}: {self.labels.name} has labels "
                    f"of other tokens (prepared digest {other['prepared_digest'].hex()}, the first "
                    f"set's {one['prepared_digest'].hex()}); several teachers have to label the "
                    "same tokens: one tokenizer, one preparation"
                )


def _check_alike(leader: LabelSet, other: LabelSet, fuse: Fuse | None, *, renumbered: bool) -> None:
    ours, theirs = leader.plan, other.plan
    if ours.teacher.classes != theirs.teacher.classes or ours.tokenizer != theirs.tokenizer:
        raise VocabularyMismatchError(
            f"{other.name} was made with {theirs.teacher.classes} classes, {leader.name} with "
            f"{ours.teacher.classes}, or with another tokenizer; teachers of one batch have to "
            "speak of the same classes and tokens"
        )
    if ours.kind != theirs.kind or (fuse == "mixture" and ours.kind != "categorical"):
        raise KindError(
            f"{leader.name} has labels of the kind {ours.kind}, {other.name} of {theirs.kind}; "
            "teachers of one batch have to be of one kind, and a mixture is of distributions over "
            "classes"
        )
    if ours.class_names != theirs.class_names and not renumbered:
        raise VocabularyMismatchError(
            f"{other.name} has other classes than {leader.name}, or in another order: "
            f"{_first_difference(ours.class_names, theirs.class_names)}; name the student's order "
            "of them: sl.loader(…, class_names=[…])"
        )
    if ours.hard_label_alignment != theirs.hard_label_alignment:
        raise InputError(
            f"labels at a token of {leader.name} are of the {ours.hard_label_alignment!r} token, "
            f"of {other.name} of the {theirs.hard_label_alignment!r} one; teachers of one batch "
            "have to answer the same question: load them with a loader each"
        )
    sampled = [isinstance(labels.codec, Sampled) for labels in (leader, other)]
    if fuse == "choice" and sampled[0] != sampled[1]:
        of_weights, of_probabilities = (leader, other) if sampled[0] else (other, leader)
        raise InputError(
            f"{of_weights.name} is sampled, {of_probabilities.name} is not, and no loss fits a "
            "batch of both; leave out fuse= and give each a loss of its own"
        )
    if fuse == "mixture" and any(sampled):
        raise InputError(NO_MIXTURE)


def _first_difference(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> str:
    if ours is None or theirs is None:
        return "only one of them names its classes"
    place = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"class {place} is {quoted(theirs[place])}, in the first one {quoted(ours[place])}"


def _identity_hashes(labels: LabelSet) -> Uint64s:
    table = labels.columns(["key", "part", "view"])
    part, view = (numpy_of(table[name]).astype(np.uint64) for name in ("part", "view"))
    with np.errstate(over="ignore"):
        mixed = part * np.uint64(0x9E3779B97F4A7C15) + view * np.uint64(0xC2B2AE3D27D4EB4F)
    hashes: Uint64s = key_hashes(table["key"]) ^ mixed
    return hashes


class Teachers:
    """How the labels of several sets become a batch's `soft_labels`.

    Args:
        leader: the set that the records are chosen from.
        followers: the others, in the order of their names after the leader's.
        names: of all of them; None gives a list in place of a dict.
        fuse: "mixture" or "choice" make one of all; None keeps them apart.
        weights: of the teachers.
        seed: of the choice.
        orders: the student's numbers of each set's classes, see `classes.order_of`.
        compared: batches say how far the teachers are apart.
    """

    def __init__(
        self,
        leader: LabelSet,
        followers: Sequence[Follower],
        *,
        names: Sequence[str] | None,
        fuse: Fuse | None,
        weights: Sequence[float],
        seed: int,
        orders: Sequence[Tensor | None],
        compared: bool = False,
    ) -> None:
        self._orders, self._compared = list(orders), compared
        self.leader, self._followers, self._names = leader, list(followers), names
        self.fuse, self._weights, self._seed = fuse, list(weights), seed

    @classmethod
    def of(
        cls,
        labels: LabelSet | Sequence[LabelSet] | Mapping[str, LabelSet],
        *,
        fuse: Fuse | None,
        weights: Sequence[float] | None,
        seed: int,
        class_names: Sequence[str] | None = None,
        disagreement: bool = False,
    ) -> Teachers:
        """One set or several, the first of which leads.

        Raises:
            InputError: no sets, or a way to fuse them that does not fit.
            VocabularyMismatchError: their teachers have other classes or tokenizers.
        """
        if isinstance(labels, LabelSet):
            labels = [labels]
        names = list(labels) if isinstance(labels, Mapping) else None
        given = labels.values() if isinstance(labels, Mapping) else labels
        sets = list(given) if isinstance(given, Iterable) else []
        if not sets or not all(isinstance(one, LabelSet) for one in sets):
            raise InputError(
                f"labels are {labels!r}; expected an opened label set, or several in a list or by "
                "name: sl.loader(sl.LabelSet.open(path), …)"
            )
        leader, *others = sets
        if fuse not in (None, *FUSE):
            raise InputError(f"fuse is {fuse!r}; it is one of {', '.join(FUSE)}, or None")
        if (fuse is not None or weights is not None) and not others:
            raise InputError("fuse= and weights= are for several label sets; there is one")
        if weights is not None and fuse is None:
            raise InputError("weights= says how to fuse label sets; choose fuse='mixture'")
        if disagreement and (not others or fuse == "choice"):
            raise InputError(
                "disagreement= compares the teachers of several label sets, kept apart or mixed; "
                "leave it out"
            )
        shares = normalised([1.0] * (len(others) + 1) if weights is None else weights, len(sets))
        mixed = "mixture" if disagreement else fuse
        for other in others:
            _check_alike(leader, other, mixed, renumbered=class_names is not None)
        followers = [Follower.of(leader, other) for other in others]
        orders: list[Tensor | None] = [None] * len(sets)
        if class_names is not None:
            orders = [order_of(one, class_names) for one in sets]
        return cls(
            leader,
            followers,
            names=names,
            fuse=fuse,
            weights=shares,
            seed=seed,
            orders=orders,
            compared=disagreement,
        )

    def shared(self) -> Int64s | None:
        """The leader's records that all sets have, ascending; None for all of them."""
        if not self._followers:
            return None  # nothing as long as a single set is held
        found = np.ones(len(self.leader), bool)
        for follower in self._followers:
            found &= follower.number_of >= 0
        return None if found.all() else np.flatnonzero(found)

    def __len__(self) -> int:
        return len(self._followers) + 1

    @property
    def name(self) -> str:
        """What a saved place depends on."""
        shards = [digest for f in self._followers for digest in f.labels.receipts.texts("sha256")]
        fuse = f"choice {self._seed}" if self.fuse == "choice" else self.fuse
        return f"{fuse} {self._weights} {' '.join(shards)}"

    def prefetch(self, numbers: Int64s) -> None:
        """Begin to fetch the row groups of these records where a set is remote."""
        known = numbers[numbers >= 0]
        self.leader.prefetch(known)
        for follower in self._followers:
            follower.labels.prefetch(follower.number_of[known])

    def take(self, numbers: Int64s, epoch: int, device: torch.device) -> list[Records]:
        """The leader's records, then the others' labels of them; one value where it is chosen."""
        first = renumbered(self.leader.take(numbers, device=device), self._orders[0])
        if self.fuse != "choice":
            return [first, *(self._others(numbers, first, device, i) for i in self._places)]
        chosen = self._chosen(first, epoch)
        parts, places = [], []
        for index in range(len(self._followers) + 1):
            mine = np.flatnonzero(chosen == index)
            records = first.take(mine)
            if index:
                records = beside(records, self._others(numbers[mine], records, device, index))
            parts.append(records)
            places.append(mine)
        return [together(parts).take(np.argsort(np.concatenate(places), kind="stable"))]

    @property
    def _places(self) -> range:
        return range(1, len(self._followers) + 1)

    def _others(self, numbers: Int64s, first: Records, device: torch.device, place: int) -> Records:
        """Another set's labels of the leader's records."""
        found = self._followers[place - 1].take(numbers, first, device)
        return renumbered(found, self._orders[place])

    def fields(self, labels: list[Labels]) -> dict[str, Any]:
        """What of the teachers stands in the batch."""
        found = {"soft_labels": self._combined(labels)}
        if self._compared:
            found["disagreement"] = disagreement([soft(one) for one in labels], self._weights)
        return found

    def _combined(self, labels: list[Labels]) -> Any:
        if len(labels) == 1:
            return labels[0]
        if self.fuse == "mixture":
            return mixture([soft(one) for one in labels], self._weights)
        return labels if self._names is None else dict(zip(self._names, labels, strict=True))

    def _chosen(self, records: Records, epoch: int) -> Int64s:
        """The teacher of each record: a function of (seed, epoch, key) alone, by the weights."""
        hashes = key_hashes(records.identity["key"])
        fine = np.full(len(hashes), 1 << 30)
        ends = np.cumsum(self._weights) / np.sum(self._weights)
        # Another stream than the one that draws parts.
        place = drawn(hashes ^ np.uint64(0x5851F42D4C957F2D), fine, epoch, self._seed) / (1 << 30)
        chosen: Int64s = np.searchsorted(ends[:-1], place, side="right")
        return chosen


def beside(records: Records, other: Records) -> Records:
    """Another teacher's labels of the same tokens."""
    return replace(
        records, wanted=other.wanted, labels=other.labels, label_offsets=other.label_offsets
    )


def together(parts: Sequence[Records]) -> Records:
    """Records of several teachers, one after another."""
    some = [part for part in parts if len(part)]
    values = alike([part.soft for part in some])
    return join([replace(p, labels=y) for p, y in zip(some, values, strict=True)])

"""What two sets differ in: recipe, records, values; one pass over each, in bounded memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, InputError
from softlabels.format.records import Records
from softlabels.labels import Labels, SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.looking.apart import equal, kl_between
from softlabels.looking.blocks import check
from softlabels.training.evaluate import likeliest

_EXAMPLES = 5
# Identities that are compared together.
_CHUNK = 16_384
# Positions compared together, of which a few float64 copies of all entries are made.
_BLOCK_ENTRIES, _BLOCK_RECORDS = 1 << 20, 4096
_LONG_TEXT = 200
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Field:
    """A field of the plan that differs; None where a plan does not have it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class RecordsDiffer:
    """Records of two sets, joined by key, part and view.

    Attributes:
        common: in both.
        only_a, only_b: in one alone.
        other_inputs: of the common ones, those of another source row (`input_digest`).
        other_tokens: those of other token ids (`prepared_digest`).
        other_positions: those with the same tokens, of which other positions are labelled.
        examples: keys of the first few of each of these, by name.
    """

    common: int
    only_a: int
    only_b: int
    other_inputs: int
    other_tokens: int
    other_positions: int
    examples: dict[str, list[str | int]]


@dataclass(frozen=True)
class ValuesDiffer:
    """Labels of the common records with the same tokens and labelled positions.

    Attributes:
        positions: compared.
        same: of them, those whose entries, tails and hard labels are equal to the bit.
        mean_kl, max_kl: KL(A ‖ B) in nats at T = 1 over the classes that both keep and one rest;
            None where one of the sets is sampled or has no tail at T = 1.
        worst: key, part, view and position of the largest KL.
        first_guess: share of positions with the same first guess; None where labels are no
            distributions over classes.
    """

    positions: int
    same: int
    mean_kl: float | None
    max_kl: float | None
    worst: dict[str, Any] | None
    first_guess: float | None


@dataclass(frozen=True)
class Difference:
    """What two sets differ in."""

    provenance: tuple[Field, ...]
    records: RecordsDiffer
    values: ValuesDiffer

    @property
    def any(self) -> bool:
        """Whether they differ at all."""
        found, values = self.records, self.values
        changed = found.other_inputs + found.other_tokens + found.other_positions
        return bool(
            self.provenance
            or found.only_a + found.only_b + changed
            or values.same < values.positions
        )

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {"differ": self.any, **asdict(self)}


def difference(a: LabelSet, b: LabelSet) -> Difference:
    """Compare two sets.

    Raises:
        InputError: keys of one are numbers, of the other text.
        CorruptShardError: one is damaged.
    """
    kinds = a.plan.data.key_type, b.plan.data.key_type
    if kinds[0] != kinds[1]:
        raise InputError(
            f"keys of {a.name} are {kinds[0]}, those of {b.name} {kinds[1]}: no record of one can "
            "be found in the other; compare sets with the same key column"
        )
    pairs, records = _joined(a, b)
    compared = _Compared(a, b)
    size = _block(a, b)
    for start in range(0, len(pairs), size):
        compared.add(pairs[start : start + size])
    records = replace(
        records,
        other_positions=compared.other_positions,
        examples={**records.examples, "other_positions": compared.examples},
    )
    return Difference(_provenance(a, b), records, compared.values())


def _provenance(a: LabelSet, b: LabelSet) -> tuple[Field, ...]:
    ours, theirs = (_leaves(labels.plan.model_dump(mode="json")) for labels in (a, b))
    return tuple(
        Field(name, ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, str) and len(value) > _LONG_TEXT:  # a codec's tables
        digest = xxhash.xxh3_64_hexdigest(value.encode())
        return {prefix: f"{len(value):,} characters, xxh3-64 {digest}"}
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _joined(a: LabelSet, b: LabelSet) -> tuple[Ints, RecordsDiffer]:
    """Numbers of comparable records in A and B, (n, 2), and what becomes of all others."""
    seen = np.zeros(len(a), bool)
    counts = dict.fromkeys(("only_a", "only_b", "other_inputs", "other_tokens"), 0)
    examples: dict[str, list[str | int]] = {}
    pairs = [np.zeros((0, 2), np.int64)]

    def count(name: str, keys: list[str | int]) -> None:
        counts[name] += len(keys)
        examples.setdefault(name, []).extend(keys[:_EXAMPLES])
        del examples[name][_EXAMPLES:]

    for start in range(0, len(b), _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, len(b)))
        theirs = b.identity(numbers)
        found = _matched(a, theirs)
        here = found >= 0
        keys = np.asarray(theirs["key"].to_pylist(), object)
        count("only_b", keys[~here].tolist())
        seen[found[here]] = True
        ours = a.identity(found[here])
        inputs, prepared = (
            _digests(ours, name) != _digests(theirs, name)[here]
            for name in ("input_digest", "prepared_digest")
        )
        count("other_inputs", keys[here][inputs].tolist())
        count("other_tokens", keys[here][prepared].tolist())
        pairs.append(np.stack([found[here], numbers[here]], 1)[~prepared])
    for start in range(0, len(a), _CHUNK):
        missing = start + np.flatnonzero(~seen[start : start + _CHUNK])
        count("only_a", a.identity(missing)["key"].to_pylist())
    found_pairs = np.concatenate(pairs)
    return found_pairs, RecordsDiffer(
        common=int(seen.sum()), other_positions=0, examples=examples, **counts
    )


def _matched(labels: LabelSet, wanted: pa.Table) -> Ints:
    """The number of each of these records in another set, −1 where it has none."""
    found = np.full(len(wanted), -1, np.int64)
    places, numbers = labels.match(wanted["key"].combine_chunks())
    ours, theirs = labels.identity(numbers), wanted.take(pa.array(places))
    same = np.ones(len(places), bool)
    for name in ("key", "part", "view"):
        # A hit by hash is proven by the identity itself.
        same &= pc.equal(ours[name], theirs[name]).to_numpy(zero_copy_only=False)
    found[places[same]] = numbers[same]
    return found


def _digests(table: pa.Table, name: str) -> Ints:
    column = table[name].combine_chunks()
    values: Ints = np.frombuffer(b"".join(column.to_pylist()), "<i8")
    return values


def _block(a: LabelSet, b: LabelSet) -> int:
    """How many records are compared together."""
    entries = max(
        labels.totals.positions / max(1, labels.totals.records) * labels.plan.selection.k
        for labels in (a, b)
    )
    return int(min(_BLOCK_RECORDS, max(1, _BLOCK_ENTRIES // max(1, entries))))


class _Compared:
    """Running sums over pairs of records with the same tokens."""

    def __init__(self, a: LabelSet, b: LabelSet) -> None:
        self._a, self._b = a, b
        self._positions = self._same = self._agreed = self.other_positions = 0
        self._kl_sum, self._kl_known, self._guesses = 0.0, True, True
        self._worst: tuple[float, dict[str, Any]] | None = None
        self.examples: list[str | int] = []

    def add(self, pairs: Ints) -> None:
        """Compare records of these numbers in A and B, (n, 2)."""
        ours, theirs = self._a.take(pairs[:, 0]), self._b.take(pairs[:, 1])
        check(ours, self._a)
        check(theirs, self._b)
        if not np.array_equal(ours.token_offsets, theirs.token_offsets):
            raise CorruptShardError(
                f"{self._a.name} and {self._b.name}: records with one prepared_digest have "
                "different lengths; run `softlabels verify` on both"
            )
        owner = np.repeat(np.arange(len(ours)), np.diff(ours.token_offsets))
        other = np.unique(owner[ours.wanted != theirs.wanted])
        if len(other):
            self.other_positions += len(other)
            self.examples += ours.identity["key"].take(pa.array(other)).to_pylist()
            del self.examples[_EXAMPLES:]
            alike = np.setdiff1d(np.arange(len(ours)), other)
            ours, theirs = ours.take(alike), theirs.take(alike)
        if isinstance(ours.labels, SoftLabels) and isinstance(theirs.labels, SoftLabels):
            if len(ours.labels):
                self._compare(ours, theirs.labels)
        else:
            self._compare_others(ours.labels, theirs.labels)

    def _compare_others(self, ours: Labels, theirs: Labels) -> None:
        """Of independent classes and vectors, what is the same to the bit."""
        self._kl_known, self._guesses = False, False
        self._positions += len(ours)
        fields = ours.tensors()
        if type(ours) is not type(theirs) or fields.keys() != theirs.tensors().keys():
            return
        same = torch.ones(len(ours), dtype=torch.bool)
        for name, tensor in theirs.tensors().items():
            if fields[name].shape != tensor.shape:
                return
            same &= (fields[name] == tensor).reshape(len(ours), -1).all(-1)
        self._same += int(same.sum())

    def _compare(self, records: Records, theirs: SoftLabels) -> None:
        ours = records.soft
        self._positions += len(ours)
        self._same += int(equal(ours, theirs).sum())
        self._agreed += int((likeliest(ours) == likeliest(theirs)).sum())
        kl = kl_between(ours, theirs)
        if kl is None:
            self._kl_known = False
            return
        self._kl_sum += float(kl.sum())
        place = int(kl.argmax())
        if self._worst is None or float(kl[place]) > self._worst[0]:
            self._worst = float(kl[place]), _where(records, place)

    def values(self) -> ValuesDiffer:
        """What came out."""
        known = self._kl_known and self._worst is not None
        count = max(1, self._positions)
        return ValuesDiffer(
            positions=self._positions,
            same=self._same,
            mean_kl=self._kl_sum / count if known else None,
            max_kl=self._worst[0] if known and self._worst else None,
            worst=self._worst[1] if known and self._worst else None,
            first_guess=self._agreed / count if self._positions and self._guesses else None,
        )


def _where(records: Records, place: int) -> dict[str, Any]:
    row = int(np.searchsorted(records.label_offsets, place, side="right")) - 1
    token = int(np.flatnonzero(records.wanted)[place]) - int(records.token_offsets[row])
    identity = {name: records.identity[name][row].as_py() for name in ("key", "part", "view")}
    return {**identity, "position": token}

"""The sets that one is derived from: of one provenance, no key twice, unit after unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.deriving.choice import Choice
from softlabels.errors import DuplicateKeyError, InputError, LabelSetError, quoted
from softlabels.format import layout, manifest
from softlabels.format import plan as plans
from softlabels.format.derived_from import Merged, Origin
from softlabels.format.manifest import Receipt
from softlabels.format.shard import Shard
from softlabels.labelset.reader import LabelSet

Int64s = NDArray[np.int64]

# What says nothing of what a label means: how a run went, and how its entries are written.
_MAY_DIFFER = ("unit_rows", "batch_tokens", "packing", "probes", "data.limit", "derived_from")


@dataclass(frozen=True)
class Sources:
    """Finished sets whose units are numbered on from set to set.

    Attributes:
        sets: the first one's plan is the one that is derived from.
    """

    sets: tuple[LabelSet, ...]

    @cached_property
    def _starts(self) -> Int64s:
        return np.cumsum([0, *(len(labels.receipts) for labels in self.sets)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def counts(self, name: str) -> Int64s:
        """A count of every unit, such as `rows`, (units,)."""
        none = np.empty(0, np.int64)
        return np.concatenate([none, *(labels.receipts.numbers(name) for labels in self.sets)])

    def open(self, unit: int) -> tuple[LabelSet, Receipt, Shard]:
        """A unit's set, receipt and shard; raises `CorruptShardError`."""
        number = int(np.searchsorted(self._starts, unit, side="right")) - 1
        labels = self.sets[number]
        receipt = labels.receipts[unit - int(self._starts[number])]
        return labels, receipt, labels.open_shard(receipt)

    def origin(self, **taken: Any) -> Origin:
        """What the plan says of them and of what is taken."""
        first, *others = self.sets
        merged = tuple(
            Merged(**_identity(each), derived_from=each.plan.derived_from) for each in others
        )
        return Origin(**_identity(first), merged=merged, **taken)


def _identity(labels: LabelSet) -> dict[str, Any]:
    where = labels.root / layout.MANIFEST
    files = manifest.parse(where.read_bytes(), where=str(where)).files
    return {
        "plan_sha256": plans.digest((labels.root / layout.PLAN).read_bytes()),
        "shards_sha256": files[layout.SHARDS],
        "codec": str(labels.plan.codec["name"]),
        "k": labels.plan.selection.k,
        "writer": labels.plan.writer,
    }


def check_sources(sets: Sequence[LabelSet]) -> None:
    """Refuse sets whose records could not stand in one.

    Raises:
        LabelSetError: one is unfinished.
        InputError: they differ in teacher, preparation, selection, codec or the like.
    """
    for labels in sets:
        if not labels.finished:
            raise LabelSetError(
                f"{labels.name} is unfinished; run the `softlabels precompute` that began it again"
            )
    for labels in sets[1:]:
        changes = {
            name: values
            for name, values in plans.differences(sets[0].plan, labels.plan).items()
            if not name.startswith(_MAY_DIFFER)
            and (name == "codec.name" or not name.startswith("codec."))
        }
        if changes:
            lines = "; ".join(
                f"{name} is {_shown(first)} and {_shown(other)}"
                for name, (first, other) in changes.items()
            )
            raise InputError(
                f"{sets[0].name} and {labels.name} cannot be merged: {lines}. Labels of two "
                "recipes do not mix; join them when they are read: softlabels.loader([…])"
            )


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def check_apart(sets: Sequence[LabelSet], choice: Choice) -> None:
    """Refuse sets that hold one sample twice, in memory that does not grow with their size.

    Raises:
        DuplicateKeyError: naming the key and both sets.
    """
    for later, labels in enumerate(sets[1:], 1):
        for keys in _keys(labels):
            chosen = keys.filter(pa.array(choice.of_keys(keys)))
            for earlier in sets[:later]:
                _check_not_in(earlier, chosen, labels)


def _keys(labels: LabelSet) -> Iterator[pa.Array]:
    """Keys of a set's records and rejects, shard by shard."""
    for receipt in labels.receipts:
        shard = labels.open_shard(receipt)
        for group in range(shard.metadata.num_row_groups):
            yield shard.read(group, ["key"])["key"].combine_chunks().unique()
    kind = pa.string() if labels.plan.data.key_type == "string" else pa.int64()
    if labels.totals.rejects:
        yield pa.array(list(labels.rejected), kind)


def _check_not_in(earlier: LabelSet, keys: pa.Array, later: LabelSet) -> None:
    places, records = earlier.match(keys)
    for place, record in zip(places.tolist(), records.tolist(), strict=True):
        key = keys[place].as_py()
        if earlier.identity([record])["key"][0].as_py() == key:
            raise _twice(key, earlier, later)
    if earlier.totals.rejects:
        for key in earlier.rejected.intersection(keys.to_pylist()):
            raise _twice(key, earlier, later)


def _twice(key: Any, earlier: LabelSet, later: LabelSet) -> DuplicateKeyError:
    way_out = "leave it out of one of them: softlabels derive --keys"
    if later.plan.data.key is None:
        way_out = "keys are row numbers here: label with a key column to merge"
    return DuplicateKeyError(
        f"the key {quoted(key)} is in {earlier.name} and in {later.name}; labels are joined by "
        f"key, so each must occur once: {way_out}"
    )

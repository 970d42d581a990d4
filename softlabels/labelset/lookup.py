"""Records of a label set by key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import JoinError, quoted
from softlabels.format import layout
from softlabels.format.keys import KeyIndex
from softlabels.format.plan import Plan
from softlabels.inputs.digests import key_hashes
from softlabels.labelset.held import Held
from softlabels.stores.store import Store


class Lookup:
    """From keys to record numbers: an index tells candidates, the key itself proves each.

    Args:
        finished: whether the set is, and so has an index of its own.
    """

    def __init__(self, store: Store, plan: Plan, held: Held, *, finished: bool) -> None:
        self._store, self._plan, self._held = store, plan, held
        self._finished = finished

    def index(self, key: str | int, *, part: int, view: int) -> int:
        """The number of a record; raises `JoinError` (a KeyError) if there is none."""
        for number, row in self._rows(key):
            if row["part"] == part and row["view"] == view:
                return number
        _ = self._checked
        name = self._store.name
        if self.parts(key):
            raise JoinError(
                f"key {quoted(key)} has no record of part {part}, view {view} in {name}; it "
                f"has {self._places_of(key)}"
            )
        first = [row["key"] for row in self._identity(0)] if len(self._held.row_groups) else []
        raise JoinError(
            f"no record with key {quoted(key)} in {name}; keys are "
            f"{self._plan.data.key_type}, the first is {quoted(first[0]) if first else 'missing'}"
        )

    def parts(self, key: str | int) -> list[int]:
        """The parts of a key that were labelled, ascending; empty if there is no such key."""
        # That there is no other part is proven only by an index that is whole.
        _ = self._checked
        return sorted({row["part"] for _, row in self._rows(key)})

    def match(self, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `LabelSet.match`."""
        places, records = self.key_index.match(key_hashes(keys))
        known = (records >= 0) & (records < self._held.row_groups.records)
        if not known.all() or len(np.unique(places)) < len(keys):
            _ = self._checked
        return places[known], records[known]

    @cached_property
    def key_index(self) -> KeyIndex:
        """From keys to the records that may have them; memory-mapped where the set is finished."""
        path = self._store.find(layout.KEYS) if self._finished else None
        if path is not None and path.stat().st_size == 16 * self._held.row_groups.records:
            return KeyIndex.map(path)
        return KeyIndex.build([self._held.columns(["key"])["key"]])

    @cached_property
    def _checked(self) -> bool:
        """A hit is proven by the key itself; a miss only by an index that is whole."""
        if self._finished:
            self._store.check_keys()
        return True

    def _places_of(self, key: str | int) -> str:
        """The parts, or views, of a key, in words."""
        rows = [row for _, row in self._rows(key)]
        views = sorted({row["view"] for row in rows})
        if self._plan.views is not None:
            return f"views {', '.join(map(str, views))}"
        return f"parts {', '.join(map(str, self.parts(key)))}"

    def _rows(self, key: str | int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number, key, part and view of each record that has a key."""
        key_type = self._plan.data.key_type
        wanted = str if key_type == "string" else (int, np.integer)
        if not isinstance(key, wanted) or isinstance(key, bool):
            raise JoinError(
                f"key {quoted(key)} is a {type(key).__name__}; keys of this set are {key_type}"
            )
        try:
            value = pa.array([key], pa.string() if key_type == "string" else pa.int64())
            candidates = self.key_index.candidates(value)
        except (OverflowError, UnicodeEncodeError):
            return  # beyond int64, or half a surrogate pair: no record can have it
        # A number that no record has is a miss, which the index as a whole must account for.
        records = self._held.row_groups.records
        for number in (number for number in candidates if number < records):
            for row in self._identity(number):
                if row["key"] == key:
                    yield number, row

    def _identity(self, number: int) -> list[dict[str, Any]]:
        """Key, part and view of one record."""
        rows: list[dict[str, Any]] = self._held.identity(np.asarray([number])).to_pylist()
        return rows

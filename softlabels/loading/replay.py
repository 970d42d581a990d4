"""Arrays made again as they were labelled: decoded, and seen in the views that were stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from softlabels.errors import InputError, JoinError, quoted
from softlabels.format.plan import Plan
from softlabels.format.records import VIEW_PARAMS, Records
from softlabels.inputs.digests import array_digest
from softlabels.inputs.prepare_arrays import prepare_arrays
from softlabels.inputs.samples import Partners, replayed
from softlabels.inputs.sources import Source
from softlabels.inputs.views import Views, differences
from softlabels.inputs.windows import Windows
from softlabels.labelset.reader import LabelSet

# What has to be the same for stored parameters to mean the same.
_MEANING = ("name", "version", "keep", "partner")


@dataclass(frozen=True)
class Replay:
    """How rows become the arrays that a set labelled.

    Attributes:
        plan: of the set.
        views: what makes its views; None where it has none.
        partners: what views are made of beside a row; None where they are of one alone.
    """

    plan: Plan
    views: Views | None
    partners: Partners | None

    @classmethod
    def of(cls, labels: LabelSet, source: Source, views: Views | None) -> Self:
        """Hold views to a set's.

        Raises:
            InputError: they are others, or missing.
        """
        stored = labels.plan.views
        if stored is None:
            if views is not None:
                raise InputError(f"{labels.name} has no views; leave out views=")
            return cls(labels.plan, None, None)
        if views is None:
            raise InputError(
                f"{labels.name} labels views of its samples, made by {quoted(stored.name)}, "
                f"version {quoted(stored.version)}; pass what makes them: sl.loader(…, "
                "views=softlabels.Views(…)), as it was given to softlabels.precompute"
            )
        for name in _MEANING:
            was, now = getattr(stored, name), getattr(views.identity, name)
            if was != now:
                raise InputError(
                    f"{labels.name} has views whose {name} is {was!r}, these have {now!r}; their "
                    "parameters would mean something else: pass what labelled the set"
                )
        if not views.partner:
            return cls(labels.plan, views, None)
        if source.read is None:
            raise InputError(
                "the set's views are made of two samples each, and the data is a stream; pass data "
                "with random access"
            )
        return cls(labels.plan, views, Partners(source))

    def with_arrays(self, table: pa.Table, records: Records) -> Records:
        """Records with their arrays, made of a row each.

        Raises:
            JoinError: they are not those that were labelled.
        """
        told = [None] * len(records)
        if VIEW_PARAMS in records.identity.column_names:
            told = records.identity[VIEW_PARAMS].to_pylist()
        column = table.column(self.plan.data.columns[0])
        arrays = replayed(column, told, self.views, self.partners)
        digests = records.identity["prepared_digest"].to_pylist()
        for row, (array, digest) in enumerate(zip(arrays, digests, strict=True)):
            if array_digest(array) != digest:
                self._refuse(records, row, array)
        return replace(records, arrays=tuple(arrays))

    def unlabelled(self, table: pa.Table) -> Windows:
        """Rows that have no labels, as they are.

        Raises:
            InputError: how many positions they have, the teacher alone knows.
        """
        rule = self.plan.preparation.positions
        if rule == "teacher":
            raise InputError(
                "how many labels an array gets is known to the teacher alone, so rows without "
                "labels cannot be trained on; pass on_missing='skip'"
            )
        return prepare_arrays(
            table.column(self.plan.data.columns[0]),
            pa.array(np.arange(len(table))),
            views=None,
            partners=None,
            ready=lambda array: array,
            positions=lambda shape: shape[0] if rule == "every" else 1,
        )

    def _refuse(self, records: Records, row: int, array: np.ndarray) -> None:
        identity = records.identity.slice(row, 1).to_pylist()[0]
        why = "the data was changed after labelling: join what was labelled, or label again"
        if self.views is not None and self.plan.views is not None:
            found = differences(self.plan.views, self.views.identity)
            other = f"; what differs: {', '.join(found)}" if found else ""
            why = (
                f"the sample was changed, or {quoted(self.plan.views.name)} makes other views of "
                f"the same parameters now{other}. Use the versions that labelled, or label again"
            )
        raise JoinError(
            f"key {quoted(identity['key'])}, view {identity['view']}: its array, of {array.dtype} "
            f"and shape {array.shape}, is not the one that was labelled (digest "
            f"{array_digest(array).hex()}, labelled was {identity['prepared_digest'].hex()}); {why}"
        )

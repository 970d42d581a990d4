"""How many tokens a set's records have in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Tokens of each record, as `max_length` cuts it.

    Attributes:
        labels: the set.
        tokens: of its records, (records,).
        room: tokens that a row has for one; None for as many as it takes.
    """

    labels: LabelSet
    tokens: Int64s
    room: int | None = None

    @classmethod
    def of(cls, labels: LabelSet, *, max_length: int | None, room: int | None) -> Self:
        """Read the lengths of a set's records."""
        tokens = numpy_of(labels.columns(["length"])["length"]).astype(np.int64)
        return cls(labels, tokens if max_length is None else tokens.clip(max=max_length), room)

    def __call__(self, records: Int64s) -> Int64s:
        """Tokens of these records.

        Raises:
            InputError: one of them does not fit into a row.
        """
        found = self.tokens[records]
        if self.room is not None and len(long := np.flatnonzero(found > self.room)):
            which = self.labels.identity(records[long[:1]])
            raise InputError(
                f"key {quoted(which['key'][0].as_py())}, part {which['part'][0].as_py()} of "
                f"{self.labels.name} has {found[long[0]]} tokens, a row has row_length={self.room}"
                f"; cut records with max_length={self.room}, or choose longer rows"
            )
        return found

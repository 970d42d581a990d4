"""What is asked of batches, and what goes together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softlabels.errors import InputError
from softlabels.labelset.reader import LabelSet
from softlabels.loading.assemble import Shape
from softlabels.loading.batches import Arrangement, AsTheyCome, ByLength, Packed
from softlabels.loading.join import OnMissing
from softlabels.loading.lengths import Lengths


@dataclass(frozen=True)
class Asked:
    """How batches are wanted.

    Attributes:
        batch_size: rows in one.
        seed: of their order; None for the set's.
        shape: of their tensors.
        by_length: records of about one length together.
    """

    batch_size: int
    seed: int | None
    shape: Shape
    by_length: bool

    def check(self, on_missing: OnMissing) -> None:
        """Raise InputError where numbers cannot be, or options do not go together."""
        for name, value in (
            ("batch_size", self.batch_size),
            ("max_length", self.shape.max_length),
            ("row_length", self.shape.row_length),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.by_length and self.shape.row_length is not None:
            raise InputError("by_length and row_length are two ways to pad less; choose one")
        if self._arranged and on_missing == "hard-label":
            raise InputError(
                "by_length and row_length need every record's length, which rows without labels "
                "have not been given; choose on_missing='skip', or label them too"
            )

    @property
    def _arranged(self) -> bool:
        return self.by_length or self.shape.row_length is not None

    def arrangement(self, labels: LabelSet) -> tuple[Arrangement, Lengths | None]:
        """The arrangement, and the lengths of the set's records if it asks for them."""
        if not self._arranged:
            return AsTheyCome(self.batch_size), None
        row = self.shape.row_length
        lengths = Lengths.of(labels, max_length=self.shape.max_length, room=row)
        if row is None:
            return ByLength(self.batch_size, self.seed), lengths
        mean = float(np.minimum(lengths.tokens, row).mean()) if len(lengths.tokens) else 1.0
        return Packed(self.batch_size, row, mean, self.seed), lengths

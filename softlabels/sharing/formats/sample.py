"""What every layout comes down to: the tokens of a sample, and some classes at its positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.labelset.reader import LabelSet

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One row of somebody's set. Entry p stands at token positions[p], over the token after it.

    Attributes:
        where: how errors call it: file and row.
        key: None where rows have only their numbers.
        token_ids: (T,).
        positions: labelled ones, ascending, (P,).
        ids: kept classes, (P, k); 0 where unused.
        log_probs: natural logs, (P, k); −inf where unused.
    """

    where: str
    key: str | int | None
    token_ids: Int64s
    positions: Int64s
    ids: Int64s
    log_probs: Float32s

    def shifted(self, by: int) -> Sample:
        """With labels `by` positions further on; those that fall off an end are gone."""
        moved = self.positions + by
        inside = (moved >= 0) & (moved < len(self.token_ids))
        return replace(
            self,
            positions=moved[inside],
            ids=self.ids[inside],
            log_probs=self.log_probs[inside],
        )


class Format(Protocol):
    """A layout.

    Attributes:
        classes: V, where the layout itself says it.
        rounding: how far its own precision may take a sum of probabilities above 1.
    """

    @property
    def classes(self) -> int | None: ...

    @property
    def rounding(self) -> float: ...

    def longest(self) -> int:
        """Tokens of the longest sample; raises `InputError` as `read`."""

    def read(self) -> Iterator[Sample]:
        """Samples in order, a few in memory at a time.

        Raises:
            InputError: a file, column or row is not of this layout; naming it.
        """

    def write(self, labels: LabelSet, out: Path) -> int:
        """Write a set in this layout into a new folder; returns how many records.

        Raises:
            InputError: the layout cannot say what the set holds.
        """


def samples(
    where: str,
    first: int,
    *,
    keys: Sequence[str | int | None],
    tokens: Sequence[Int64s],
    rows: Int64s,
    ids: Int64s,
    log_probs: Float32s,
) -> Iterator[Sample]:
    """Samples of some rows of a file, whose labels lie one after another.

    Args:
        where: the file.
        first: row in it.
        keys, tokens: of each row.
        rows: how many rows of labels each has: one a token; the last token's may be missing.
        ids, log_probs: all of them, (Σ rows, k). Where no entry is above −inf there is no label.

    Raises:
        InputError: a row has more labels, or fewer.
    """
    there = np.asarray((log_probs > -np.inf).any(1))
    ends = np.cumsum(rows)
    for row, (key, own, end) in enumerate(zip(keys, tokens, ends.tolist(), strict=True)):
        count = int(rows[row])
        if count not in (len(own), len(own) - 1):
            raise InputError(
                f"{where}, row {first + row}: {count} rows of labels for {len(own)} tokens; "
                f"expected one for each token, or for each but the last ({len(own) - 1})"
            )
        place = np.arange(end - count, end)[there[end - count : end]]
        yield Sample(
            where=f"{where}, row {first + row}",
            key=key,
            token_ids=own,
            positions=place - (end - count),
            ids=ids[place],
            log_probs=log_probs[place],
        )


def check_exportable(labels: LabelSet, layout: str) -> None:
    """Raise `InputError` for a set that only this library can express."""
    problem = None
    if not labels.plan.store_inputs:
        problem = "it does not store its token ids"
    elif labels.plan.selection.make().sampled:
        problem = "its entries are weights of a sample, not probabilities"
    elif labels.plan.hard_label_alignment != "next" or labels.plan.teacher.vocabulary is not None:
        problem = "its classes are not the tokens that come next"
    if problem is not None:
        raise InputError(f"{labels.name} cannot be written as {layout}: {problem}")

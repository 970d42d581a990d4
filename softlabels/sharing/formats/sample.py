"""What every layout comes down to: the tokens of a sample, and some classes at its positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.formats.windows import ALONE, Window, placed, whole

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
        window: where the tokens stand in the sample of that key.
        source_ids: all tokens of that sample, where its windows tell them; None: it is this one,
            or they do not.
    """

    where: str
    key: str | int | None
    token_ids: Int64s
    positions: Int64s
    ids: Int64s
    log_probs: Float32s
    window: Window = ALONE
    source_ids: Int64s | None = None

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
    windows: Iterable[Window],
    rows: Int64s,
    ids: Int64s,
    log_probs: Float32s,
) -> Iterator[Sample]:
    """Samples of some rows of a file, whose labels lie one after another.

    Args:
        where: the file.
        first: row in it.
        keys, tokens, windows: of each row.
        rows: how many rows of labels each has: one a token; the last token's may be missing.
        ids, log_probs: all of them, (Σ rows, k). Where no entry is above −inf there is no label.

    Raises:
        InputError: a row has more labels, or fewer.
    """
    there = np.asarray((log_probs > -np.inf).any(1))
    ends = np.cumsum(rows)
    each = zip(keys, tokens, windows, ends.tolist(), strict=True)
    for row, (key, own, window, end) in enumerate(each):
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
            window=window,
        )


def whole_samples(rows: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Rows of each sample: one, or its windows with their places and what they are windows of.

    Raises:
        InputError: a part of a key comes again, or after a later one.
    """
    group: list[Sample] = []
    for row in rows:
        if group and (row.key is None or row.key != group[-1].key):
            yield _together(group)
            group = []
        if group and row.window.part <= group[-1].window.part:
            raise InputError(
                f"{row.where}: part {row.window.part} of the key {quoted(row.key)} comes after "
                f"part {group[-1].window.part}; key and part name a record, so each must occur "
                "once, parts ascending: choose another key column, or number the windows of a "
                "sample in a column of parts (part=, --part)"
            )
        group.append(row)
    if group:
        yield _together(group)


def _together(group: list[Sample]) -> list[Sample]:
    if len(group) == 1 and group[0].window.part == 0:
        return group
    tokens = [row.token_ids for row in group]
    windows = placed([row.window for row in group], tokens)
    source_ids = whole(windows, tokens)
    return [
        replace(row, window=window, source_ids=source_ids)
        for row, window in zip(group, windows, strict=True)
    ]


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

"""Rows that are windows of one sample: their columns, and how the sample is had from them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted

PART, START, LENGTH = COLUMNS = ("part", "source_start", "source_length")
_MOST = 2**31 - 1

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Which part of its sample a row is.

    Attributes:
        part: from 0 on.
        start: its first token in the sample; None where the source does not say it.
        length: tokens of the sample; likewise.
    """

    part: int = 0
    start: int | None = None
    length: int | None = None


# Of a sample that is one row.
ALONE = Window()


def columns_of(
    there: Mapping[str, bool], where: str, *, key: str | None, part: str | None
) -> dict[str, str]:
    """Which columns say it, by the field of `COLUMNS`; none at all where there are no keys.

    Args:
        there: every column of the source, and whether it holds whole numbers.
        key: the column of keys.
        part: the column of parts; by default the one called "part", if it is one.

    Raises:
        InputError: a column that was asked for is none.
    """
    if key is None:
        if part is not None:
            raise InputError("part is the place of a row in the sample of its key: name key too")
        return {}
    if part is not None and not there.get(part):
        found = "holds no whole numbers" if part in there else "is not there"
        raise InputError(f"{where}: column {quoted(part)} {found}; expected parts, from 0 on")
    if not there.get(part or PART):
        return {}
    placed = there.get(START) and there.get(LENGTH)
    return {PART: part or PART} | ({START: START, LENGTH: LENGTH} if placed else {})


def windows(
    columns: Mapping[str, Sequence[Any]], rows: int, *, where: str, first: int
) -> Iterator[Window]:
    """Of some rows.

    Args:
        columns: of the fields of `COLUMNS` that there are.
        where: how errors call the file.
        first: the row's number in it.

    Raises:
        InputError: a value is none.
    """
    for row in range(rows):
        found: dict[str, int] = {}
        for name, values in columns.items():
            value = values[row]
            if value is None or not 0 <= value <= _MOST:
                raise InputError(
                    f"{where}, row {first + row}: {name} is {value}; expected 0 to {_MOST}"
                )
            found[name] = value
        yield Window(found.get(PART, 0), found.get(START), found.get(LENGTH))


def placed(windows: Sequence[Window], tokens: Sequence[Int64s]) -> list[Window]:
    """With all fields: what the source does not say is as of windows that do not overlap."""
    ends = np.cumsum([len(own) for own in tokens]).tolist()
    made = []
    for window, end, own in zip(windows, ends, tokens, strict=True):
        start = end - len(own) if window.start is None else window.start
        length = ends[-1] if window.length is None else window.length
        made.append(Window(window.part, start, length))
    return made


def whole(windows: Sequence[Window], tokens: Sequence[Int64s]) -> Int64s | None:
    """The sample's tokens, (T,); None where its windows do not say all of them, or contradict.

    Args:
        windows: as `placed` makes them.
        tokens: of each.
    """
    length = windows[0].length or 0
    if length > sum(map(len, tokens)):
        return None
    made = np.full(length, -1, np.int64)
    for window, own in zip(windows, tokens, strict=True):
        start = window.start or 0
        there = made[start : start + len(own)]
        if window.length != length or len(there) < len(own):
            return None
        if ((there >= 0) & (there != own)).any():
            return None
        there[:] = own
    return made if (made >= 0).all() else None

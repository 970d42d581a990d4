"""Batches of a unit's windows: a pure function of the windows and the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.inputs.windows import Windows

# What a batch costs beside its tokens, in tokens: weights are read once for all of it.
_BATCH_COST = 256


def bucketed(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Records of like length together, longest first, so that the least is computed in vain.

    Of all ways to cut the records by length into batches, the one with the fewest padded tokens
    where a batch more costs as much as 256 of them.

    Args:
        lengths: tokens of each record, (R,).
        batch_tokens: rows times longest row, at most; a longer record is a batch of its own.

    Yields:
        record numbers; together every record once.
    """
    order = np.argsort(-lengths, kind="stable")
    longest = lengths[order]
    # best[i]: what records i and on cost; rows[i]: how many of them are the first batch.
    best = np.zeros(len(order) + 1, np.int64)
    rows = np.zeros(len(order), np.int64)
    for first in range(len(order) - 1, -1, -1):
        most = min(max(1, batch_tokens // int(longest[first])), len(order) - first)
        costs = longest[first] * np.arange(1, most + 1) + best[first + 1 : first + 1 + most]
        rows[first] = 1 + costs.argmin()
        best[first] = costs.min() + _BATCH_COST
    start = 0
    while start < len(order):
        yield order[start : start + rows[start]]
        start += rows[start]


def of_one_shape(arrays: Sequence[NDArray[Any]], batch_values: int) -> Iterator[NDArray[np.int64]]:
    """Arrays of one shape and dtype together, in their order: nothing is padded.

    Args:
        batch_values: numbers in a batch, at most; a larger array is a batch of its own.

    Yields:
        record numbers; together every record once.
    """
    together: dict[tuple[Any, ...], list[int]] = {}
    for number, array in enumerate(arrays):
        together.setdefault((array.shape, array.dtype.str), []).append(number)
    for numbers in together.values():
        size = max(1, batch_values // max(1, arrays[numbers[0]].size))
        for start in range(0, len(numbers), size):
            yield np.asarray(numbers[start : start + size])


def stacked(windows: Windows, records: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Arrays of one shape, (B, *shape), and their positions, wanted and padding, (B, P)."""
    assert windows.arrays is not None
    inputs = np.stack([windows.arrays[record] for record in records.tolist()])
    wanted = windows.wanted[windows.tokens_of(records)].reshape(len(records), -1)
    padding = torch.zeros(wanted.shape, dtype=torch.bool)
    return torch.from_numpy(inputs), torch.from_numpy(wanted), padding


def padded(windows: Windows, records: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, wanted positions and padding of a batch, each (B, T), padded on the right.

    Padding repeats class 0, which every model knows; it is masked.
    """
    lengths = windows.lengths[records]
    inside = np.arange(int(lengths.max())) < lengths[:, None]
    where = windows.tokens_of(records)
    ids = np.zeros(inside.shape, np.int64)
    wanted = np.zeros(inside.shape, bool)
    assert windows.token_ids is not None
    ids[inside], wanted[inside] = windows.token_ids[where], windows.wanted[where]
    return torch.from_numpy(ids), torch.from_numpy(wanted), torch.from_numpy(~inside)


def rows_of_many(lengths: NDArray[np.int64], row_tokens: int) -> list[NDArray[np.int64]]:
    """Records put together into rows of so many tokens: each into the first row that has room.

    Args:
        lengths: tokens of each record, (R,), none longer than a row.

    Returns:
        record numbers of each row, longest first.
    """
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)
    for record in np.argsort(-lengths, kind="stable").tolist():
        free = np.flatnonzero(room[: len(rows)] >= lengths[record])
        if not len(free):
            room[len(rows)] = row_tokens
            rows.append([])
        row = int(free[0]) if len(free) else len(rows) - 1
        rows[row].append(record)
        room[row] -= lengths[record]
    return [np.asarray(row) for row in rows]


def packed(
    windows: Windows, rows: Sequence[NDArray[np.int64]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `padded`, of rows that hold several records, and each token's place in its own, (B, T)."""
    lengths = [windows.lengths[records] for records in rows]
    inside = np.arange(max(int(row.sum()) for row in lengths)) < [[row.sum()] for row in lengths]
    where = np.concatenate([windows.tokens_of(records) for records in rows])
    places = np.concatenate([np.arange(length) for row in lengths for length in row])
    ids, position_ids = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.int64)
    wanted = np.zeros(inside.shape, bool)
    assert windows.token_ids is not None
    ids[inside], wanted[inside] = windows.token_ids[where], windows.wanted[where]
    position_ids[inside] = places
    tensors = (torch.from_numpy(array) for array in (ids, wanted, ~inside, position_ids))
    return tuple(tensors)  # type: ignore[return-value]

"""Batches of a unit's windows: a pure function of the windows and the plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.inputs.prepare import Windows


def bucketed(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Records of like length together, so that little padding is computed; longest first.

    Args:
        lengths: tokens of each record, (R,).
        batch_tokens: rows times longest row, at most; a longer record is a batch of its own.

    Yields:
        record numbers; together every record once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def padded(windows: Windows, records: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, wanted positions and padding of a batch, each (B, T), padded on the right.

    Padding repeats class 0, which every model knows; it is masked.
    """
    lengths = windows.lengths[records]
    inside = np.arange(int(lengths.max())) < lengths[:, None]
    where = windows.tokens_of(records)
    ids = np.zeros(inside.shape, np.int64)
    wanted = np.zeros(inside.shape, bool)
    ids[inside], wanted[inside] = windows.token_ids[where], windows.wanted[where]
    return torch.from_numpy(ids), torch.from_numpy(wanted), torch.from_numpy(~inside)

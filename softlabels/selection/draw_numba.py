"""As `sampled.draw`, compiled, for a CPU; importing it fails where numba is not installed.

A row's exponentials are written once and stay in cache while its points are placed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.compiled import compiled
from softlabels.selection.reduce_numba import CHUNK, exponentials, shared, sum_of

BLOCK = 256


def draw(
    logits: Tensor, logsumexp: Tensor, kept: Tensor, points: Tensor, first: Tensor, *, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sampled.draw`."""
    z = logits.float().contiguous().numpy()
    rows = len(z)
    ids, counts = np.zeros((rows, n), np.int64), np.zeros((rows, n), np.int64)
    share = np.zeros(rows, np.float64)
    arrays = (z, *(each.numpy() for each in (logsumexp, kept, points, first)), ids, counts, share)
    shared(rows, lambda held: _draw(*(array[held] for array in arrays)))
    return torch.from_numpy(ids), torch.from_numpy(counts), torch.from_numpy(share)


@compiled
def _probs(
    z: NDArray[np.float32],
    logsumexp: np.float32,
    kept: NDArray[np.int64],
    probs: NDArray[np.float32],
    poly: NDArray[np.float32],
    power: NDArray[np.int32],
) -> None:
    """Of all classes; 0 of those that are kept."""
    for start in range(0, len(z), CHUNK):
        x = probs[start : start + CHUNK]
        held = z[start : start + len(x)]
        for i in range(len(x)):
            x[i] = held[i] - logsumexp
        scale = power.view(np.float32)
        exponentials(x, power[: len(x)], scale[: len(x)], poly[: len(x)])
    for i in range(len(kept)):
        if kept[i] >= 0:
            probs[kept[i]] = np.float32(0)


@compiled
def _draw(
    logits: NDArray[np.float32],
    logsumexp: NDArray[np.float32],
    kept: NDArray[np.int64],
    points: NDArray[np.int64],
    first: NDArray[np.float64],
    ids: NDArray[np.int64],
    counts: NDArray[np.int64],
    share: NDArray[np.float64],
) -> None:
    rows, classes = logits.shape
    probs, poly = np.empty(classes, np.float32), np.empty(CHUNK, np.float32)
    power = np.empty(CHUNK, np.int32)
    ends = np.empty((classes + BLOCK - 1) // BLOCK, np.float64)
    for row in range(rows):
        _probs(logits[row], logsumexp[row], kept[row], probs, poly, power)
        mass = 0.0
        for block in range(len(ends)):
            mass += np.float64(sum_of(probs[block * BLOCK : (block + 1) * BLOCK]))
            ends[block] = mass
        if not (mass > 0 and points[row] > 0):
            continue
        share[row] = mass / points[row]
        below = np.nextafter(mass, 0.0)
        block, place, reached, last, found = -1, 0, 0.0, -1, 0
        for point in range(points[row]):
            at = min((point + first[row]) * share[row], below)
            if block < 0 or ends[block] <= at:
                block = max(block, 0)
                while ends[block] <= at:
                    block += 1
                place, last = block * BLOCK, -1
                reached = ends[block - 1] if block else 0.0
            stop = min((block + 1) * BLOCK, classes)
            # Rounding may put a point behind the last class of its block that has any mass.
            while place < stop and reached <= at:
                if probs[place] > 0:
                    reached += np.float64(probs[place])
                    last = place
                place += 1
            if found and ids[row, found - 1] == last:
                counts[row, found - 1] += 1
            else:
                ids[row, found], counts[row, found] = last, 1
                found += 1

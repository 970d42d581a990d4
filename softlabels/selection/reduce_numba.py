"""As `reduce_torch`, compiled, for a CPU; importing it fails where numba is not installed.

A row is read twice, once for its largest values and once for the sums, and lies in cache in
between; nothing of its size is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.compiled import compiled
from softlabels.selection.reduce_torch import squarings

# A thread for fewer rows would cost more to start than it saves.
_LEAST_ROWS = 8
# Values of a row that are exponentiated together, in the first-level cache.
CHUNK = 1024
_BLOCKS = 16
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOG2_E = np.float32(1.4426950408889634)
# Of smaller ones the exponential is no normal float32.
_LEAST_EXPONENT = np.float32(-87.0)


def reduce(
    logits: Tensor, k: int, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reduce_torch.reduce`."""
    z = logits.contiguous().numpy()
    rows = len(z)
    out = (
        np.empty((rows, k), np.float32),
        np.empty((rows, k), np.int64),
        np.empty(rows, np.float32),
        np.empty((rows, len(temperatures)), np.float32),
    )
    at, squares = np.asarray(temperatures, np.float32), np.asarray(squarings(temperatures))
    shared(rows, lambda held: _reduce(z[held], at, squares, *(array[held] for array in out)))
    values, ids, rest_max, sums = map(torch.from_numpy, out)
    return values, ids, rest_max, sums


def shared(rows: int, work: Callable[[slice], None]) -> None:
    """Some rows to each of torch's threads."""
    threads = max(1, min(torch.get_num_threads(), rows // _LEAST_ROWS))
    bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
    first, *others = (slice(*ends) for ends in pairwise(bounds))
    if not others:
        work(first)
        return
    with ThreadPoolExecutor(len(others)) as pool:
        running = pool.map(work, others)
        work(first)
        list(running)


@compiled
def _keys(values: NDArray[np.float32], out: NDArray[np.int32]) -> None:
    """Integers in the order of the values; both zeros are one."""
    zero, above = np.float32(0), np.int32(31)
    bits = (values + zero).view(np.int32)
    for i in range(len(bits)):
        out[i] = bits[i] ^ ((bits[i] >> above) & np.int32(0x7FFFFFFF))


@compiled
def _values(keys: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """The inverse of `_keys`."""
    bits = out.view(np.int32)
    for i in range(len(keys)):
        bits[i] = keys[i] ^ ((keys[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled
def _count(keys: NDArray[np.int32], least: np.int32) -> int:
    found = np.int32(0)
    for i in range(len(keys)):
        found += np.int32(keys[i] >= least)
    return int(found)


@compiled
def _threshold(keys: NDArray[np.int32], wanted: int, enough: int) -> np.int32:
    """A key that at least `wanted` reach, and no more than `enough` unless they are equal."""
    low, high = np.int64(keys.min()), np.int64(keys.max()) + 1
    while high - low > 1:
        middle = (low + high) // 2
        reached = _count(keys, np.int32(middle))
        if reached < wanted:
            high = middle
        else:
            low = middle
            if reached <= enough:
                break
    return np.int32(low)


def exponentials(
    x: NDArray[np.float32],
    power: NDArray[np.int32],
    scale: NDArray[np.float32],
    poly: NDArray[np.float32],
) -> None:
    """exp in place, to 2 units in the last place; `scale` is the memory of `power`."""
    half, one = np.float32(0.5), np.float32(1)
    for i in range(len(x)):
        value = _LEAST_EXPONENT if x[i] < _LEAST_EXPONENT else x[i]
        whole = np.floor(value * _LOG2_E + half)
        r = value - whole * _LN2_HIGH
        r = r - whole * _LN2_LOW
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + half
        poly[i] = p * (r * r) + r + one
        power[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for i in range(len(x)):
        x[i] = np.float32(0) if x[i] < _LEAST_EXPONENT else poly[i] * scale[i]


exponentials = compiled(exponentials, fastmath={"contract"})


def sum_of(x: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return total


def _square_sum(x: NDArray[np.float32]) -> np.float32:
    """Squares in place, and their sum."""
    total = np.float32(0)
    for i in range(len(x)):
        square = x[i] * x[i]
        x[i] = square
        total += square
    return total


# In an order of their own, so that many are added at once.
sum_of = compiled(sum_of, fastmath={"reassoc"})
_square_sum = compiled(_square_sum, fastmath={"reassoc"})


@compiled
def _reduce(
    logits: NDArray[np.float32],
    temperatures: NDArray[np.float32],
    squares: NDArray[np.int64],
    values: NDArray[np.float32],
    ids: NDArray[np.int64],
    rest_max: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> None:
    rows, classes = logits.shape
    k = values.shape[1]
    wanted = min(k + 1, classes)
    blocks = _BLOCKS if classes // _BLOCKS >= 4 * wanted else 1
    width = classes // blocks
    maxima, keys = np.empty(width, np.float32), np.empty(width, np.int32)
    bound_key, bound = np.empty(1, np.int32), np.empty(1, np.float32)
    found = np.empty(classes, np.int64)
    found_values, found_keys = np.empty(classes, np.float32), np.empty(classes, np.int32)
    packed = np.empty(classes, np.uint64)
    shifted, poly = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    power = np.empty(CHUNK, np.int32)
    scale = power.view(np.float32)
    totals = np.empty(len(temperatures), np.float64)
    for row in range(rows):
        z = logits[row]
        # No element outside the columns with the largest maxima can be among the largest.
        maxima[:] = z[:width]
        for block in range(1, blocks):
            part = z[block * width : (block + 1) * width]
            for i in range(width):
                maxima[i] = part[i] if part[i] > maxima[i] else maxima[i]
        _keys(maxima, keys)
        bound_key[0] = _threshold(keys, wanted, wanted + wanted // 4)
        _values(bound_key, bound)
        count = 0
        for i in range(width):
            if keys[i] >= bound_key[0]:
                for place in range(i, i + blocks * width, width):
                    if not z[place] < bound[0]:
                        found[count] = place
                        count += 1
        for place in range(width * blocks, classes):
            if not z[place] < bound[0]:
                found[count] = place
                count += 1
        for i in range(count):
            found_values[i] = z[found[i]]
        _keys(found_values[:count], found_keys[:count])
        least = _threshold(found_keys[:count], wanted, wanted)
        reached = 0
        for i in range(count):
            if found_keys[i] >= least:
                # Descending value above, ascending id below.
                order = np.uint64(np.int64(0x7FFFFFFF) - np.int64(found_keys[i]))
                packed[reached] = (order << np.uint64(32)) | np.uint64(found[i])
                reached += 1
        packed[:reached].sort()
        for i in range(k):
            ids[row, i] = np.int64(packed[i] & np.uint64(0xFFFFFFFF))
            values[row, i] = z[ids[row, i]]
        if wanted == k:
            rest_max[row] = -np.inf
            sums[row] = np.float32(0)
            continue
        highest = z[np.int64(packed[k] & np.uint64(0xFFFFFFFF))]
        rest_max[row] = highest
        shift = np.float32(0) if highest == -np.inf else highest
        kept = np.sort(ids[row])
        totals[:] = 0
        taken = 0
        for start in range(0, classes, CHUNK):
            held = z[start : start + CHUNK]
            size = len(held)
            x, until = shifted[:size], taken
            while until < k and kept[until] < start + size:
                until += 1
            for step in range(len(temperatures)):
                if squares[step]:
                    for _ in range(squares[step] - 1):
                        _square_sum(x)
                    totals[step] += np.float64(_square_sum(x))
                    continue
                factor = np.float32(1) / temperatures[step]
                for i in range(size):
                    x[i] = (held[i] - shift) * factor
                for i in range(taken, until):
                    x[kept[i] - start] = -np.inf
                exponentials(x, power[:size], scale[:size], poly[:size])
                totals[step] += np.float64(sum_of(x))
            taken = until
        for step in range(len(temperatures)):
            sums[row, step] = np.float32(totals[step])

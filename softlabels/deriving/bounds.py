"""Where the units of a derived set begin: where a source's do, or after so many records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from softlabels.deriving.choice import Choice
from softlabels.deriving.sources import Sources
from softlabels.parallel import in_order

Int64s = NDArray[np.int64]


def bounds(sources: Sources, choice: Choice, *, shard_records: int | None, workers: int) -> Int64s:
    """Where each derived unit begins: source unit and row in its shard, (units + 1, 2).

    Unit i reaches from place i up to place i + 1; nothing is left out between them.

    Args:
        shard_records: records in a unit, at most; but the windows of a sample stay together. With
            it every key is read, and with a condition every label decoded. None keeps the units
            of the sources.
    """
    end = (len(sources), 0)
    if shard_records is None:
        return np.asarray([*((unit, 0) for unit in range(end[0])), end], np.int64)
    samples = in_order(partial(_samples, sources, choice), range(end[0]), workers=workers)
    starts = [(0, 0), *_cuts(samples, shard_records)] if end[0] else []
    return np.asarray([*starts, end], np.int64)


def _samples(sources: Sources, choice: Choice, unit: int) -> tuple[Int64s, Int64s]:
    """The samples of a unit of which something is taken.

    Returns:
        the row of the first taken record of each, and how many are taken.
    """
    labels, _, shard = sources.open(unit)
    numbers, taken = [], []
    last, number = None, -1
    for group in range(shard.metadata.num_row_groups):
        if choice.where is None:
            table = shard.read(group, ["key", "part"])
            mask = choice.of_keys(table["key"])
        else:
            table = shard.table(group, labels.codec)
            mask = choice.of_keys(table["key"])
            mask &= choice.of_records(shard.decode(table, labels.codec, row_group=group))
        keys = table["key"].combine_chunks()
        begins = np.ones(len(keys), bool)
        begins[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        begins[:1] = keys[0].as_py() != last
        last = keys[-1].as_py()
        found = number + np.cumsum(begins)
        number = int(found[-1])
        numbers.append(found)
        taken.append(mask)
    if not numbers:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows = np.flatnonzero(np.concatenate(taken))
    _, first, counts = np.unique(
        np.concatenate(numbers)[rows], return_index=True, return_counts=True
    )
    return rows[first], counts.astype(np.int64)


def _cuts(units: Iterator[tuple[Int64s, Int64s]], shard_records: int) -> Iterator[tuple[int, int]]:
    """The places at which a new unit begins, after the first."""
    held = 0
    for unit, (rows, counts) in enumerate(units):
        ends = np.cumsum(counts)
        at, before = 0, 0
        while at < len(rows):
            room = before + shard_records - held
            stop = int(np.searchsorted(ends, room, side="right"))
            if stop <= at and held:
                yield unit, int(rows[at])
                held = 0
                continue
            stop = max(stop, at + 1)  # a sample that is longer than a unit makes one alone
            held += int(ends[stop - 1]) - before
            at, before = stop, int(ends[stop - 1])
            if at < len(rows):
                yield unit, int(rows[at])
                held = 0

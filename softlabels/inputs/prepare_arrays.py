"""Samples to records of arrays: decoded, seen in views, made ready for the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.inputs.arrays import Array
from softlabels.inputs.digests import array_digest
from softlabels.inputs.samples import Partners, drawn
from softlabels.inputs.views import Views
from softlabels.inputs.windows import Windows


def prepare_arrays(
    column: pa.ChunkedArray,
    keys: pa.Array,
    *,
    views: Views | None,
    partners: Partners | None,
    ready: Callable[[Array], Array],
    positions: Callable[[tuple[int, ...]], int],
) -> Windows:
    """A unit's samples as the teacher takes them, each in all of its views.

    Args:
        column: what is labelled.
        keys: of its rows.
        views: None for the samples as they are.
        partners: for views that are made of two samples.
        ready: what the teacher itself does to an array; digests are of what comes before.
        positions: how many labels an array of a shape, ready, gets.

    Returns:
        records; samples that cannot be labelled are in `failures`, with all of their views.
    """
    found = drawn(column, keys, views, partners)
    reasons = dict(found.failures)
    arrays: list[Array] = []
    lengths: list[int] = []
    for row, array in zip(found.rows, found.arrays, strict=True):
        made, length = array, 0
        if row not in reasons:
            try:
                made = ready(array)
                length = positions(made.shape)
            except Exception as error:  # a processor's own, of whatever kind
                reasons[row] = f"the teacher's preparation raised {type(error).__name__}: {error}"
            if not length and row not in reasons:
                reasons[row] = f"an array of shape {made.shape} is too short for the teacher"
        arrays.append(made)
        lengths.append(length)
    kept = [index for index, row in enumerate(found.rows) if row not in reasons]
    sizes = np.asarray([lengths[index] for index in kept], np.int64)
    return Windows(
        rows=_numbers(found.rows[index] for index in kept),
        parts=np.zeros(len(kept), np.int64),
        starts=np.zeros(len(kept), np.int64),
        source_lengths=sizes,
        token_ids=None,
        offsets=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        next_ids=np.full(len(kept), -1),
        wanted=np.ones(int(sizes.sum()), bool),
        digests=[array_digest(found.arrays[index]) for index in kept],
        arrays=[arrays[index] for index in kept],
        views=_numbers(found.views[index] for index in kept),
        told=None if views is None else [found.told[index] for index in kept],
        failures=tuple(sorted(reasons.items())),
    )


def _numbers(values: Any) -> NDArray[np.int64]:
    return np.fromiter(values, np.int64)

"""Numbers that sampling draws by: a pure function of (seed, key, part, view, position)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.inputs.digests import key_hashes

Uint64s = NDArray[np.uint64]
# splitmix64 (Steele, Lea and Flood, 2014): a counter's steps, and two rounds that mix its bits.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uniforms(seed: int, identity: pa.Table, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number for every position of some records, whatever else is labelled with them.

    Args:
        seed: of the selection, an int64.
        identity: key, part and view of each record, (R,).
        lengths: positions of each record, (R,).

    Returns:
        in [0, 1), multiples of 2⁻⁵³, record after record, (Σ lengths,).
    """
    stream = _mixed(np.full(len(identity), seed, np.int64).view(np.uint64))
    stream = _mixed(stream ^ key_hashes(identity.column("key")))
    for name in ("part", "view"):
        stream = _mixed(stream ^ numpy_of(identity.column(name)).astype(np.uint64))
    starts = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    bits = _mixed(np.repeat(stream, lengths) + place.astype(np.uint64) * _STEP)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: Uint64s) -> Uint64s:
    """The output of splitmix64 after `state`; a bijection."""
    bits: Any = state + _STEP
    for shift, factor in _ROUNDS:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    mixed: Uint64s = bits ^ (bits >> np.uint64(31))
    return mixed

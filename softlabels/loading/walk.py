"""Records of keys that come one after another: along the set, or by its index."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import DuplicateKeyError, quoted
from softlabels.labelset.reader import LabelSet

Int64s = NDArray[np.int64]


class Walk:
    """Records of keys that come in any order; in the set's own order without its index."""

    def __init__(self, labels: LabelSet) -> None:
        self._labels, self._at = labels, 0
        self._seen = np.zeros(-(-len(labels) // 8), np.uint8)
        self.count = 0

    def match(self, keys: pa.Array) -> tuple[Int64s, Int64s]:
        """Every pair of a place in `keys` and a record with that key, by place, then record.

        Raises:
            DuplicateKeyError: a key that came before.
        """
        places, records = self._along(keys)
        walked = int(places[-1]) + 1 if len(places) else 0
        if walked < len(keys):
            more, found = self._labels.match(keys[walked:])
            mine = self._confirmed(keys.take(pa.array(more + walked)), found)
            places = np.concatenate([places, more[mine] + walked])
            records = np.concatenate([records, found[mine]])
        self._mark(keys, places, records)
        if len(records):
            self._at = int(records[-1]) + 1
        return places, records

    def _along(self, keys: pa.Array) -> tuple[Int64s, Int64s]:
        """As `match`, as far as the keys are those of the records that follow."""
        stop = min(len(self._labels), self._at + 2 * len(keys))
        ahead = self._labels.identity(np.arange(self._at, stop))["key"].to_pylist()
        starts = [i for i, key in enumerate(ahead) if not i or key != ahead[i - 1]]
        ends = [*starts[1:], *([len(ahead)] if stop == len(self._labels) else [])]
        places: list[int] = []
        records: list[int] = []
        for place, (key, (start, end)) in enumerate(
            zip(keys.to_pylist(), zip(starts, ends, strict=False), strict=False)
        ):
            if ahead[start] != key:
                break
            places += [place] * (end - start)
            records += range(self._at + start, self._at + end)
        return np.asarray(places, np.int64), np.asarray(records, np.int64)

    def _confirmed(self, keys: pa.Array, records: Int64s) -> NDArray[np.bool_]:
        """Whose key it is, and not another one of the same hash."""
        found = self._labels.identity(records)["key"].to_pylist()
        pairs = zip(keys.to_pylist(), found, strict=True)
        return np.asarray([key == other for key, other in pairs], bool)

    def _mark(self, keys: pa.Array, places: Int64s, records: Int64s) -> None:
        bits = np.uint8(1) << (records % 8).astype(np.uint8)
        again = np.flatnonzero(self._seen[records // 8] & bits)
        repeated = int(places[again[0]]) if len(again) else _repeated(places, records)
        if repeated is not None:
            raise DuplicateKeyError(
                f"the key {quoted(keys[repeated].as_py())} comes twice in the stream; labels are "
                "joined by key, so each must occur once"
            )
        np.bitwise_or.at(self._seen, records // 8, bits)
        self.count += len(records)

    def unseen(self) -> Int64s:
        """Records whose key never came."""
        seen = np.unpackbits(self._seen, count=len(self._labels), bitorder="little")
        return np.flatnonzero(seen == 0)


def _repeated(places: Int64s, records: Int64s) -> int | None:
    """The place of a record that stands twice among these."""
    order = np.argsort(records, kind="stable")
    same = np.flatnonzero(np.diff(records[order]) == 0)
    return int(places[order[same[0] + 1]]) if len(same) else None

"""Class ids by descending frequency: small ranks for what is often kept."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

# Beyond, a table with an entry for every class would cost more memory than what it looks up.
_LISTED_CLASSES = 1 << 24
# A pilot of a thousand positions finds no more, and a plan may not ask for more memory than this.
_MOST_FREQUENT = 1 << 22


@dataclass(frozen=True)
class IdTable:
    """A permutation of the class ids.

    Attributes:
        classes: V.
        frequent: ids by descending frequency; all others follow by ascending id.
    """

    classes: int
    frequent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.frequent)) != len(self.frequent):
            raise ValueError("the id table names a class twice")
        if self.frequent and not 0 <= min(self.frequent) <= max(self.frequent) < self.classes:
            raise ValueError(f"the id table names a class outside 0 … {self.classes - 1}")

    @classmethod
    def count(cls, classes: int, ids: NDArray[np.int64]) -> Self:
        """The table of how often each id occurs; equally frequent ones by ascending id."""
        found, counts = np.unique(ids, return_counts=True)
        return cls(classes, tuple(found[np.argsort(-counts, kind="stable")].tolist()))

    def to_ranks(self, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The rank of each id."""
        if self.classes <= _LISTED_CLASSES:
            return self._ranks[ids]
        by_id, places = self._sorted
        at = np.searchsorted(by_id, ids)
        ranks = ids + len(by_id) - at
        if len(by_id):
            here = by_id[at.clip(max=len(by_id) - 1)] == ids
            ranks[here] = places[at[here]]
        return ranks.astype(np.uint32)

    def to_ids(self, ranks: NDArray[np.integer]) -> NDArray[np.int64]:
        """The id of each rank, int64; they are below V."""
        if self.classes <= _LISTED_CLASSES:
            return self.ids.take(ranks)
        by_id, _ = self._sorted
        rest = ranks.astype(np.int64) - len(by_id)
        # Before the rest id that is the r-th stand as many frequent ones as have fewer than r + 1
        # rest ids before them.
        ids = rest + np.searchsorted(by_id - np.arange(len(by_id)), rest, side="right")
        frequent = rest < 0
        ids[frequent] = np.asarray(self.frequent, np.int64)[ranks[frequent]]
        return ids

    @property
    def listed(self) -> bool:
        """Whether `ids` can be had: not of millions of classes."""
        return self.classes <= _LISTED_CLASSES

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The id of each rank, (V,)."""
        frequent = np.asarray(self.frequent, np.int64)
        rest = np.ones(self.classes, bool)
        rest[frequent] = False
        return np.concatenate([frequent, np.flatnonzero(rest)])

    def ids_on(self, device: torch.device) -> torch.Tensor:
        """`ids` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = torch.from_numpy(self.ids).to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, torch.Tensor]:
        return {}

    @cached_property
    def _ranks(self) -> NDArray[np.uint32]:
        """The rank of each id, (V,)."""
        out = np.empty(self.classes, np.uint32)
        out[self.ids] = np.arange(self.classes, dtype=np.uint32)
        return out

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Frequent ids, ascending, and the rank of each."""
        frequent = np.asarray(self.frequent, np.int64)
        order = np.argsort(frequent)
        return frequent[order], order

    def to_text(self) -> str:
        """The frequent ids as little-endian uint32, zstd-compressed, in base64."""
        data = zstandard.ZstdCompressor(level=19).compress(
            np.asarray(self.frequent, "<u4").tobytes()
        )
        return base64.b64encode(data).decode()

    @classmethod
    def from_text(cls, classes: int, text: str) -> Self:
        """The inverse of `to_text`.

        Raises:
            ValueError: it is not one.
        """
        try:
            data = base64.b64decode(text, validate=True)
            if not 0 <= zstandard.frame_content_size(data) <= 4 * min(classes, _MOST_FREQUENT):
                raise ValueError("the id table is longer than there are classes")
            found = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), "<u4")
        except zstandard.ZstdError as error:
            raise ValueError(f"the id table cannot be decompressed: {error}") from None
        return cls(classes, tuple(found.tolist()))

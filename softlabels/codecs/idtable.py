"""Class ids by descending frequency: small ranks for what is often kept."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import zstandard
from numpy.typing import NDArray


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

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The id of each rank, (V,)."""
        frequent = np.asarray(self.frequent, np.int64)
        rest = np.ones(self.classes, bool)
        rest[frequent] = False
        return np.concatenate([frequent, np.flatnonzero(rest)])

    @cached_property
    def ranks(self) -> NDArray[np.uint32]:
        """The rank of each id, (V,)."""
        out = np.empty(self.classes, np.uint32)
        out[self.ids] = np.arange(self.classes, dtype=np.uint32)
        return out

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
            if not 0 <= zstandard.frame_content_size(data) <= 4 * classes:
                raise ValueError("the id table is longer than there are classes")
            found = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), "<u4")
        except zstandard.ZstdError as error:
            raise ValueError(f"the id table cannot be decompressed: {error}") from None
        return cls(classes, tuple(found.tolist()))

"""Vectors in a byte a number, each vector on a scale of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs.held import ByColumns
from softlabels.codecs.lists import rows_of, to_lists
from softlabels.codecs.needs import Needs
from softlabels.codecs.unpack import CPU
from softlabels.codecs.vectors import checked
from softlabels.labels import Embeddings

_MOST = 127
# Beyond either, a number divided by its scale, or a code times it, is infinite.
_LEAST_SCALE = np.finfo(np.float32).tiny
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_MOST), np.float32(0))


@dataclass(frozen=True)
class Int8(ByColumns):
    """Two flat list columns: `vectors`, int8, and `scales`, float32, one a position.

    A number is its code times the scale of its vector. Error bound: half of that scale, which is
    the vector's largest number / 127, but at least 1.2e-38.

    Attributes:
        width: D.
    """

    width: int
    ordered: ClassVar[bool] = False
    packed_columns: ClassVar[list[str]] = []
    split_columns: ClassVar[list[str]] = ["scales.list.element"]
    # Parquet has no int8, only int32: by a dictionary a number takes a byte before it is packed.
    dictionary_columns: ClassVar[list[str]] = ["vectors.list.element"]
    logits_dtype: ClassVar[torch.dtype | None] = None
    kind: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width {self.width}")

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field("vectors", pa.list_(pa.int8()), nullable=False),
            pa.field("scales", pa.list_(pa.float32()), nullable=False),
        ]

    def encode(self, labels: Embeddings, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        vectors = checked(labels, self.width)
        scales = np.abs(vectors).max(-1) / np.float32(_MOST)
        scales = scales.clip(_LEAST_SCALE, _LARGEST_SCALE)
        codes = np.rint(vectors / scales[:, None])
        return {
            "vectors": to_lists(codes, offsets, pa.int8()),
            "scales": to_lists(scales, offsets, pa.float32()),
        }

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[Embeddings, NDArray[np.int64]]:
        codes, offsets = rows_of(table, "vectors", self.width)
        scales, _ = rows_of(table, "scales", 1)
        vectors = torch.from_numpy(codes).to(device) * torch.from_numpy(scales).to(device)
        return Embeddings(vectors), offsets

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        return cls(needs.classes)

    def to_json(self) -> dict[str, Any]:
        return {"name": "int8", "width": self.width}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["width"]))

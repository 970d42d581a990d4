"""Vectors as they are, in float32 or float16: flat lists that anyone can read."""

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
from softlabels.errors import InputError
from softlabels.labels import Embeddings

_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
# The largest number of float16.
LARGEST = 65504.0


@dataclass(frozen=True)
class Vectors(ByColumns):
    """A flat list column `vectors`; T positions of D numbers are a list of T · D.

    Error bounds: of "float32" none; of "float16" 2⁻¹¹ of a number from 6.1e-5 on, 3e-8 below.

    Attributes:
        width: D.
        dtype: "float32" or "float16".
    """

    width: int
    dtype: str = "float16"
    ordered: ClassVar[bool] = False
    packed_columns: ClassVar[list[str]] = []
    logits_dtype: ClassVar[torch.dtype | None] = None
    kind: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES or self.width < 1:
            raise ValueError(f"dtype {self.dtype!r}, width {self.width}")

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field("vectors", pa.list_(_TYPES[self.dtype]), nullable=False)]

    @property
    def split_columns(self) -> list[str]:
        return ["vectors.list.element"]

    def encode(self, labels: Embeddings, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        vectors = checked(labels, self.width)
        with np.errstate(over="ignore"):
            narrow = vectors.astype(self.dtype)
        if not np.isfinite(narrow).all():
            raise InputError(
                f"a number of a vector is {np.abs(vectors).max():g}, more than float16 holds; "
                "choose the codec float32 or int8"
            )
        return {"vectors": to_lists(narrow, offsets, _TYPES[self.dtype])}

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[Embeddings, NDArray[np.int64]]:
        values, offsets = rows_of(table, "vectors", self.width)
        # Half as much is copied to a device, and widened there.
        return Embeddings(torch.from_numpy(values).to(device).float()), offsets

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        return cls(needs.classes, name)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.dtype, "width": self.width}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["width"]), str(data["name"]))


def checked(labels: Embeddings, width: int) -> NDArray[np.float32]:
    """The vectors, float32 (N, D).

    Raises:
        InputError: of another width, or not finite.
    """
    if labels.width != width:
        raise InputError(f"vectors have {labels.width} numbers; the codec was made for {width}")
    vectors: NDArray[np.float32] = labels.vectors.float().numpy()
    if not np.isfinite(vectors).all():
        raise InputError("a number of a vector is infinite, or NaN")
    return vectors

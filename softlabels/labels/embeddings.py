"""Embeddings: a vector at every position, for feature- and relation-based distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels.batched import Batched, register


@dataclass(frozen=True, eq=False)
class Embeddings(Batched):
    """A teacher's vectors at every position of a batch shape `(...)`.

    Attributes:
        vectors: float, shape (..., D), as the teacher gave them: not normalised.
        mask: True where there are vectors, bool, shape (...); None means everywhere.
    """

    vectors: Tensor
    mask: Tensor | None = None

    FIELDS: ClassVar[tuple[str, ...]] = ("vectors",)
    REQUIRED: ClassVar[frozenset[str]] = frozenset(FIELDS)
    WITH_LAST_AXIS: ClassVar[frozenset[str]] = frozenset(FIELDS)
    FILL: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        self.check_kinds()
        if self.vectors.ndim == 0:
            raise InputError("Embeddings: vectors have no axis; they must be (..., D)")
        self.check_shapes()

    @property
    def width(self) -> int:
        """D, numbers in a vector."""
        return self.vectors.shape[-1]


register(Embeddings, settings=())

"""Vectors: of a teacher of embeddings, all of each vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import Embeddings
from softlabels.selection.top_k import check


@dataclass(frozen=True)
class Vectors:
    """Keep vectors whole, in float32.

    Args:
        k: D, numbers in each.
    """

    k: int
    name: ClassVar[str] = "vectors"
    algorithm: ClassVar[str] = "whole/1"
    sampled: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""
        return {}

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""
        return cls(k)

    def for_classes(self, classes: int) -> Self:
        """This selection; raises `InputError` when vectors have another width."""
        if self.k != classes:
            raise InputError(f"vectors of {self.k} numbers, and the teacher gives {classes}")
        return self

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        return f"vectors of {classes:,} numbers"

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> Embeddings:
        """The teacher's vectors, (N, D), as labels of batch shape (N,); see `TopK`."""
        check(self.for_classes(logits.shape[-1]).name, logits, hard_labels, temperatures)
        return Embeddings(logits.float())

"""TopP: as many of the likeliest classes as a position needs to reach a mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.selection.top_k import TopK


@dataclass(frozen=True)
class TopP:
    """Keep the fewest likeliest classes whose mass reaches p, at T = 1; one at least.

    Positions keep different numbers of classes, and packed codecs store only those.

    Args:
        p: mass to reach, above 0, at most 1.
        max_k: how many classes are kept at most, where they do not reach it.
    """

    p: float
    max_k: int = 64
    name: ClassVar[str] = "top_p"
    algorithm: ClassVar[str] = TopK.algorithm
    sampled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.p, (int, float)) or not 0 < self.p <= 1:
            raise InputError(f"TopP: p is {self.p!r}; it must be above 0 and at most 1")
        _ = TopK(self.max_k)

    @property
    def k(self) -> int:
        """Classes at a position, at most."""
        return self.max_k

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""
        return {"p": float(self.p)}

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""
        return cls(float(settings["p"]), k)

    def for_classes(self, classes: int) -> Self:
        """This selection; raises `InputError` when it does not fit so many classes."""
        TopK(self.max_k).for_classes(classes)
        return self

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        return (
            f"the likeliest of {classes:,} classes, up to a mass of {self.p:g} and to {self.max_k}"
        )

    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> SoftLabels:
        """As `TopK`; entries that are not needed have log-prob −∞, their mass is in the tails."""
        return TopK(self.max_k)(logits, hard_labels, temperatures=temperatures).top_p(self.p)

"""Dense: every class, for small vocabularies and for measuring the others against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.selection.top_k import check


@dataclass(frozen=True)
class Dense:
    """Keep every class, in ascending id: 49,152 of them are some 100 kB a position.

    Args:
        classes: V; the teacher's where it is not given.
    """

    classes: int | None = None
    name: ClassVar[str] = "dense"
    algorithm: ClassVar[str] = "all, by ascending id"
    sampled: ClassVar[bool] = False

    @property
    def k(self) -> int:
        """V."""
        if self.classes is None:
            raise InputError("Dense: of how many classes is not known; say Dense(classes=V)")
        return self.classes

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""
        return {}

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""
        return cls(k)

    def for_classes(self, classes: int) -> Self:
        """This selection of so many classes; raises `InputError` when it is made for others."""
        if self.classes not in (None, classes):
            raise InputError(
                f"Dense is for {self.classes} classes and the teacher has {classes}; "
                "leave out classes="
            )
        return replace(self, classes=classes)

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        return f"all {classes:,} classes"

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> SoftLabels:
        """Logits to labels of all classes, in float32; log tails are −∞. Otherwise as `TopK`."""
        check(self.for_classes(logits.shape[-1]).name, logits, hard_labels, temperatures)
        rows, classes = logits.shape
        narrow = logits if logits.dtype.itemsize <= 4 else logits.float()
        wide = logits.float()
        # The sum of a single row is split among threads, so its last bits would differ from those
        # of the same row among others.
        several = wide if rows > 1 else wide.expand(2, -1)
        logsumexp = torch.logsumexp(several, -1)[:rows]
        log_probs = wide - logsumexp.unsqueeze(-1)
        hard = log_probs.gather(-1, hard_labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return SoftLabels(
            ids=torch.arange(classes, device=logits.device).repeat(rows, 1),
            log_probs=log_probs,
            logits=narrow,
            logsumexp=logsumexp,
            log_tails=wide.new_full((rows, len(temperatures)), -math.inf) if temperatures else None,
            temperatures=tuple(temperatures),
            hard_log_probs=hard.masked_fill(hard_labels < 0, math.nan),
            classes=classes,
        )

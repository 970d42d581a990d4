"""TopOdds: of a multi-label teacher, the k largest logits of every position and a floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from softlabels.errors import InputError
from softlabels.labels import BinaryLabels
from softlabels.selection.top_k import CACHED_BYTES, check, largest


@dataclass(frozen=True)
class TopOdds:
    """Keep the k largest of logits whose sigmoids are the probabilities; `TopK` asks for it.

    Of the classes not kept their mean probability is kept, the floor: a loss that takes it for each
    of them has the right sum of targets.

    Args:
        k: how many classes to keep, at least 1 and at most the number of classes.
    """

    k: int
    name: ClassVar[str] = "top_odds"
    algorithm: ClassVar[str] = "block-max/1; ties by ascending id"
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
        """This selection; raises `InputError` when there are fewer classes than k."""
        if not 1 <= self.k <= classes:
            raise InputError(
                f"k = {self.k}, and the teacher has {classes} classes; choose k between 1 and "
                f"{classes}"
            )
        return self

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        return f"the {self.k} likeliest of {classes:,} independent classes"

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> BinaryLabels:
        """Reduce logits to labels, in float32 whatever their dtype.

            floor(T) = logit( mean over the classes not kept of σ(z / T) )

        Args:
            logits: float, shape (N, V).
            hard_labels: int64, shape (N,), not used: there may be several right answers.
            temperatures: where the floor is computed.
            uniforms: not used: nothing is left to chance.

        Returns:
            batch shape (N,), on the logits' device; without floors where every class is kept.

        Raises:
            InputError: shapes that do not fit, k > V, or a temperature that is not positive.
        """
        classes = logits.shape[-1]
        check(self.for_classes(classes).name, logits, hard_labels, temperatures)
        values, ids = largest(logits, self.k)
        floors, at = None, tuple(temperatures) if self.k < classes else ()
        if at:
            rows = max(1, CACHED_BYTES // (4 * classes)) if logits.device.type == "cpu" else None
            size = rows or max(1, len(ids))
            parts = zip(logits.split(size), ids.split(size), strict=True)
            floors = torch.cat([_floors(part.float(), kept, at) for part, kept in parts])
        return BinaryLabels(
            ids=ids, log_odds=values, floors=floors, temperatures=at, classes=classes
        )


def _floors(logits: Tensor, kept: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Log-odds of the mean probability of the others, (n, temperatures).

    The mean of what they are not likely to be is summed by itself: near 1 its complement is lost.
    """
    found = []
    for temperature in temperatures:
        scaled = logits / temperature
        yes = logsigmoid(scaled).scatter_(-1, kept, -math.inf).logsumexp(-1)
        no = logsigmoid(-scaled).scatter_(-1, kept, -math.inf).logsumexp(-1)
        found.append(yes - no)
    return torch.stack(found, -1)

"""BinaryLabels: independent yes-or-no answers at every position; most classes are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from softlabels.errors import InputError, MissingTailError
from softlabels.labels.batched import Batched, register


@dataclass(frozen=True, eq=False)
class BinaryLabels(Batched):
    """The kept classes of a multi-label teacher at every position of a batch shape `(...)`.

    Each class has a probability of its own, σ(log-odds): they need not sum to 1.

    Attributes:
        ids: kept classes, int64, shape (..., k), in the order of the label set's codec.
        log_odds: the teacher's logits of these classes, log p / (1 − p) in nats, float, (..., k).
        floors: of the classes *not* kept, the log-odds of their mean probability at each of
            `temperatures`, shape (..., len(temperatures)); None where all classes are kept.
        temperatures: what the last axis of `floors` stands for. A kept class is known at every
            temperature: σ(log-odds / T).
        mask: True where there are labels, bool, shape (...); None means everywhere.
        classes: V; None where it is not known.
    """

    ids: Tensor
    log_odds: Tensor
    floors: Tensor | None = None
    temperatures: tuple[float, ...] = ()
    mask: Tensor | None = None
    classes: int | None = None

    FIELDS: ClassVar[tuple[str, ...]] = ("ids", "log_odds", "floors")
    REQUIRED: ClassVar[frozenset[str]] = frozenset({"ids", "log_odds"})
    WITH_LAST_AXIS: ClassVar[frozenset[str]] = frozenset(FIELDS)
    FILL: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        self.check_kinds()
        if self.ids.shape != self.log_odds.shape or self.ids.ndim == 0:
            raise InputError(
                f"BinaryLabels: ids have shape {tuple(self.ids.shape)} and log_odds "
                f"{tuple(self.log_odds.shape)}; both must be (..., k)"
            )
        floors = 0 if self.floors is None or not self.floors.ndim else self.floors.shape[-1]
        if floors != len(self.temperatures):
            raise InputError(
                f"BinaryLabels: floors hold {floors} temperatures but {len(self.temperatures)} "
                f"are named: {self.temperatures}"
            )
        self.check_shapes()

    @property
    def k(self) -> int:
        """How many classes are kept at a position."""
        return self.ids.shape[-1]

    def sorted(self) -> BinaryLabels:
        """A copy with the entries of each position in descending log-odds, then ascending id."""
        by_id = self.ids.argsort(dim=-1, stable=True)
        order = self.log_odds.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)
        places = by_id.gather(-1, order)
        return self.with_tensors(
            {"ids": self.ids.gather(-1, places), "log_odds": self.log_odds.gather(-1, places)}
        )

    def floor(self, temperature: float) -> Tensor:
        """`floors` at a temperature, shape (...), float64 for float64 labels, else float32.

        Raises:
            MissingTailError: it was not stored, and cannot be had from another one.
        """
        if self.floors is not None and temperature in self.temperatures:
            found = self.floors[..., self.temperatures.index(temperature)]
            return found if found.dtype == torch.float64 else found.float()
        stored = ", ".join(f"{t:g}" for t in self.temperatures) or "none"
        raise MissingTailError(
            f"no floor of the classes not kept at temperature {temperature:g}; stored: {stored}. "
            "It cannot be computed later: use a stored temperature, or label again with "
            f"temperatures=(…, {temperature:g})"
        )


register(BinaryLabels, settings=("temperatures", "classes"))

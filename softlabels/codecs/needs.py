"""What a codec is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Needs:
    """What a codec is made for.

    Attributes:
        classes: V; of vectors their width.
        k: entries at a position, at most.
        temperatures: one log tail a position for each, or one floor.
        logits_known: whether there are logsumexps.
        sampled: the entries have weights.
        draws: of a position, where all weights are counts of them.
        kind: of the labels.
    """

    classes: int
    k: int
    temperatures: tuple[float, ...]
    logits_known: bool = True
    sampled: bool = False
    draws: int | None = None
    kind: str = "categorical"


class Made:
    """What is the same of every codec that does not say otherwise.

    Attributes:
        number: the setting that a number after its name stands for, as in "binary:8"; None where
            there is none.
    """

    number: ClassVar[str | None] = None

    @classmethod
    def check_needs(cls, needs: Needs, number: int | None) -> None:
        """Refuse what it cannot be made for, before there is data; raises `InputError`."""

"""What of a teacher's answers is kept: logits or vectors → labels, on the teacher's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from softlabels.errors import InputError, UnsupportedFormatError, quoted
from softlabels.labels import Labels
from softlabels.selection.dense import Dense
from softlabels.selection.sampled import Sampled
from softlabels.selection.top_k import TopK
from softlabels.selection.top_odds import TopOdds
from softlabels.selection.top_p import TopP
from softlabels.selection.vectors import Vectors

__all__ = [
    "Dense",
    "Sampled",
    "Selection",
    "TopK",
    "TopOdds",
    "TopP",
    "Vectors",
    "from_plan",
    "of_kind",
]


class Selection(Protocol):
    """What a label set keeps of a teacher's answer at a position."""

    name: ClassVar[str]
    algorithm: ClassVar[str]
    sampled: ClassVar[bool]

    @property
    def k(self) -> int:
        """Entries at a position, at most."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""

    def for_classes(self, classes: int) -> Self:
        """This selection of so many classes; raises `InputError` when it does not fit them."""

    def words(self, classes: int) -> str:
        """What is kept, for people."""

    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> Labels:
        """Labels of batch shape (N,) of logits (N, V); see `TopK`."""


_SELECTIONS: dict[str, type[Selection]] = {
    each.name: each for each in (TopK, TopP, Sampled, Dense, TopOdds, Vectors)
}


def of_kind(selection: Selection | None, kind: str, classes: int) -> Selection | None:
    """What is kept of a kind of answer, of the selection that was named; None where it is open.

    Args:
        kind: "categorical", "binary" or "embedding".
        classes: V, or the width of vectors.

    Raises:
        InputError: there is none such.
    """
    if kind == "embedding":
        if selection is not None:
            raise InputError(
                f"selection is {selection!r}, and the teacher gives vectors, which are kept whole; "
                "leave it out"
            )
        return Vectors(classes)
    if kind == "binary" and selection is not None:
        if not isinstance(selection, (TopK, Dense)):
            raise InputError(
                f"selection is {selection!r}, and the teacher's classes are independent of each "
                "other; choose softlabels.TopK(k) or Dense()"
            )
        return TopOdds(classes if isinstance(selection, Dense) else selection.k)
    return selection


def from_plan(name: str, k: int, settings: Mapping[str, Any]) -> Selection:
    """The selection that a plan describes.

    Raises:
        UnsupportedFormatError: it is not known to this version.
    """
    if name not in _SELECTIONS:
        raise UnsupportedFormatError(
            f"the selection {quoted(name)} is not known to this version (it knows "
            f"{', '.join(_SELECTIONS)}); upgrade softlabels"
        )
    try:
        return _SELECTIONS[name].of(k, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedFormatError(
            f"the settings of the selection {name} cannot be read: {quoted(repr(error))}"
        ) from None

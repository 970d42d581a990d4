"""Which classes of a teacher's logits are kept: logits → SoftLabels, on the teacher's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from softlabels.errors import UnsupportedFormatError, quoted
from softlabels.labels import SoftLabels
from softlabels.selection.dense import Dense
from softlabels.selection.sampled import Sampled
from softlabels.selection.top_k import TopK
from softlabels.selection.top_p import TopP

__all__ = ["Dense", "Sampled", "Selection", "TopK", "TopP", "from_plan"]


class Selection(Protocol):
    """What a label set keeps of the logits of a position."""

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
    ) -> SoftLabels:
        """Labels of batch shape (N,) of logits (N, V); see `TopK`."""


_SELECTIONS: dict[str, type[Selection]] = {each.name: each for each in (TopK, TopP, Sampled, Dense)}


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

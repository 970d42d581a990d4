"""What a teacher may say of itself beside what it must, and what holds where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import TeacherError
from softlabels.inputs.preparation import Answers, Positions

Kind = Literal["categorical", "binary", "embedding"]
KINDS: tuple[Kind, ...] = ("categorical", "binary", "embedding")


@runtime_checkable
class Answering(Protocol):
    """A teacher that goes on where a prompt ends."""

    def answers(
        self, input_ids: Tensor, *, padding: Tensor, room: int, settings: Answers
    ) -> Sequence[Tensor]:
        """The new tokens of each row, with the one that ends an answer where there was one.

        Args:
            input_ids: int64, (B, T), padded on the left.
            padding: bool, (B, T).
            room: new tokens, at most.
            settings: how they are chosen; random ones are torch's, seeded by the caller.
        """


def kind_of(teacher: Any) -> Kind:
    """What its answers are: logits of a softmax, logits of sigmoids, or vectors.

    Raises:
        TeacherError: of another kind.
    """
    found = getattr(teacher, "kind", "categorical")
    if found not in KINDS:
        raise TeacherError(f"the teacher's kind is {found!r}; it is one of {', '.join(KINDS)}")
    kind: Kind = found
    return kind


def takes_arrays(teacher: Any) -> bool:
    """Whether it takes arrays in place of token ids."""
    return getattr(teacher, "takes", "tokens") == "arrays"


def class_names_of(teacher: Any) -> tuple[str, ...] | None:
    """The names of its V classes in order, if it has some.

    Raises:
        TeacherError: there are not V different ones.
    """
    names = getattr(teacher, "class_names", None)
    if names is None:
        return None
    found = tuple(map(str, names))
    if len(found) != teacher.classes or len(set(found)) != len(found):
        raise TeacherError(
            f"the teacher names {len(set(found))} different classes and answers about "
            f"{teacher.classes}; give each a name of its own, or none any"
        )
    return found


def positions_rule(teacher: Any) -> Positions | None:
    """How many labels an array gets, as `Preparation.positions` says it; None of tokens."""
    if not takes_arrays(teacher):
        return None
    if hasattr(teacher, "positions_of"):
        return "teacher"
    return "every" if getattr(teacher, "positions", "first") == "every" else "first"


def positions_in(teacher: Any, shape: tuple[int, ...]) -> int:
    """How many labels an array of a shape gets."""
    match positions_rule(teacher):
        case "teacher":
            return int(teacher.positions_of(shape))
        case "every":
            return shape[0]
    return 1


def ready(teacher: Any, array: NDArray[Any]) -> NDArray[Any]:
    """A sample as the teacher takes it."""
    prepare = getattr(teacher, "prepare", None)
    return array if prepare is None else np.asarray(prepare(array))

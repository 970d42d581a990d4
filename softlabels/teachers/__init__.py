"""Teachers: anything that turns token ids into logits; one engine a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from softlabels.errors import TeacherError
from softlabels.teachers.function import from_callable
from softlabels.teachers.identity import TeacherIdentity

__all__ = ["Teacher", "TeacherIdentity", "causal_lm", "from_callable", "resolve"]


class Teacher(Protocol):
    """What precompute needs of a teacher.

    `classes`, `max_length` and `tokenizer` are cheap; `identity` and `logits` may load weights.
    """

    @property
    def classes(self) -> int:
        """V, the width of the logits."""

    @property
    def max_length(self) -> int | None:
        """The longest sequence it was made for; None if it does not say."""

    @property
    def tokenizer(self) -> Any | None:
        """A transformers tokenizer; None where only ready token ids are labelled."""

    @property
    def identity(self) -> TeacherIdentity:
        """Which teacher this is."""

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """Logits of the wanted positions, a few rows at a time.

        Args:
            input_ids: int64, shape (B, T), padded on the right.
            wanted: bool, (B, T); which positions to compute.
            padding: bool, (B, T); which tokens are none.

        Yields:
            float, (rows, V): the wanted positions in row-major order.
        """


def resolve(teacher: Any) -> Teacher:
    """Make a teacher of whatever names one.

    Args:
        teacher: a model's name or folder; a transformers causal LM; any other `nn.Module`, or a
            callable with `name`, `version` and `classes`; or a teacher.

    Raises:
        TeacherError: it is none of these, or says not who it is.
    """
    if isinstance(teacher, (str, Path)):
        return causal_lm(teacher)
    # Looked up without running them: an identity may load weights.
    if all(inspect.getattr_static(teacher, name, None) for name in ("logits", "identity")):
        return cast(Teacher, teacher)
    if isinstance(teacher, torch.nn.Module) and hasattr(teacher, "generate"):
        return causal_lm(teacher)
    if callable(teacher):
        return from_callable(teacher)
    raise TeacherError(
        f"a {type(teacher).__name__} is no teacher; pass a model's name or folder, a transformers "
        "causal LM, an nn.Module, or softlabels.teachers.from_callable(function, …)"
    )


def causal_lm(model: Any, **options: Any) -> Teacher:
    """A Hugging Face causal language model; see `softlabels.teachers.transformers.CausalLM`.

    Raises:
        TeacherError: the extra is not installed, or the model is not found.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise TeacherError(
            "Hugging Face models need an extra that is not installed: "
            "pip install 'softlabels[transformers]'"
        ) from None
    from softlabels.teachers.transformers import CausalLM

    return CausalLM(model, **options)

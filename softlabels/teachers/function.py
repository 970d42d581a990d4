"""Any callable from token ids to logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.errors import TeacherError
from softlabels.teachers.identity import TeacherIdentity, dtype_name, weights_digest


class FunctionTeacher:
    """A callable teacher; made by `from_callable`."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        name: str,
        version: str | None,
        classes: int,
        tokenizer: Any | None,
        max_length: int | None,
    ) -> None:
        self._function, self._name, self._version = function, name, version
        self.classes, self.tokenizer, self.max_length = classes, tokenizer, max_length

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Name, version, and the digest of the weights where it has any."""
        module = self._function if isinstance(self._function, nn.Module) else None
        return TeacherIdentity(
            name=self._name,
            revision=self._version,
            weights=None if module is None else weights_digest(module),
            dtype=None if module is None else dtype_name(module),
            engine="callable",
            engine_version=str(torch.__version__),
            classes=self.classes,
        )

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`."""
        module = self._function if isinstance(self._function, nn.Module) else None
        if module is not None:
            module.eval()
            device = next((p.device for p in module.parameters()), input_ids.device)
            input_ids, wanted = input_ids.to(device), wanted.to(device)
        found = self._function(input_ids)
        logits = getattr(found, "logits", found)
        expected = (*input_ids.shape, self.classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TeacherError(
                f"the teacher {self._name!r} returned {shape} for input_ids of shape "
                f"{tuple(input_ids.shape)}; expected logits of shape (batch, tokens, classes) = "
                f"{expected}"
            )
        for row, mask in zip(logits, wanted, strict=True):
            yield row[mask]


def from_callable(
    function: Callable[[Tensor], Tensor],
    *,
    name: str | None = None,
    version: str | None = None,
    classes: int | None = None,
    tokenizer: Any | None = None,
    max_length: int | None = None,
) -> FunctionTeacher:
    """A teacher of any callable `input_ids (B, T) int64 → logits (B, T, V)`, padded on the right.

    Padding comes after a sequence's own tokens and its logits are ignored, so a causal model needs
    no mask. `name`, `version`, `classes`, `tokenizer` and `max_length` may also be attributes of
    the callable.

    Args:
        name, version: which teacher this is: change the version when its answers change. An
            `nn.Module` with weights is known by their digest and needs neither.
        classes: V.
        tokenizer: a transformers tokenizer; needed for text and messages.
        max_length: the longest sequence it takes.

    Raises:
        TeacherError: without identity, or without a number of classes.
    """
    name = name or getattr(function, "name", None)
    version = version or getattr(function, "version", None)
    if isinstance(function, nn.Module) and function.state_dict():
        name = name or type(function).__name__
    elif not (name and version):
        raise TeacherError(
            f"the callable teacher {_described(function)} does not say which it is; give it name= "
            "and version= (or attributes of those names), so that a changed teacher is noticed"
        )
    classes = classes or getattr(function, "classes", None)
    if not isinstance(classes, int) or classes < 1:
        raise TeacherError(f"the callable teacher {name!r} needs classes=, the width of its logits")
    return FunctionTeacher(
        function,
        name=str(name),
        version=None if version is None else str(version),
        classes=classes,
        tokenizer=tokenizer or getattr(function, "tokenizer", None),
        max_length=max_length or getattr(function, "max_length", None),
    )


def _described(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name}()" if inspect.isroutine(function) else name

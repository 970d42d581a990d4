"""Any callable from token ids, or arrays, to logits or vectors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.errors import TeacherError
from softlabels.teachers.identity import TeacherIdentity, dtype_name, weights_digest
from softlabels.teachers.traits import Kind


@dataclass(frozen=True)
class Answers:
    """What a callable takes and gives; see `softlabels.teachers.from_callable`."""

    takes: Literal["tokens", "arrays"] = "tokens"
    kind: Kind = "categorical"
    positions: Literal["first", "every"] = "every"
    class_names: Sequence[str] | None = None
    prepare: Callable[[NDArray[Any]], NDArray[Any]] | None = None


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
        answers: Answers,
    ) -> None:
        self._function, self._name, self._version = function, name, version
        self.classes, self.tokenizer, self.max_length = classes, tokenizer, max_length
        self.takes, self.kind = answers.takes, answers.kind
        self.positions, self.class_names = answers.positions, answers.class_names
        self.alignment = "next" if answers.takes == "tokens" else "same"
        if answers.prepare is not None:
            self.prepare = answers.prepare

    @property
    def device(self) -> torch.device | None:
        """Where an `nn.Module` is; None of other callables."""
        function = self._function
        parameters = function.parameters() if isinstance(function, nn.Module) else iter(())
        return next((parameter.device for parameter in parameters), None)

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
        if isinstance(self._function, nn.Module):
            self._function.eval()
        if self.device is not None:
            input_ids, wanted = input_ids.to(self.device), wanted.to(self.device)
        found = self._function(input_ids)
        logits = getattr(found, "logits", found)
        if self.takes == "arrays" and self.positions == "first" and isinstance(logits, Tensor):
            logits = logits.unsqueeze(1) if logits.ndim == 2 else logits
        expected = (*wanted.shape, self.classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            what = "input_ids" if self.takes == "tokens" else "arrays"
            raise TeacherError(
                f"the teacher {self._name!r} returned {shape} for {what} of shape "
                f"{tuple(input_ids.shape)}; expected logits of shape (batch, positions, classes) = "
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
    takes: Literal["tokens", "arrays"] = "tokens",
    kind: Kind = "categorical",
    positions: Literal["first", "every"] | None = None,
    class_names: Sequence[str] | None = None,
    prepare: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> FunctionTeacher:
    """A teacher of any callable `input_ids (B, T) int64 → logits (B, T, V)`, padded on the right.

    Padding comes after a sequence's own tokens and its logits are ignored, so a causal model needs
    no mask. With `takes="arrays"` it is a callable `arrays (B, …) → logits (B, V)`, of arrays of
    one shape and their own dtype, or with `positions="every"` `(B, T, …) → (B, T, V)`. `name`,
    `version`, `classes`, `tokenizer` and `max_length` may also be attributes of the callable.

    Args:
        name, version: which teacher this is: change the version when its answers change. An
            `nn.Module` with weights is known by their digest and needs neither.
        classes: V.
        tokenizer: a transformers tokenizer; needed for text and messages.
        max_length: the longest sequence it takes.
        takes: "tokens" or "arrays".
        kind: what it gives: "categorical", logits of a softmax; "binary", logits of a sigmoid each;
            "embedding", vectors, whose width `classes` is.
        positions: "first" for one label a sample, "every" for one at each token or index of the
            first axis; by default "every" of tokens, "first" of arrays.
        class_names: of the classes in order, if they have some.
        prepare: what it does to one array before a batch is made, resizing, say; digests are of
            the array before.

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
        raise TeacherError(
            f"the callable teacher {name!r} needs classes=, the width of its logits: pass "
            'softlabels.teachers.from_callable(…, classes=…), with takes="arrays" where it takes '
            "images or other arrays"
        )
    where = positions or ("every" if takes == "tokens" else "first")
    return FunctionTeacher(
        function,
        name=str(name),
        version=None if version is None else str(version),
        classes=classes,
        tokenizer=tokenizer or getattr(function, "tokenizer", None),
        max_length=max_length or getattr(function, "max_length", None),
        answers=Answers(takes, kind, where, class_names, prepare),
    )


def _described(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name}()" if inspect.isroutine(function) else name

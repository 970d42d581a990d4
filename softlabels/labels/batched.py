"""Tensors of one batch shape that go together: what every kind of label is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from softlabels.errors import InputError

T = TypeVar("T", bound="Batched")


class Batched:
    """A frozen dataclass whose tensors share a batch shape `(...)`, some with an axis more.

    A kind of label names its tensors; indexing, moving and joining them are the same for all.

    Attributes:
        FIELDS: what a position has; with `mask`, every tensor there is.
        REQUIRED: those that are never None; the first of `FIELDS` is one.
        WITH_LAST_AXIS: those with an axis beside the batch's.
        DTYPES: of those that are no floats.
        FILL: what stands at masked positions, by field; 0 in the others.
        mask: True where there are labels, bool, shape (...); None means everywhere.
    """

    FIELDS: ClassVar[tuple[str, ...]]
    REQUIRED: ClassVar[frozenset[str]]
    WITH_LAST_AXIS: ClassVar[frozenset[str]]
    DTYPES: ClassVar[Mapping[str, torch.dtype]] = {"ids": torch.int64, "mask": torch.bool}
    FILL: ClassVar[Mapping[str, float]] = {}
    mask: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by field."""
        found = vars(self)
        names = (*self.FIELDS, "mask")
        return {name: found[name] for name in names if found[name] is not None}

    @property
    def shape(self) -> torch.Size:
        """The batch shape: every axis that all tensors have."""
        first: Tensor = getattr(self, self.FIELDS[0])
        return first.shape[:-1] if self.FIELDS[0] in self.WITH_LAST_AXIS else first.shape

    @property
    def entries(self) -> int:
        """How many values are kept, over all positions."""
        first: Tensor = getattr(self, self.FIELDS[0])
        return first.numel()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        first: Tensor = getattr(self, self.FIELDS[0])
        return first.device

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{type(self).__name__} of a single position have no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Self:
        """Index the batch axes, as a tensor of shape `self.shape` would be."""
        scalars = index if isinstance(index, tuple) else (index,)
        if not any(part is Ellipsis for part in scalars):
            scalars = (*scalars, Ellipsis)
        # Taking the last axis whole makes an index that reaches into it an error.
        entries = (*scalars, slice(None))
        return self.with_tensors(
            {
                name: tensor[entries if name in self.WITH_LAST_AXIS else scalars]
                for name, tensor in self.tensors().items()
            }
        )

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """A copy with these in place of its own."""
        changed: dict[str, Any] = dict(tensors)
        made: Self = replace(self, **changed)  # type: ignore[type-var]
        return made

    def with_fitting(self, tensors: Mapping[str, Tensor]) -> Self:
        """As `with_tensors`, of tensors that are known to fit: that takes a batch's while."""
        made = object.__new__(type(self))
        vars(made).update(vars(self), **tensors)
        return made

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `function` applied to every tensor."""
        return self.with_tensors({name: function(t) for name, t in self.tensors().items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, from which copies to a GPU need not wait."""
        return self.map(lambda tensor: tensor.pin_memory())

    def check_kinds(self) -> None:
        """Refuse what is no tensor, or of another dtype.

        Raises:
            InputError: naming the field.
        """
        for name in (*self.FIELDS, "mask"):
            value, wanted = getattr(self, name), self.DTYPES.get(name)
            if value is None and name not in self.REQUIRED:
                continue
            if not isinstance(value, Tensor):
                found = f"a {type(value).__name__}"
            elif value.dtype == wanted or (wanted is None and value.is_floating_point()):
                continue
            else:
                found = f"of {value.dtype}"
            raise InputError(
                f"{type(self).__name__}: {name} is {found}; it must be a tensor of "
                f"{wanted or 'floats'}"
            )

    def check_shapes(self) -> None:
        """Refuse tensors that do not cover the same positions.

        Raises:
            InputError: naming the field.
        """
        whole = self.shape
        for name, value in self.tensors().items():
            shape = value.shape[:-1] if name in self.WITH_LAST_AXIS else value.shape
            if shape != whole:
                raise InputError(
                    f"{type(self).__name__}: {name} has batch shape {tuple(shape)}, "
                    f"{self.FIELDS[0]} have {tuple(whole)}; every field covers the same positions"
                )


def concatenate(parts: Sequence[T]) -> T:
    """Join along the first axis; every part has the same fields and widths."""
    first = parts[0]
    return first.with_tensors(
        {name: torch.cat([getattr(part, name) for part in parts]) for name in first.tensors()}
    )


def register(kind: type[Batched], *, settings: Sequence[str]) -> None:
    """Make a kind of label a pytree of its tensors.

    Args:
        settings: its fields that are no tensors.
    """

    def flatten(labels: Any) -> tuple[list[Tensor], Any]:
        # A field that is None is no leaf: functions mapped over a pytree expect tensors.
        tensors = labels.tensors()
        return list(tensors.values()), (tuple(tensors), *(getattr(labels, s) for s in settings))

    def unflatten(children: Any, context: Any) -> Any:
        # A pytree may be rebuilt around placeholders (torch.func, torch.compile): skip the checks.
        names, *values = context
        given = dict(zip(names, children, strict=True))
        labels = object.__new__(kind)
        for name in (*kind.FIELDS, "mask"):
            object.__setattr__(labels, name, given.get(name))
        for name, value in zip(settings, values, strict=True):
            object.__setattr__(labels, name, value)
        return labels

    torch.utils._pytree.register_pytree_node(
        kind, flatten, unflatten, serialized_type_name=f"softlabels.{kind.__name__}"
    )

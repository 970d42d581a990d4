"""Transforms of torchvision as views: their parameters drawn, stored, and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from softlabels.errors import InputError
from softlabels.inputs.arrays import Array
from softlabels.inputs.views import Keep, Params, Views

_TENSOR = "tensor"


def torchvision_views(
    transform: Any,
    *,
    count: int,
    seed: int = 0,
    version: str = "1",
    clean: bool = False,
    keep: Keep = "params",
    channels_last: bool = True,
) -> Views:
    """Views by a transform of `torchvision.transforms.v2`.

    Of a transform that draws its parameters apart from what it does with them (crops, flips,
    jitter, rotations, blur, erasing and most others), and of a Compose of such, they are stored.
    Those that do both at once (RandAugment, RandomChoice, a lambda) need `keep="seeds"`: then a
    seed is, and what it means depends on the versions of torch and torchvision.

    Args:
        transform: of arrays, which it gets as uint8 or float tensors.
        count, seed, version, clean, keep: as `softlabels.Views`.
        channels_last: arrays of three axes are height × width × channels, as images are decoded;
            False for channels × height × width.

    Raises:
        InputError: a transform does not tell its parameters.
    """
    steps = _steps(transform)
    if keep == "params":
        for step in steps:
            if not _tells(step):
                raise InputError(
                    f"a {type(step).__name__} does not draw its parameters apart from what it does "
                    "with them, so they cannot be stored; pass keep='seeds'"
                )
    made = Transforms(transform, keep=keep, channels_last=channels_last)
    return Views(
        made.augment,
        made.draw,
        count=count,
        seed=seed,
        name=" + ".join(type(step).__name__ for step in steps),
        version=version,
        clean=clean,
        keep=keep,
        libraries=("torch", "torchvision"),
    )


class Transforms:
    """What draws and uses the parameters of a transform; see `torchvision_views`."""

    def __init__(self, transform: Any, *, keep: Keep, channels_last: bool) -> None:
        self._transform, self._keep, self._channels_last = transform, keep, channels_last

    def draw(self, rng: np.random.Generator, sample: Array) -> Params:
        """The parameters of every step, None where it is left out; or a seed."""
        seed = int(rng.integers(1 << 62))
        if self._keep == "seeds":
            return {"torch": seed}
        told: list[Any] = []
        image = self._tensor(sample)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in _steps(self._transform):
                # As torchvision itself decides whether a step is taken.
                if hasattr(step, "p") and float(torch.rand(1)) >= step.p:
                    told.append(None)
                    continue
                params = step.make_params([image])
                told.append({name: _plain(value) for name, value in params.items()})
                image = step.transform(image, params)
        return {"steps": told}

    def augment(self, sample: Array, params: Params) -> Array:
        """The sample after every step."""
        image = self._tensor(sample)
        if self._keep == "seeds":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(params["torch"])
                image = self._transform(image)
        else:
            for step, told in zip(_steps(self._transform), params["steps"], strict=True):
                if told is not None:
                    own = {name: _back(value) for name, value in told.items()}
                    image = step.transform(image, own)
        if self._channels_last and image.ndim == 3:
            image = image.movedim(0, -1)
        found: Array = image.contiguous().numpy()
        return found

    def _tensor(self, sample: Array) -> torch.Tensor:
        image = torch.from_numpy(np.array(sample))  # of memory that may be written to
        return image.movedim(-1, 0) if self._channels_last and image.ndim == 3 else image


def _steps(transform: Any) -> Sequence[Any]:
    """A Compose's transforms, those of a Compose in it too."""
    inner = getattr(transform, "transforms", None)
    if inner is None or type(transform).__name__ != "Compose":
        return [transform]
    return [step for part in inner for step in _steps(part)]


def _tells(step: Any) -> bool:
    # Those that override `forward` do both at once.
    plain = {"Transform", "_RandomApplyTransform"}
    methods = hasattr(step, "make_params") and hasattr(step, "transform")
    return methods and type(step).forward.__qualname__.split(".")[0] in plain


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it."""
    if isinstance(value, torch.Tensor):
        return {_TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _back(value: Any) -> Any:
    """The inverse; lists stay lists, which transforms take for tuples."""
    if isinstance(value, dict) and _TENSOR in value:
        return torch.tensor(value[_TENSOR], dtype=getattr(torch, value["dtype"]))
    return [_back(one) for one in value] if isinstance(value, list) else value

"""Which teacher made the labels, so that another one is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xxhash
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from softlabels.teachers.digests import json_digest


class TeacherIdentity(BaseModel):
    """What a plan records of a teacher.

    Attributes:
        name: a model's name or folder name, never a full path; or a callable's `name`.
        revision: a commit, a tag, or a callable's `version`.
        weights: xxh3-128 (hex) of the state dict; None for callables that are no modules.
        config: xxh3-128 (hex) of the settings that the weights run under; None without any.
        dtype: of the parameters, e.g. "float32".
        engine: what ran it, e.g. "transformers".
        engine_version: its version.
        classes: V, the width of the logits.
        vocabulary: how many token ids it takes; None where its classes are they.
        logits_known: False where only normalised values come out, so logsumexps are null.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    revision: str | None
    weights: str | None
    config: str | None = None
    dtype: str | None
    engine: str
    engine_version: str
    classes: int
    vocabulary: int | None = None
    logits_known: bool = True

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        if self.vocabulary is None:
            made.pop("vocabulary", None)
        return made

    @property
    def token_ids(self) -> int:
        """How many token ids it takes."""
        return self.classes if self.vocabulary is None else self.vocabulary


def weights_digest(module: torch.nn.Module) -> str:
    """xxh3-128 (hex) over the name, dtype, shape and bytes of every tensor, by ascending name."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def dtype_name(module: torch.nn.Module) -> str | None:
    """The dtype of the first floating parameter, e.g. "bfloat16"."""
    found = (p.dtype for p in module.parameters() if p.dtype.is_floating_point)
    dtype = next(found, None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


# What a config says beside how the weights are used.
_NOT_THE_FORWARD = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures"})


def config_digest(config: Any) -> str:
    """xxh3-128 (hex) of a transformers config's settings that differ from the defaults.

    A rotary base, a soft cap, a window: with them the same weights are another teacher.
    """
    return json_digest(
        {
            name: value
            for name, value in config.to_diff_dict().items()
            if name not in _NOT_THE_FORWARD and not name.startswith("_")
        }
    )


assert np.little_endian, "label sets are digested as little-endian bytes"

"""Which teacher made the labels, so that another one is noticed."""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict


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
    logits_known: bool = True


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


assert np.little_endian, "label sets are digested as little-endian bytes"

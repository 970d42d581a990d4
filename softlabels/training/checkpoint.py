"""Checkpoints that exist whole or not at all, from which a run goes on to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softlabels.errors import InputError

KEPT = 2
WEIGHTS, STATE, INDEX = "model.safetensors", "state.pt", "checkpoint.json"
_UNFINISHED = ".making-"


@dataclass(frozen=True)
class Moment:
    """Where a run is after a step.

    Attributes:
        step: how many were taken.
        tokens: seen by them.
        seconds: that they took, whatever process took them.
        loader: the loader's state after them.
        lengths: bytes of each file of metrics after them, by name.
    """

    step: int
    tokens: int
    seconds: float
    loader: Mapping[str, Any] | None
    lengths: Mapping[str, int]


START = Moment(0, 0, 0.0, None, {})


def save(folder: Path, moment: Moment, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint below `folder`, and remove all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
    making.mkdir()
    save_weights(model, making / WEIGHTS)
    state = {
        "moment": asdict(moment),
        "optimizer": optimizer.state_dict(),
        "random": _random(model),
    }
    torch.save(state, making / STATE)
    index = {name: _digest(making / name) for name in (WEIGHTS, STATE)}
    (making / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for path in (*making.iterdir(), making):
        sync(path)
    final = folder / f"step-{moment.step:09d}"
    if final.exists():  # the last step's, taken again after it was found damaged
        _remove(final)
    making.rename(final)
    sync(folder)
    for old in _found(folder)[:-KEPT]:
        _remove(old)


def clean(folder: Path) -> None:
    """Remove what killed runs left unfinished below `folder`; no other may be at work in it."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Moment:
    """Go on at the newest checkpoint below `folder` whose bytes are those that were written.

    Returns:
        where it was taken; `START` where there is none, and nothing is loaded.
    """
    for path in reversed(_found(folder)):
        if not _is_sound(path):
            # The steps since the one before are taken again, to the same bits.
            warnings.warn(f"{path} is damaged; going on from the one before", stacklevel=2)
            continue
        load_weights(model, path / WEIGHTS)
        state = torch.load(path / STATE, weights_only=True, map_location="cpu")
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], _device(model))
        return Moment(**state["moment"])
    return START


def save_weights(model: nn.Module, path: Path) -> None:
    """A model's state as safetensors, tensors that are tied written once."""
    _check_safetensors()
    from safetensors.torch import save_model

    save_model(model, str(path))


def load_weights(model: nn.Module, path: Path) -> None:
    """The inverse, into a model of the same shape."""
    _check_safetensors()
    from safetensors.torch import load_model

    load_model(model, str(path))


def misfit(model: nn.Module, path: Path) -> str | None:
    """The first tensor that keeps weights from being this model's, or None."""
    _check_safetensors()
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        names = file.keys()
        saved = {name: list(file.get_slice(name).get_shape()) for name in names}
    own = model.state_dict()
    # Of tied tensors one is saved.
    there = {own[name].data_ptr() for name in saved if name in own}
    for name, shape in saved.items():
        if name not in own or list(own[name].shape) != shape:
            found = f"of shape {list(own[name].shape)}" if name in own else "missing"
            return f"{name} is of shape {shape} there, and {found} in the one given"
    for name, tensor in own.items():
        if name not in saved and tensor.data_ptr() not in there:
            return f"{name} is in the one given alone"
    return None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_safetensors() -> None:
    if find_spec("safetensors") is None:
        raise InputError(
            "weights are written as safetensors; pip install 'softlabels[transformers]', or pip "
            "install safetensors"
        )


def _random(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if (device := _device(model)).type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _is_sound(path: Path) -> bool:
    """Whether a checkpoint's files are the ones that were written."""
    try:
        index = json.loads((path / INDEX).read_bytes())
        return bool(index == {name: _digest(path / name) for name in (WEIGHTS, STATE)})
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    # Under another name first: a half-removed checkpoint is none.
    dying = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    path.rename(dying)
    shutil.rmtree(dying)

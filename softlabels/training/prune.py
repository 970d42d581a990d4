"""A student that is its teacher with fewer layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from softlabels.errors import InputError, quoted


def open_teacher(teacher: str) -> tuple[Any, Any]:
    """A teacher's model, in float32 on the CPU, and its tokenizer or None.

    Safetensors only, and no code that comes with it.

    Raises:
        TeacherError: it cannot be loaded.
    """
    from softlabels.teachers.checkpoint import Checkpoint, Loading
    from softlabels.teachers.tasks import TASKS

    cpu = torch.device("cpu")
    loading = Loading(device=cpu, dtype=torch.float32)
    checkpoint = Checkpoint.named(teacher, loading, role="teacher to prune")
    model, _ = checkpoint.load(TASKS["causal_lm"], cpu)
    return model, checkpoint.tokenizer()


def pruned(whole: Any, layers: int) -> Any:
    """A model of the same kind with some of the layers, evenly spaced, and the rest as it is.

    Raises:
        InputError: it has fewer layers, or it is not known where they are.
    """
    from transformers import AutoModelForCausalLM

    config = whole.config
    total = config.num_hidden_layers
    if not 1 <= layers <= total:
        raise InputError(
            f"the student is to keep {layers} layers of a {type(whole).__name__}, which has {total}"
        )
    stack, kept = _stack_of_layers(whole, total), evenly(layers, total)
    # Settings that each layer has one of, such as layer_types.
    fields = {
        name: [value[i] for i in kept]
        if isinstance(value, list) and len(value) == total and not name.endswith("_token_id")
        else value
        for name, value in config.to_dict().items()
    }
    fields[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    smaller = type(config).from_dict(fields)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(smaller, dtype=torch.float32)
    model.load_state_dict(_renumbered(whole.state_dict(), stack, kept))
    return model


def evenly(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spaced, first and last included; one: the first.

    >>> evenly(4, 12)
    [0, 4, 7, 11]
    """
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def _stack_of_layers(model: nn.Module, total: int) -> str:
    """The name of the list of its layers."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    outermost = [n for n in found if not any(n.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise InputError(
            f"a {type(model).__name__} has {len(outermost)} lists of {quoted(total)} layers, so it "
            "is not known which to prune; build the student from a config"
        )
    return str(outermost[0])


def _renumbered(
    weights: Mapping[str, torch.Tensor], stack: str, kept: list[int]
) -> dict[str, torch.Tensor]:
    places = {old: new for new, old in enumerate(kept)}
    made = {}
    for name, tensor in weights.items():
        layer = re.match(rf"{re.escape(stack)}\.(\d+)(\..*)", name)
        if layer is None:
            made[name] = tensor
        elif int(layer[1]) in places:
            made[f"{stack}.{places[int(layer[1])]}{layer[2]}"] = tensor
    return made

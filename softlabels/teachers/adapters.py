"""PEFT adapters: what they bring, and how they are merged into the model that they are for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.tasks import TASKS, Task

_WEIGHTS = "adapter_model.safetensors"
# peft's names of the tasks that have a teacher.
_TASK_TYPES = {
    "CAUSAL_LM": "causal_lm",
    "SEQ_CLS": "sequence_classifier",
    "TOKEN_CLS": "token_classifier",
}


def task_of_adapter(config: Mapping[str, Any]) -> Task | None:
    """The task that adapter_config.json names; None where it does not."""
    return TASKS.get(_TASK_TYPES.get(str(config.get("task_type")), ""))


def brought(adapter: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that an adapter holds whole (`modules_to_save`), such as a head.

    Args:
        adapter: its folder.
        config: its adapter_config.json.

    Returns:
        by the name that the model has for them; none where they are pickled.
    """
    modules, file = config.get("modules_to_save") or (), adapter / _WEIGHTS
    if not modules or not file.is_file():
        return {}
    with safe_open(file, "pt") as weights:
        shapes = {
            name.removeprefix("base_model.model."): tuple(weights.get_slice(name).get_shape())
            for name in weights.keys()  # noqa: SIM118 - this is no mapping
        }
    return {
        name: shape
        for name, shape in shapes.items()
        if any(f".{module}." in f".{name}" for module in modules)
    }


def with_classes_of(
    head: Mapping[str, tuple[int, ...]], config: Any, task: Task, *, trust_remote_code: bool
) -> Any:
    """A classifier's configuration, with as many classes as fit the head that an adapter brings.

    An adapter does not say how many there are.

    Args:
        head: as `brought`.
        config: of its base model.
        trust_remote_code: whether code that comes with the base model may run.
    """
    auto_class = getattr(transformers, task.auto_class)
    counts = [config.num_labels, *sorted({shape[0] for shape in head.values() if shape})]
    for count in dict.fromkeys(counts):
        changed = copy.deepcopy(config)
        if count != config.num_labels:  # which would forget the names of the classes
            changed.num_labels = count
        with torch.device("meta"):
            model = auto_class.from_config(changed, trust_remote_code=trust_remote_code)
        found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if all(found.get(name) == shape for name, shape in head.items()):
            return changed
    return config  # whoever merges it says what does not fit


def merged(model: Any, adapter: Path, *, allow_pickle: bool) -> Any:
    """The model with an adapter added to its weights; its architecture stays as it is.

    Raises:
        TeacherError: the extra is not installed, or the adapter is pickled, adds no weights, or is
            for another model.
    """
    try:
        import peft
    except ImportError:
        raise TeacherError(
            "PEFT adapters need an extra that is not installed: pip install 'softlabels[peft]'"
        ) from None
    name = quoted(adapter.name)
    if not allow_pickle and not (adapter / _WEIGHTS).is_file():
        raise TeacherError(
            f"the adapter {name} has no {_WEIGHTS}; if it has an adapter_model.bin, "
            "a pickle, which can run code when it is loaded, save it again with peft, or, if you "
            "trust where it comes from, pass allow_pickle=True (--allow-pickle)"
        )
    config = peft.PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning:
        raise TeacherError(
            f"the adapter {name} is of the kind {config.peft_type.value}, which changes no weights "
            "and cannot be merged; wrap the model in softlabels.teachers.from_callable(function, …)"
        )
    config.inference_mode = True
    config.base_model_name_or_path = None  # peft warns where the base is called otherwise here
    with warnings.catch_warnings():
        # peft asks for a property that transformers has since renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        wrapped = peft.get_peft_model(model, config)
    found = wrapped.load_adapter(str(adapter), "default")
    strays = sorted([*found.missing_keys, *found.unexpected_keys])
    if strays:
        raise TeacherError(
            f"the adapter {name} and its base model do not fit: {quoted(strays[0])} is in only one "
            "of them; name the model that it was trained on with base= (--base)"
        )
    if not hasattr(wrapped, "merge_and_unload"):
        raise TeacherError(
            f"the adapter {name} is of the kind {config.peft_type.value}, which cannot be merged"
        )
    return wrapped.merge_and_unload(safe_merge=True)

"""PEFT adapters, merged into the model that they are for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from softlabels.errors import TeacherError, quoted


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
    if not allow_pickle and not (adapter / "adapter_model.safetensors").is_file():
        raise TeacherError(
            f"the adapter {name} has no adapter_model.safetensors; if it has an adapter_model.bin, "
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

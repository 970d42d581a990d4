"""Which of the teachers that transformers runs a model is: by its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.arrays import CTC, OfArrays
from softlabels.teachers.checkpoint import Checkpoint, Loading
from softlabels.teachers.encoders import open_encoder
from softlabels.teachers.tasks import TASKS, check_task, task_of_model
from softlabels.teachers.transformers import CausalLM, Pretrained


def open_model(
    model: str | Path | nn.Module,
    task: str | None,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    **options: Any,
) -> Pretrained:
    """A teacher of a model by name, folder or file, or of one that is loaded already.

    Args:
        task: None for what the model says.
        options: the fields of `Loading`; of a loaded model only `compile` can be chosen.

    Raises:
        TeacherError: there is no such model, or it has another task.
    """
    if task is not None and task not in TASKS:
        raise TeacherError(f"task is {quoted(task)}; it must be one of {', '.join(TASKS)}")
    if task == "encoder":
        return open_encoder(model, tokenizer=tokenizer, **options)
    loading = Loading(**options)
    source: Checkpoint | nn.Module
    if isinstance(model, nn.Module):
        if loading != Loading(compile=loading.compile):
            raise TeacherError(
                f"a loaded {type(model).__name__} is labelled as it is; choose its dtype, device "
                "and the like when you load it"
            )
        source, found = model, task_of_model(model)
    else:
        source = Checkpoint.named(str(model), loading)
        found = source.task_of(task)
    chosen = TASKS[task] if task else found or TASKS["causal_lm"]
    if isinstance(source, Checkpoint):
        who, config = f"the teacher {quoted(source.name)}", source.config_for(chosen)
    else:
        who, config = f"a {type(source).__name__}", source.config
    check_task(chosen, found, config, who=who)
    if chosen.takes == "arrays":
        if tokenizer is not None:
            raise TeacherError(f"{who} is {chosen.is_a} and takes no tokenizer; leave it out")
        return (CTC if chosen.name == "ctc" else OfArrays)(source, task=chosen, processor=processor)
    kind = CausalLM if chosen.name == "causal_lm" else Pretrained
    return kind(source, task=chosen, tokenizer=tokenizer, compile=loading.compile)

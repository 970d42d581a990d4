"""What a transformers model answers: next tokens, masked tokens, a class a token or a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from softlabels.errors import TeacherError

TaskName = Literal["causal_lm", "masked_lm", "sequence_classifier", "token_classifier"]
Alignment = Literal["next", "same"]
Positions = Literal["every", "first"]


@dataclass(frozen=True)
class Task:
    """One kind of head.

    Attributes:
        name: also of the function in `softlabels.teachers` that makes such a teacher.
        is_a: the same in words, with its article.
        auto_class: what loads it, in transformers.
        suffixes: how the names of its model classes end.
        alignment: "next" where entry t is about token t + 1, "same" where about token t.
        positions: "first" where a record has one label, kept at its first token.
        has_classes: whether V is `num_labels` and not the vocabulary.
    """

    name: TaskName
    is_a: str
    auto_class: str
    suffixes: tuple[str, ...]
    alignment: Alignment
    positions: Positions = "every"
    has_classes: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="causal_lm",
            is_a="a causal language model",
            auto_class="AutoModelForCausalLM",
            suffixes=("ForCausalLM", "LMHeadModel"),
            alignment="next",
        ),
        Task(
            name="masked_lm",
            is_a="a masked language model",
            auto_class="AutoModelForMaskedLM",
            suffixes=("ForMaskedLM",),
            alignment="same",
        ),
        Task(
            name="sequence_classifier",
            is_a="a sequence classifier",
            auto_class="AutoModelForSequenceClassification",
            suffixes=("ForSequenceClassification",),
            alignment="same",
            positions="first",
            has_classes=True,
        ),
        Task(
            name="token_classifier",
            is_a="a token classifier",
            auto_class="AutoModelForTokenClassification",
            suffixes=("ForTokenClassification",),
            alignment="same",
            has_classes=True,
        ),
    )
}


def task_of(names: Iterable[str]) -> Task | None:
    """The task that names of model classes tell, e.g. a config's `architectures`; else None."""
    for name in names:
        for task in TASKS.values():
            if name.endswith(task.suffixes):
                return task
    return None


def task_of_model(model: Any) -> Task | None:
    """The task of a loaded transformers model; None for any other module."""
    if not hasattr(model, "config"):
        return None
    found = task_of(kind.__name__ for kind in type(model).__mro__)
    return found or (TASKS["causal_lm"] if hasattr(model, "generate") else None)


def check_task(task: Task, found: Task | None, config: Any, *, who: str) -> None:
    """Refuse a model with another head than the task's, or that gives no distribution.

    Args:
        found: what the model itself says that it is; None if it does not.
        who: the model, for errors.

    Raises:
        TeacherError: it is none of this task, or has no classes that exclude each other.
    """
    if found is not None and found != task:
        raise TeacherError(
            f"{who} is {found.is_a} and not {task.is_a}; use softlabels.teachers.{found.name} "
            f"(--task {found.name})"
        )
    if not task.has_classes:
        if getattr(config, "is_encoder_decoder", False):
            raise TeacherError(
                f"{who} is no {task.is_a.removeprefix('a ')} but an encoder and a decoder; wrap it "
                "in softlabels.teachers.from_callable(function, …)"
            )
        return
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        raise TeacherError(
            f"{who} is a multi-label classifier (problem_type in its config): its classes do not "
            "exclude each other, so its logits are no distribution and it has no soft labels"
        )
    if problem == "regression" or int(config.num_labels) == 1:
        raise TeacherError(
            f"{who} gives a number and no classes (num_labels {config.num_labels} in its config): "
            "a regression or a reward model has no soft labels"
        )

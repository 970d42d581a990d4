"""What a transformers model answers: next or masked tokens, classes of texts, images or sound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from softlabels.errors import TeacherError

TaskName = Literal[
    "causal_lm",
    "masked_lm",
    "sequence_classifier",
    "token_classifier",
    "image_classifier",
    "audio_classifier",
    "ctc",
    "encoder",
]
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
        takes: "tokens" or "arrays".
    """

    name: TaskName
    is_a: str
    auto_class: str
    suffixes: tuple[str, ...]
    alignment: Alignment
    positions: Positions = "every"
    has_classes: bool = False
    takes: Literal["tokens", "arrays"] = "tokens"


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
        Task(
            name="image_classifier",
            is_a="an image classifier",
            auto_class="AutoModelForImageClassification",
            suffixes=("ForImageClassification",),
            alignment="same",
            positions="first",
            has_classes=True,
            takes="arrays",
        ),
        Task(
            name="audio_classifier",
            is_a="an audio classifier",
            auto_class="AutoModelForAudioClassification",
            suffixes=("ForAudioClassification",),
            alignment="same",
            positions="first",
            has_classes=True,
            takes="arrays",
        ),
        Task(
            name="ctc",
            is_a="a CTC model of speech",
            auto_class="AutoModelForCTC",
            suffixes=("ForCTC",),
            alignment="same",
            takes="arrays",
        ),
        Task(
            name="encoder",
            is_a="an encoder",
            auto_class="AutoModel",
            suffixes=(),
            alignment="same",
            positions="first",
        ),
    )
}

# Models of sound whose classifiers are called as those of text are.
_OF_SOUND = (
    "Data2VecAudio",
    "Hubert",
    "SEW",
    "UniSpeech",
    "Wav2Vec2",
    "WavLM",
)


def task_of(names: Iterable[str]) -> Task | None:
    """The task that names of model classes tell, e.g. a config's `architectures`; else None."""
    for name in names:
        if name.startswith(_OF_SOUND) and name.endswith("ForSequenceClassification"):
            return TASKS["audio_classifier"]
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
    if problem == "regression" or int(config.num_labels) == 1:
        raise TeacherError(
            f"{who} gives a number and no classes (num_labels {config.num_labels} in its config): "
            "a regression or a reward model has no soft labels"
        )

"""Teachers: anything that turns tokens or arrays into logits or vectors; one engine a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from softlabels.errors import TeacherError
from softlabels.labels import SoftLabels
from softlabels.teachers.function import from_callable
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.tasks import TaskName, task_of_model

__all__ = [
    "LabelTeacher",
    "Teacher",
    "TeacherIdentity",
    "audio_classifier",
    "causal_lm",
    "ctc",
    "encoder",
    "from_callable",
    "from_server",
    "image_classifier",
    "masked_lm",
    "onnx",
    "pretrained",
    "resolve",
    "sequence_classifier",
    "sklearn",
    "timm",
    "token_classifier",
]


class Teacher(Protocol):
    """What precompute needs of a teacher.

    `classes`, `max_length` and `tokenizer` are cheap; `identity` and `logits` may load weights.

    It may also say `alignment`, "next" (the default) where entry t is about token t + 1 or "same"
    where about token t; `positions`, "every" (the default) or "first" where a record has one label,
    kept at its first token; `classes_are_tokens`, True by default; `vocabulary`, how many token
    ids it takes where that is not V; and `can_pack`, whether `logits` takes `position_ids` of rows
    that hold several records.

    `kind` is "categorical" (the default), "binary" where each of V logits has a sigmoid of its own,
    or "embedding" where `logits` gives vectors and `classes` is their width. `class_names` are
    those of the V classes in order.

    `takes` is "tokens" (the default) or "arrays". Then `logits` gets arrays of one shape, (B, …),
    as `prepare(array)` made each, where there is such a method; wanted and padding are of
    positions, (B, P): `positions` is "first" (the default) for one label an array, "every" for one
    at each index of its first axis; or `positions_of(shape)` says how many.
    """

    @property
    def classes(self) -> int:
        """V, the width of the logits."""

    @property
    def max_length(self) -> int | None:
        """The longest sequence it was made for; None if it does not say."""

    @property
    def tokenizer(self) -> Any | None:
        """A transformers tokenizer; None where only ready token ids are labelled."""

    @property
    def identity(self) -> TeacherIdentity:
        """Which teacher this is."""

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """Logits of the wanted positions, a few rows at a time.

        Args:
            input_ids: int64, shape (B, T), padded on the right.
            wanted: bool, (B, T); which positions to compute.
            padding: bool, (B, T); which tokens are none.

        Yields:
            float, (rows, V): the wanted positions in row-major order.
        """


@runtime_checkable
class LabelTeacher(Protocol):
    """What a teacher has in place of `logits` that gives only its likeliest classes.

    Attributes:
        temperatures: at which it can tell what the classes not kept sum to.
    """

    temperatures: tuple[float, ...]

    def labels(
        self,
        input_ids: Tensor,
        wanted: Tensor,
        *,
        padding: Tensor,
        hard_labels: Tensor,
        k: int,
    ) -> Iterator[SoftLabels]:
        """Labels of the wanted positions, a few at a time.

        Args:
            input_ids: int64, (B, T), padded on the right.
            wanted, padding: bool, (B, T); as `Teacher.logits`.
            hard_labels: int64, (N,), of the N wanted positions in row-major order; −1 for none.
            k: classes to keep.

        Yields:
            batch shape (rows,), without logsumexps: together the wanted positions in order.
        """


def resolve(teacher: Any) -> Teacher:
    """Make a teacher of whatever names one.

    Args:
        teacher: a model's name, folder, `.gguf` or `.onnx` file; a transformers model or a fitted
            scikit-learn classifier; any other `nn.Module`, or a callable with `name`, `version`
            and `classes`; or a teacher.

    Raises:
        TeacherError: it is none of these, or says not who it is.
    """
    if is_address(teacher):
        return from_server(teacher)
    if isinstance(teacher, (str, Path)):
        return onnx(teacher) if str(teacher).endswith(".onnx") else pretrained(teacher)
    # Looked up without running them: an identity may load weights.
    if _is_teacher(teacher):
        return cast(Teacher, teacher)
    if isinstance(teacher, torch.nn.Module) and task_of_model(teacher) is not None:
        return pretrained(teacher)
    if hasattr(teacher, "predict_proba") or hasattr(teacher, "decision_function"):
        return sklearn(teacher)
    if isinstance(teacher, torch.nn.Module) and hasattr(teacher, "pretrained_cfg"):
        return timm(teacher)
    if callable(teacher):
        return from_callable(teacher)
    raise TeacherError(
        f"a {type(teacher).__name__} is no teacher; pass a model's name or folder, a transformers "
        "model, an nn.Module, or softlabels.teachers.from_callable(function, …)"
    )


def is_address(teacher: Any) -> bool:
    """Whether it names a server."""
    return isinstance(teacher, str) and teacher.startswith(("http://", "https://"))


def _is_teacher(value: Any) -> bool:
    found = {
        name
        for name in ("identity", "logits", "labels")
        if inspect.getattr_static(value, name, None)
    }
    return "identity" in found and len(found) > 1


def pretrained(model: Any, *, task: TaskName | None = None, **options: Any) -> Teacher:
    """A Hugging Face model: a causal or masked language model, a classifier, or an encoder.

    Args:
        model: a Hub name, a folder or a `.gguf` file, of a whole model or of a PEFT adapter; or a
            loaded transformers model.
        task: what it answers; None for what its config says, a causal LM where that is unclear.
        options: `tokenizer`, or `processor` of images and sound, and the fields of
            `softlabels.teachers.checkpoint.Loading`: device, dtype, revision, gguf_file, base,
            attn_implementation, compile, trust_remote_code, allow_pickle.

    Raises:
        TeacherError: the extra is not installed, or the model is not found or has another task.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise TeacherError(_extra("Hugging Face models need", "transformers")) from None
    from softlabels.teachers.models import open_model

    return open_model(model, task, **options)


def from_server(url: str, model: str | None = None, **options: Any) -> Teacher:
    """A model behind an OpenAI-compatible server; see `softlabels.teachers.server.Server`.

    It tells its likeliest classes and no logits: logsumexps are unknown, and tails at T = 1 alone.

    Raises:
        TeacherError: the extra is not installed, nobody answers, or there is no such model.
    """
    try:
        import httpx2  # noqa: F401
    except ImportError:
        raise TeacherError(_extra("a teacher behind a server needs", "server")) from None
    from softlabels.teachers.server import Server

    return cast(Teacher, Server(url, model, **options))


def causal_lm(model: Any, **options: Any) -> Teacher:
    """A causal language model, as `pretrained`: entry t is about token t + 1."""
    return pretrained(model, task="causal_lm", **options)


def masked_lm(model: Any, **options: Any) -> Teacher:
    """A masked language model, as `pretrained`: entry t is about token t, which it also sees."""
    return pretrained(model, task="masked_lm", **options)


def sequence_classifier(model: Any, **options: Any) -> Teacher:
    """A classifier of whole texts, as `pretrained`: one label a record, at its first token."""
    return pretrained(model, task="sequence_classifier", **options)


def image_classifier(model: Any, **options: Any) -> Teacher:
    """A classifier of images, as `pretrained`, behind its own image processor.

    Also of several labels an image, where its config's problem_type says so: of the kind "binary".

    Args:
        options: also `processor`, an image processor; a loaded model without one takes arrays as
            they are.
    """
    return pretrained(model, task="image_classifier", **options)


def audio_classifier(model: Any, **options: Any) -> Teacher:
    """A classifier of waveforms, (samples,), as `image_classifier`.

    The samples come at the rate of its feature extractor.
    """
    return pretrained(model, task="audio_classifier", **options)


def ctc(model: Any, **options: Any) -> Teacher:
    """A CTC model of speech, as `audio_classifier`: a label for every frame that it makes."""
    return pretrained(model, task="ctc", **options)


def encoder(model: Any, **options: Any) -> Teacher:
    """An encoder of text, as `pretrained`: vectors, of the kind "embedding".

    Args:
        options: also `pooling`, "mean", "cls", or "none" for a vector at each token; and `unit`,
            whether they have length 1. By default as a sentence-transformers folder says, else
            "mean", as they come.
    """
    return pretrained(model, task="encoder", **options)


def timm(model: Any, **options: Any) -> Teacher:
    """An image model of timm by name, or one that is made; see `softlabels.teachers.timm_models`.

    Raises:
        TeacherError: the extra is not installed, or there is no such model.
    """
    try:
        import timm  # noqa: F401
    except ImportError:
        raise TeacherError(_extra("timm's models need", "timm")) from None
    from softlabels.teachers.timm_models import open_timm

    return cast(Teacher, open_timm(model, **options))


def sklearn(model: Any, *, version: str | None = None) -> Teacher:
    """A fitted scikit-learn classifier; see `softlabels.teachers.estimators.Estimator`.

    Raises:
        TeacherError: the extra is not installed, or it is no fitted classifier.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise TeacherError(_extra("scikit-learn models need", "sklearn")) from None
    from softlabels.teachers.estimators import Estimator

    return cast(Teacher, Estimator(model, version=version))


def onnx(path: str | Path, **options: Any) -> Teacher:
    """An ONNX model of arrays; see `softlabels.teachers.sessions.Session`.

    Raises:
        TeacherError: the extra is not installed, or it is no such model.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise TeacherError(_extra("ONNX models need", "onnx")) from None
    from softlabels.teachers.sessions import Session

    return cast(Teacher, Session(path, **options))


def _extra(who: str, name: str) -> str:
    return f"{who} an extra that is not installed: pip install 'softlabels[{name}]'"


def token_classifier(model: Any, **options: Any) -> Teacher:
    """A classifier of tokens, as `pretrained`: entry t is the class of token t."""
    return pretrained(model, task="token_classifier", **options)

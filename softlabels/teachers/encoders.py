"""Encoders of text as teachers of embeddings, pooled as their folder says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from softlabels.errors import TeacherError, quoted
from softlabels.memory import sent
from softlabels.teachers.checkpoint import Checkpoint, Loading
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.tasks import TASKS
from softlabels.teachers.transformers import Pretrained

Pooling = Literal["mean", "cls", "none"]

# What sentence-transformers calls them, in `1_Pooling/config.json`.
_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class Encoder(Pretrained):
    """Vectors of whole texts, or of their tokens; made by `softlabels.teachers.encoder`.

    Args:
        model: a checkpoint, of transformers or sentence-transformers, or a model.
        pooling: "mean" of a text's tokens, "cls" for its first one's vector, "none" for each
            token's; None for what the folder says, "mean" where it says nothing.
        unit: make vectors of length 1; None for what the folder says.
        tokenizer: a transformers tokenizer; the model's own by default.
    """

    def __init__(
        self,
        model: Checkpoint | nn.Module,
        *,
        pooling: Pooling | None = None,
        unit: bool | None = None,
        tokenizer: Any = None,
    ) -> None:
        if pooling is not None and pooling not in get_args(Pooling):
            raise TeacherError(
                f"pooling is {quoted(pooling)}; it is one of {', '.join(get_args(Pooling))}"
            )
        super().__init__(model, task=TASKS["encoder"], tokenizer=tokenizer)
        said = _modules(self._checkpoint)
        self.pooling: Pooling = pooling or _pooling(said, self.name)
        self.unit = ("Normalize" in said) if unit is None else unit

    @property
    def kind(self) -> str:
        """It gives vectors."""
        return "embedding"

    @property
    def positions(self) -> Literal["every", "first"]:
        """A text's vector is kept at its first token."""
        return "every" if self.pooling == "none" else "first"

    @property
    def classes(self) -> int:
        """D, numbers in a vector."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def classes_are_tokens(self) -> bool:
        """A vector's numbers are no tokens."""
        return False

    @cached_property
    def identity(self) -> TeacherIdentity:
        """As of any model; how it pools is part of its config."""
        found = super().identity
        how = f"{found.config}, pooling {self.pooling}{', unit' if self.unit else ''}"
        return found.model_copy(update={"config": how})

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """Vectors, (rows, D), in place of logits."""
        self.model.eval()
        inputs = self._inputs(input_ids, padding)
        hidden = self.model(**inputs).last_hidden_state
        if self.pooling == "none":
            places = sent(wanted.flatten().nonzero().squeeze(1), self.device)
            vectors = hidden.flatten(0, 1)[places]
        else:
            present = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * present).sum(1) / present.sum(1).clamp(min=1)
            vectors = mean if self.pooling == "mean" else hidden[:, 0]
            vectors = vectors[sent(wanted[:, 0], self.device)]
        yield normalize(vectors.float(), dim=-1) if self.unit else vectors


def open_encoder(model: str | Path | nn.Module, **options: Any) -> Encoder:
    """An encoder by folder or Hub name, or one that is loaded already.

    Args:
        options: `pooling`, `unit`, `tokenizer` of `Encoder`, and the fields of `Loading`.
    """
    own = {n: options.pop(n) for n in ("pooling", "unit", "tokenizer") if n in options}
    if isinstance(model, nn.Module):
        return Encoder(model, **own)
    return Encoder(Checkpoint.named(str(model), Loading(**options)), **own)


def _modules(checkpoint: Checkpoint | None) -> dict[str, dict[str, Any]]:
    """The modules after the encoder itself that a sentence-transformers folder names, by kind."""
    read = None if checkpoint is None else _json(checkpoint, "modules.json")
    if checkpoint is None or read is None:
        return {}
    found = {}
    for module in read[1:]:
        kind = str(module["type"]).rpartition(".")[2]
        if kind not in ("Pooling", "Normalize"):
            raise TeacherError(
                f"the encoder {quoted(checkpoint.name)} goes on with a module {quoted(kind)} after "
                "its transformer, which is not known here; wrap it in "
                "softlabels.teachers.from_callable(function, kind='embedding', …)"
            )
        settings = _json(checkpoint, f"{module['path']}/config.json") if module["path"] else None
        found[kind] = settings or {}
    return found


def _pooling(modules: dict[str, dict[str, Any]], name: str) -> Pooling:
    chosen = [key for key, value in modules.get("Pooling", {}).items() if value is True]
    chosen = [key for key in chosen if key.startswith("pooling_mode")]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _MODES:
        raise TeacherError(
            f"the encoder {quoted(name)} pools by {', '.join(map(quoted, chosen))}, which is not "
            "known here; choose pooling='mean' or 'cls' if that is what you want"
        )
    return _MODES[chosen[0]]


def _json(checkpoint: Checkpoint, name: str) -> Any | None:
    file = checkpoint.file(name)
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise TeacherError(
            f"the encoder {quoted(checkpoint.name)}: {name} is not JSON: {quoted(error)[1:-1]}"
        ) from None

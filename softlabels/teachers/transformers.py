"""Hugging Face models as teachers, their head applied to a few rows at a time."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from softlabels.errors import TeacherError, quoted
from softlabels.inputs.preparation import Answers
from softlabels.memory import sent
from softlabels.teachers.checkpoint import (
    Checkpoint,
    Loading,
    folder_of,
    may_be_on_hub,
    usable,
)
from softlabels.teachers.heads import apply_head
from softlabels.teachers.identity import (
    TeacherIdentity,
    config_digest,
    dtype_name,
    weights_digest,
)
from softlabels.teachers.tasks import (
    Alignment,
    Positions,
    Task,
)

# Rows of float32 logits that exist at a time on a CPU and on an accelerator, in bytes.
_CHUNK_BYTES = {"cpu": 128 << 20}
_ACCELERATOR_CHUNK_BYTES = 1 << 30

# A trial of a model that does not take what it is tried with ends in one of these.
_TRIAL_ERRORS = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)


class Pretrained:
    """A teacher that transformers runs; made by `softlabels.teachers.models.open_model`.

    Args:
        model: a checkpoint, loaded when it is needed, or a model (put into eval mode to label).
        task: what it answers.
        tokenizer: a transformers tokenizer; the model's own by default.
        compile: run the body through `torch.compile`.
    """

    def __init__(
        self,
        model: Checkpoint | nn.Module,
        *,
        task: Task,
        tokenizer: Any = None,
        compile: bool = False,
    ) -> None:
        self.task, self._tokenizer, self._compile = task, tokenizer, compile
        self.config: Any
        self._weights: str | None = None
        self._checkpoint: Checkpoint | None = None
        if isinstance(model, Checkpoint):
            self._checkpoint, self._path = model, model.path
            self.config = model.config_for(task)
            self.device = usable(model.loading.device)
            return
        self.config = model.config
        self.__dict__["model"] = model
        self._path = str(getattr(model, "name_or_path", "") or "")
        self.device = next(model.parameters()).device

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._checkpoint is not None and "model" not in state:
            # Another process may see other devices, and another machine has others.
            self.device = usable(self._checkpoint.loading.device)

    @property
    def alignment(self) -> Alignment:
        """Whether entry t is about token t + 1 ("next") or t ("same")."""
        return self.task.alignment

    @property
    def positions(self) -> Positions:
        """Whether every token has a label, or the record one, kept at its first token."""
        return self.task.positions

    @property
    def kind(self) -> str:
        """Whether its classes exclude each other; only those of whole texts may not."""
        several = getattr(self.config, "problem_type", None) == "multi_label_classification"
        return "binary" if self.task.has_classes and several else "categorical"

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What its config calls the classes; None where they are tokens, or have numbers alone."""
        if not self.task.has_classes:
            return None
        names = dict(getattr(self.config, "id2label", None) or {})
        found = [str(names.get(number, "")) for number in range(self.classes)]
        plain = all(name == f"LABEL_{number}" for number, name in enumerate(found))
        return None if plain or len(set(found)) < len(found) else tuple(found)

    @property
    def classes(self) -> int:
        """V: the width of the head, padding columns included."""
        return int(self.config.num_labels) if self.task.has_classes else self.vocabulary

    @property
    def classes_are_tokens(self) -> bool:
        """Whether class i is token i."""
        return not self.task.has_classes

    @property
    def vocabulary(self) -> int:
        """How many token ids it takes; V too, unless it has classes of its own."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def max_length(self) -> int | None:
        """The positions that the model was trained for."""
        config = self.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        if found is None or int(found) < 1:
            return None
        # Those that count positions from the padding token's id on have so many fewer.
        lost = (config.pad_token_id or 0) + 1 if config.model_type in _COUNT_FROM_PADDING else 0
        return int(found) - lost

    @cached_property
    def tokenizer(self) -> Any | None:
        """The model's own tokenizer, unless another was given; None where it has none."""
        if self._tokenizer is not None:
            return self._tokenizer
        checkpoint = self._checkpoint
        if checkpoint is None:
            if not self._path:
                return None
            checkpoint = Checkpoint(self._path, Loading())
        return checkpoint.tokenizer()

    @cached_property
    def model(self) -> Any:
        """The model; loaded when first asked for."""
        assert self._checkpoint is not None, "a loaded model is set when it is given"
        model, self._weights = self._checkpoint.load(self.task, self.device)
        return model

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Name, revision and the digest of the weights; loads them."""
        model, weights = self.model, self._weights
        return TeacherIdentity(
            name=self.name,
            revision=self._revision,
            weights=weights_digest(model) if weights is None else weights,
            config=config_digest(model.config),
            dtype=dtype_name(model),
            engine="transformers",
            engine_version=transformers.__version__,
            classes=self.classes,
            vocabulary=None if self.classes_are_tokens else self.vocabulary,
        )

    @property
    def _revision(self) -> str | None:
        if self._checkpoint is None:
            return getattr(self.config, "_commit_hash", None)
        return self._checkpoint.commit or self._checkpoint.loading.revision

    @property
    def name(self) -> str:
        """For people: a Hub name, or that of a folder or file; never a path."""
        if self._checkpoint is not None:
            return self._checkpoint.name
        if folder_of(self._path) is None and may_be_on_hub(self._path):
            return self._path
        return Path(self._path).resolve().name if self._path else "model"

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`: the (B, T, V) tensor is never made.

        A teacher with one label a record wants its first token alone.
        """
        self.model.eval()  # whoever trains it between two calls leaves its dropout on
        if self.positions == "first" and bool(wanted[:, 1:].any()):
            raise TeacherError(
                f"the teacher {quoted(self.name)} is {self.task.is_a}: it gives one label a "
                "record, kept at its first token, and more were asked for"
            )
        if self._takes_padding:
            yield from self._answers(self._inputs(input_ids, padding), wanted)
            return
        for row in range(len(input_ids)):
            length = int((~padding[row]).sum())
            ids, own = input_ids[row : row + 1, :length], wanted[row : row + 1, :length]
            if own.any():
                yield from self._answers(self._inputs(ids, torch.zeros_like(own)), own)

    def _inputs(self, input_ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        pad = self.config.get_text_config().pad_token_id
        if self.alignment == "same" and pad is not None:
            # Decoders that classify take the last token that is not this one.
            input_ids = input_ids.masked_fill(padding, pad)
        return {
            "input_ids": sent(input_ids, self.device),
            "attention_mask": sent((~padding).long(), self.device),
        }

    def _answers(self, inputs: dict[str, Tensor], wanted: Tensor) -> Iterator[Tensor]:
        """The wanted rows of logits, (rows, V), a few at a time."""
        # By number and not by mask, whose count a device would have to be waited for.
        columns = 1 if self.positions == "first" else wanted.shape[1]
        places = sent(wanted[:, :columns].flatten().nonzero().squeeze(1), self.device)
        if self.positions == "first":
            logits = self._whole(**inputs, **self._no_cache).logits
            self._check_width(logits)
            yield logits[places]
        elif self._head_is_separate:
            hidden = self._body(**inputs, **self._no_cache).last_hidden_state
            for rows in hidden.flatten(0, 1)[places].split(self._rows):
                yield apply_head(self.model, rows)
        else:
            logits = self._whole(**inputs, **self._no_cache).logits
            yield from logits.flatten(0, 1)[places].split(self._rows)

    @cached_property
    def _no_cache(self) -> dict[str, bool]:
        takes_it = "use_cache" in inspect.signature(self.model.forward).parameters
        return {"use_cache": False} if takes_it or self.task.name == "causal_lm" else {}

    @property
    def _rows(self) -> int:
        budget = _CHUNK_BYTES.get(self.device.type, _ACCELERATOR_CHUNK_BYTES)
        return max(1, budget // (4 * self.classes))

    @cached_property
    def _body(self) -> Callable[..., Any]:
        body = self.model.base_model
        return torch.compile(body, dynamic=True) if self._compile else body

    @cached_property
    def _whole(self) -> Callable[..., Any]:
        return torch.compile(self.model, dynamic=True) if self._compile else self.model

    @cached_property
    def _head_is_separate(self) -> bool:
        """Whether body and head, run apart, give what the whole model gives; tried once."""
        ids = torch.arange(1, 9, device=self.device).remainder(self.vocabulary).unsqueeze(0)
        whole = self.model(input_ids=ids, **self._no_cache).logits[0]
        self._check_width(whole)
        try:
            body = self.model.base_model(input_ids=ids, **self._no_cache)
            apart = apply_head(self.model, body.last_hidden_state[0])
        except _TRIAL_ERRORS:
            apart = None
        tolerance = 1e-3 * float(whole.abs().max())
        if apart is not None and torch.allclose(apart, whole, rtol=0, atol=tolerance):
            return True
        warnings.warn(
            f"{type(self.model).__name__}: its head cannot be run apart from its body, so each "
            "batch's logits are made whole; lower batch_tokens if memory runs out",
            stacklevel=2,
        )
        return False

    @cached_property
    def _takes_padding(self) -> bool:
        """Whether padding leaves a row's own logits alone; tried once.

        It does not where a convolution reads it, where a decoder that classifies has no padding
        token, or where a summary is taken from the last column. Such rows are run one by one.
        """
        if self.alignment == "next":
            return True
        own = torch.arange(_TRIAL_TOKENS) < torch.tensor([_TRIAL_TOKENS, 2])[:, None]
        ids = self._trial_ids(2)
        first = self.positions == "first"
        try:
            together = self.model(**self._inputs(ids, ~own)).logits
            return all(
                _alike(together[row] if first else together[row, own[row]], alone.logits[0])
                for row in range(2)
                for alone in [self._alone(ids[row, own[row]])]
            )
        except _TRIAL_ERRORS:
            return False

    def _alone(self, ids: Tensor) -> Any:
        ids = ids.unsqueeze(0)
        return self.model(**self._inputs(ids, torch.zeros_like(ids, dtype=torch.bool)))

    def _trial_ids(self, seed: int) -> Tensor:
        """Two rows of token ids without the padding token."""
        ids = torch.arange(seed, seed + 2 * _TRIAL_TOKENS).remainder(self.vocabulary)
        pad = self.config.get_text_config().pad_token_id
        if pad is not None:
            ids[ids == pad] = (pad + 1) % self.vocabulary
        return ids.view(2, -1)

    def _check_width(self, logits: Tensor) -> None:
        if logits.shape[-1] != self.classes:
            field = "num_labels" if self.task.has_classes else "vocab_size"
            raise TeacherError(
                f"{quoted(self._path)}: its logits have {logits.shape[-1]} classes, its config "
                f"says {self.classes}; correct {field}"
            )


class CausalLM(Pretrained):
    """A causal language model, which may label several records in one row; see `Pretrained`."""

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        wanted: Tensor,
        *,
        padding: Tensor,
        position_ids: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`, and of rows that hold several records.

        Args:
            position_ids: int64, (B, T), from 0 on for each record of a row; records do not see
                each other. Padding may only end a row. None where a row is one record.

        Raises:
            TeacherError: the model cannot keep records apart (see `can_pack`).
        """
        if position_ids is None:
            yield from super().logits(input_ids, wanted, padding=padding)
            return
        if not self.can_pack:
            raise TeacherError(
                f"a {type(self.model).__name__} cannot keep the records of a row apart; give each "
                "record a row of its own"
            )
        self.model.eval()
        yield from self._answers(self._packed(input_ids, padding, position_ids), wanted)

    @torch.no_grad()
    def answers(
        self, input_ids: Tensor, *, padding: Tensor, room: int, settings: Answers
    ) -> list[Tensor]:
        """As `softlabels.teachers.traits.Answering`: drawn from the model's own distribution.

        Nothing of the model's generation config counts but the tokens that end an answer.

        Raises:
            TeacherError: the model cannot generate.
        """
        self.model.eval()
        if not getattr(self.model, "can_generate", lambda: False)():
            raise TeacherError(f"a {type(self.model).__name__} cannot generate text")
        ends = self._ends
        pad = ends[0] if ends else 0
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        chosen = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=room,
            do_sample=settings.temperature > 0,
            eos_token_id=ends or None,
            pad_token_id=pad,
            **(drawn if settings.temperature > 0 else {}),
        )
        found = self.model.generate(
            input_ids=sent(input_ids.masked_fill(padding, pad), self.device),
            attention_mask=sent((~padding).long(), self.device),
            generation_config=chosen,
        )[:, input_ids.shape[1] :].cpu()
        ended = torch.isin(found, torch.tensor(ends, dtype=found.dtype))
        # What follows the first end is padding; the one that ends an answer belongs to it.
        lengths = (~(ended.cumsum(1) - ended.long()).bool()).sum(1).tolist()
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    @property
    def _ends(self) -> list[int]:
        """The tokens that end an answer: the generation config's, and the tokenizer's."""
        told = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = [told] if isinstance(told, int) else list(told or [])
        ends.append(getattr(self.tokenizer, "eos_token_id", None))
        return sorted({end for end in ends if end is not None})

    def _packed(
        self, input_ids: Tensor, padding: Tensor, position_ids: Tensor
    ) -> dict[str, Tensor]:
        # transformers tells records apart by positions that do not go on, and only where there is
        # no attention mask. So each padding token is a record, at a position that every model has.
        return {
            "input_ids": sent(input_ids, self.device),
            "position_ids": sent(position_ids.masked_fill(padding, 0), self.device),
        }

    @cached_property
    def can_pack(self) -> bool:
        """Whether each of several records in a row has the logits it has alone; tried once."""
        self.model.eval()
        ids = self._trial_ids(2)
        others = ids.clone()
        others[:, :_TRIAL_FIRST] = self._trial_ids(5)[:, :_TRIAL_FIRST]
        padding = torch.zeros_like(ids, dtype=torch.bool)
        padding[1, -1] = True
        after = torch.arange(_TRIAL_TOKENS)
        positions = torch.where(after < _TRIAL_FIRST, after, after - _TRIAL_FIRST).repeat(2, 1)
        try:
            with torch.no_grad():
                found = self.model(**self._packed(ids, padding, positions), use_cache=False).logits
                moved = self.model(**self._packed(others, padding, positions), use_cache=False)
                alone = [self._alone(row[part]).logits[0] for row in ids for part in _TRIAL_PARTS]
        except _TRIAL_ERRORS:
            return False
        own = ~padding[:, _TRIAL_FIRST:]
        after_another = moved.logits[:, _TRIAL_FIRST:][own]
        packed = [row[part] for row in found for part in _TRIAL_PARTS]
        # In half precision a small leak would pass for rounding; a change of the record before
        # shows it at any precision.
        return _alike(after_another, found[:, _TRIAL_FIRST:][own], strict=True) and all(
            _alike(one[: len(one) - short], other[: len(one) - short])
            for one, other, short in zip(packed, alone, (0, 0, 0, 1), strict=True)
        )


# What models are tried with: two rows, each of two records where they are packed.
_TRIAL_TOKENS, _TRIAL_FIRST = 8, 3
_TRIAL_PARTS = (slice(0, _TRIAL_FIRST), slice(_TRIAL_FIRST, _TRIAL_TOKENS))

# Their first token has the position after the padding token's id, as in fairseq.
_COUNT_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def _alike(found: Tensor, expected: Tensor, *, strict: bool = False) -> bool:
    """Whether two tensors of logits are equal but for rounding; strict for the same sums."""
    eps = torch.finfo(expected.dtype).eps
    tolerance = (4 * eps if strict else max(1e-3, 8 * eps)) * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=0, atol=tolerance)

"""Hugging Face causal language models, their head applied to a few rows at a time."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.identity import TeacherIdentity, dtype_name, weights_digest

# Rows of float32 logits that exist at a time on a CPU and on an accelerator, in bytes.
_CHUNK_BYTES = {"cpu": 32 << 20}
_ACCELERATOR_CHUNK_BYTES = 1 << 30


class CausalLM:
    """A causal LM by name or folder, or one that is loaded already.

    Args:
        model: a Hub name, a folder, or a transformers model (set to eval mode).
        tokenizer: a transformers tokenizer; the model's own by default.
        device: "cuda" where there is one, else "cpu".
        dtype: of the weights; by default the checkpoint's on an accelerator and float32 on a CPU.
        revision: a Hub commit, branch or tag.

    Raises:
        TeacherError: there is no such model, or it is not a causal LM.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
    ) -> None:
        self._revision, self._tokenizer = revision, tokenizer
        self.config: Any
        if isinstance(model, nn.Module):
            self._path, self.config = str(getattr(model, "name_or_path", "") or ""), model.config
            self.__dict__["model"] = model.eval()
            self.device = next(model.parameters()).device
            return
        self._path = str(model)
        self.config = self._from_pretrained(transformers.AutoConfig)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype or (torch.float32 if self.device.type == "cpu" else "auto")

    @property
    def classes(self) -> int:
        """V: the width of the head, padding columns included."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def max_length(self) -> int | None:
        """The positions that the model was trained for."""
        found = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if found is None else int(found)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, unless another was given."""
        if self._tokenizer is not None:
            return self._tokenizer
        if not self._path:
            raise TeacherError(
                "this model does not say where it came from, so its tokenizer cannot be found; "
                "pass causal_lm(model, tokenizer=…)"
            )
        return self._from_pretrained(transformers.AutoTokenizer)

    @cached_property
    def model(self) -> Any:
        """The model in eval mode; loaded when first asked for."""
        model = self._from_pretrained(transformers.AutoModelForCausalLM, dtype=self._dtype)
        return model.to(self.device).eval()

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Name, revision and the digest of the weights; loads them."""
        commit = getattr(self.config, "_commit_hash", None)
        return TeacherIdentity(
            name=Path(self._path).name if Path(self._path).is_dir() else self._path or "model",
            revision=commit or self._revision,
            weights=weights_digest(self.model),
            dtype=dtype_name(self.model),
            engine="transformers",
            engine_version=transformers.__version__,
            classes=self.classes,
        )

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`: the (B, T, V) tensor is never made."""
        inputs = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": (~padding).long().to(self.device),
        }
        if not self._head_is_separate:
            every = self.model(**inputs, use_cache=False).logits
            yield from every[wanted.to(self.device)].split(self._rows)
            return
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        for rows in hidden[wanted.to(self.device)].split(self._rows):
            yield self._head(rows)

    @property
    def _rows(self) -> int:
        budget = _CHUNK_BYTES.get(self.device.type, _ACCELERATOR_CHUNK_BYTES)
        return max(1, budget // (4 * self.classes))

    def _head(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states, (rows, H) → (rows, V).

        The model's own forward runs with its body replaced by one that answers `hidden`, so that
        every scaling and soft cap after the head is the model's own.
        """
        prefix = self.model.base_model_prefix
        body = getattr(self.model, prefix)
        setattr(self.model, prefix, _Answer(hidden))
        try:
            placeholder = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: Tensor = self.model(input_ids=placeholder, use_cache=False).logits[0]
            return logits
        finally:
            setattr(self.model, prefix, body)

    @cached_property
    def _head_is_separate(self) -> bool:
        """Whether body and head, run apart, give what the whole model gives; tried once."""
        ids = torch.arange(1, 9, device=self.device).remainder(self.classes).unsqueeze(0)
        whole = self.model(input_ids=ids, use_cache=False).logits[0]
        if whole.shape[-1] != self.classes:
            raise TeacherError(
                f"{quoted(self._path)}: its logits have {whole.shape[-1]} classes, its config "
                f"says {self.classes}; correct vocab_size"
            )
        try:
            body = self.model.base_model(input_ids=ids, use_cache=False)
            apart = self._head(body.last_hidden_state[0])
        except (AttributeError, TypeError, ValueError, RuntimeError):
            apart = None
        if apart is not None and torch.allclose(apart, whole, rtol=1e-3, atol=1e-3):
            return True
        warnings.warn(
            f"{type(self.model).__name__}: its head cannot be run apart from its body, so each "
            "batch's logits are made whole; lower batch_tokens if memory runs out",
            stacklevel=2,
        )
        return False

    def _from_pretrained(self, kind: Any, **options: Any) -> Any:
        if self._revision is not None:
            options["revision"] = self._revision
        try:
            return kind.from_pretrained(self._path, **options)
        except (OSError, ValueError) as error:
            reason = re.sub(r"\s+", " ", str(error)).split(". ")[0]
            raise TeacherError(
                f"the teacher {quoted(self._path)} cannot be loaded: {reason}; pass the folder or "
                "Hub name of a causal language model"
            ) from error


class _Answer(nn.Module):
    """Stands in for a model's body."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        return transformers.modeling_outputs.BaseModelOutputWithPast(
            last_hidden_state=self.hidden.unsqueeze(0)
        )

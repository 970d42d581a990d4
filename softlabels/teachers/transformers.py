"""Hugging Face causal language models, their head applied to a few rows at a time."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.identity import TeacherIdentity, dtype_name, weights_digest

# Rows of float32 logits that exist at a time on a CPU and on an accelerator, in bytes.
_CHUNK_BYTES = {"cpu": 32 << 20}
_ACCELERATOR_CHUNK_BYTES = 1 << 30


class CausalLM:
    """A causal LM by name or folder, or one that is loaded already.

    Args:
        model: a Hub name, a folder, or a transformers model (put into eval mode to label).
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
            if getattr(self.config, "is_encoder_decoder", False):
                raise TeacherError(
                    f"a {type(model).__name__} is no causal language model but an encoder and a "
                    "decoder; wrap it in softlabels.teachers.from_callable(function, …)"
                )
            self.__dict__["model"] = model
            self.device = next(model.parameters()).device
            return
        self._path = str(model)
        if not _may_be_on_hub(self._path) and self._folder is None:
            raise TeacherError(f"the teacher {quoted(self._path)}: there is no such folder")
        if revision is not None and self._folder is not None:
            raise TeacherError(
                f"the teacher {quoted(self._path)} is a folder, which has no revision "
                f"{quoted(revision)}; leave out revision= (--revision)"
            )
        self.config = self._from_pretrained(transformers.AutoConfig)
        self.device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype or (torch.float32 if self.device.type == "cpu" else "auto")

    @property
    def _folder(self) -> Path | None:
        """Where the model lies on this machine; None for one of the Hub or one made here."""
        return Path(self._path) if self._path and Path(self._path).is_dir() else None

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
    def tokenizer(self) -> Any | None:
        """The model's own tokenizer, unless another was given; None where it has none."""
        if self._tokenizer is not None:
            return self._tokenizer
        folder = self._folder
        has_none = folder is not None and not any(map(_is_of_tokenizer, folder.iterdir()))
        if not self._path or has_none:
            return None
        return self._from_pretrained(transformers.AutoTokenizer)

    @cached_property
    def model(self) -> Any:
        """The model; loaded when first asked for."""
        model, report = self._from_pretrained(
            transformers.AutoModelForCausalLM, dtype=self._dtype, output_loading_info=True
        )
        # transformers fills what a checkpoint lacks with random numbers and a warning.
        missing = sorted(report["missing_keys"])
        if missing:
            raise TeacherError(
                f"the teacher {quoted(self._path)} has no weights for {quoted(missing[0])} and "
                f"{len(missing) - 1} others; pass a whole causal language model, its head included"
            )
        return model.to(self.device)

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Name, revision and the digest of the weights; loads them."""
        commit = getattr(self.config, "_commit_hash", None)
        on_hub = self._folder is None and _may_be_on_hub(self._path)
        local_name = Path(self._path).resolve().name if self._path else "model"
        return TeacherIdentity(
            name=self._path if on_hub else local_name,
            revision=commit or self._revision,
            weights=weights_digest(self.model),
            config=_config_digest(self.model.config),
            dtype=dtype_name(self.model),
            engine="transformers",
            engine_version=transformers.__version__,
            classes=self.classes,
        )

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`: the (B, T, V) tensor is never made."""
        self.model.eval()  # whoever trains it between two calls leaves its dropout on
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
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError):
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

    def _from_pretrained(self, kind: Any, **options: Any) -> Any:
        if self._revision is not None:
            options["revision"] = self._revision
        try:
            return kind.from_pretrained(self._path, trust_remote_code=False, **options)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            reason = re.sub(r"\s+", " ", str(error)).split(". ")[0].rstrip(".")
            raise TeacherError(
                f"the teacher {quoted(self._path)} cannot be loaded: "
                f"{quoted(reason, limit=300)[1:-1]}; pass the folder or Hub name of a causal "
                "language model"
            ) from error


def _may_be_on_hub(path: str) -> bool:
    """Whether a name has the form `model` or `owner/model`."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


def _is_of_tokenizer(file: Path) -> bool:
    # tokenizer.json, tokenizer_config.json, vocab.json, vocab.txt, tekken.json, spiece.model, …
    known = file.name.startswith(("tokenizer", "vocab", "tekken"))
    return known or file.suffix in (".model", ".tiktoken")


# What a config says beside how the weights are used.
_NOT_THE_FORWARD = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures"})


def _config_digest(config: Any) -> str:
    """Of the settings that differ from the defaults: a rotary base, a soft cap, a window."""
    found = {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in _NOT_THE_FORWARD and not name.startswith("_")
    }
    data = json.dumps(found, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(data.encode())


def _usable(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(
            f"the device {quoted(device)} cannot be used: {reason}; choose another with device= "
            "(--device)"
        ) from error
    return torch.device(device)


class _Answer(nn.Module):
    """Stands in for a model's body."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Hidden(last_hidden_state=self.hidden.unsqueeze(0))


class _Hidden(BaseModelOutputWithPast):
    """A body's output; what else one answers (caches, cross attentions, router logits) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)

"""A student on a batch: hidden states where its head can be run apart, else logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.loading.collate import block_causal_mask, mask_dtype

# Logits of a chunk, float32, while nothing is learnt.
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Hidden:
    """What a head makes logits of: states · weightᵀ + bias.

    Attributes:
        states: (..., d).
        weight: (V, d).
        bias: (V,).
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self) -> Tensor:
        """(..., V)."""
        return nn.functional.linear(self.states, self.weight, self.bias)


@dataclass(frozen=True)
class Student:
    """A model and how it is run.

    Attributes:
        model: its forward takes `input_ids`, `attention_mask` and, of packed rows,
            `position_ids`, and gives something with `logits` (B, T, V).
        head: the linear layer that makes logits of its body's hidden states; None where that is
            not all, or not known.
        autocast: run it in bfloat16.
    """

    model: nn.Module
    head: nn.Linear | None = None
    autocast: bool = False

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, T, V)."""
        with self._casting():
            made: Tensor = self.model(**self._inputs(batch), **self._no_cache).logits
        return made

    def hidden(self, batch: Mapping[str, Any]) -> Hidden:
        """Of batch shape (B, T); for students with a head."""
        assert self.head is not None
        body: Any = self.model.base_model
        with self._casting():
            states = body(**self._inputs(batch), **self._no_cache).last_hidden_state
        weight: Tensor = self.head.weight
        bias: Tensor | None = self.head.bias
        if self.autocast:
            # The loss is made of them outside of autocast.
            states, weight = states.bfloat16(), weight.bfloat16()
            bias = None if bias is None else bias.bfloat16()
        return Hidden(states, weight, bias)

    def rows(self, batch: Mapping[str, Any], wanted: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Float32 logits (rows, V) of the wanted positions, a few at a time, and which of them.

        Args:
            wanted: bool, (B, T).
        """
        if self.head is None:
            logits = self.logits(batch)[wanted]
            for rows in _chunks(len(logits), logits.shape[-1]):
                yield rows, logits[rows].float()
            return
        hidden = self.hidden(batch)
        states = hidden.states[wanted]
        for rows in _chunks(len(states), len(hidden.weight)):
            yield rows, Hidden(states[rows], hidden.weight, hidden.bias).logits().float()

    @cached_property
    def _no_cache(self) -> dict[str, bool]:
        takes_it = "use_cache" in inspect.signature(self.model.forward).parameters
        return {"use_cache": False} if takes_it else {}

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if "segment_ids" not in batch:
            return {name: batch[name] for name in ("input_ids", "attention_mask")}
        computed_in = torch.bfloat16 if self.autocast else next(self.model.parameters()).dtype
        dtype = mask_dtype(self.model, computed_in)
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": block_causal_mask(batch["segment_ids"], dtype=dtype),
            "position_ids": batch["position_ids"],
        }

    def _casting(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    size = max(1, _CHUNK_BYTES // (4 * classes))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

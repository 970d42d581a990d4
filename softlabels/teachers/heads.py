"""The head of a transformers model, run apart from its body."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast


def apply_head(model: Any, hidden: Tensor) -> Tensor:
    """What a model makes of hidden states, (rows, H) → (rows, V).

    The model's own forward runs with its body replaced by one that answers `hidden`, so that every
    scaling and soft cap after the head is the model's own.
    """
    prefix = model.base_model_prefix
    body = getattr(model, prefix)
    setattr(model, prefix, _Answer(hidden))
    try:
        placeholder = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=placeholder).logits[0]
        return logits
    finally:
        setattr(model, prefix, body)


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

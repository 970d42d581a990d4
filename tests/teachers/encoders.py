"""Encoders and decoders of a few kilobytes that answer about the tokens that they see."""

from __future__ import annotations

from typing import Any

import torch
from architectures import CLASSES

LABELS = 5


def built(name: str, **changes: Any) -> Any:
    """A model class of transformers by name, random weights large enough for logits to differ."""
    import transformers as hf

    bert = {
        "vocab_size": CLASSES,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "num_labels": LABELS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    gpt2 = {k: bert[k] for k in ("vocab_size", "initializer_range", "num_labels", "pad_token_id")}
    gpt2 |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    gpt2 |= {"bos_token_id": 1, "eos_token_id": 2}
    distil = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    own: dict[str, dict[str, Any]] = {
        "Bert": bert,
        "Roberta": {**bert, "pad_token_id": 1},
        "DistilBert": {**{k: bert[k] for k in bert if "_size" not in k}, "vocab_size": CLASSES}
        | distil,
        "ModernBert": {
            **bert,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 4,
            "global_attn_every_n_layers": 2,
        },
        "ConvBert": {**bert, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
        "Llama": {**bert, "num_key_value_heads": 2},
        "GPT2": gpt2,
    }
    kind = next(kind for kind in own if name.startswith(kind))
    model = getattr(hf, name)(getattr(hf, f"{kind}Config")(**{**own[kind], **changes}))
    with torch.no_grad():  # biases and poolers, which start at zero
        for parameter in model.parameters():
            if not float(parameter.abs().sum()):
                parameter.normal_(std=0.3)
    return model.eval()

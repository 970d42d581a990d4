"""Checkpoints of every kind that a teacher may come as: GGUF, PEFT adapter, Hub cache."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_gguf(model: Any, path: Path, *, quantised: bool = False) -> None:
    """A Llama as llama.cpp stores it; matrices in Q8_0 blocks where their rows allow it."""
    import gguf

    config, kind = model.config, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = _interleaved(name, tensor.float().numpy(), config)
        stored = names.get_name(name, try_suffixes=(".weight",))
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(name: str, values: Any, config: Any) -> Any:
    """llama.cpp rotates neighbouring columns of queries and keys, transformers the two halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, count in heads.items():
        if projection in name:
            halves = values.reshape(count, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def save_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """A LoRA adapter with random weights, saved; returns the model with it added, not merged."""
    import peft

    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    wrapped = as_peft(model, peft.LoraConfig(**{**settings, **options}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def as_peft(model: Any, config: Any) -> Any:
    """`peft.get_peft_model`, without its warning of a name that transformers deprecated."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, config)


def into_hub_cache(folder: Path, cache: Path, name: str = "owner/model") -> Path:
    """Put a folder's files into a cache as the Hub's client lays them out; returns the snapshot."""
    import hashlib

    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for made in (root / "blobs", root / "refs", snapshot):
        made.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        os.symlink(blob, snapshot / file.name)
    return snapshot

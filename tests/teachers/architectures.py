"""Causal LMs of a few kilobytes, one of each way to make logits of hidden states."""

from __future__ import annotations

from typing import Any

CLASSES = 97


def built(name: str, **changes: Any) -> Any:
    """An architecture by name, random weights large enough for logits to differ."""
    import transformers as hf

    llama = {
        "vocab_size": CLASSES,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    grouped = {**llama, "num_key_value_heads": 2}
    gemma = {**grouped, "head_dim": 8, "sliding_window": 4}
    short = {k: llama[k] for k in ("vocab_size", "initializer_range", "bos_token_id")}
    short["eos_token_id"] = 1
    made: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "Llama": (hf.LlamaForCausalLM, hf.LlamaConfig, grouped),
        "Llama, tied": (
            hf.LlamaForCausalLM,
            hf.LlamaConfig,
            {**grouped, "tie_word_embeddings": True},
        ),
        "Qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, grouped),
        "Qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {**grouped, "head_dim": 8}),
        "Mistral, window": (
            hf.MistralForCausalLM,
            hf.MistralConfig,
            {**grouped, "sliding_window": 4},
        ),
        "Mamba": (
            hf.MambaForCausalLM,
            hf.MambaConfig,
            {**short, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        ),
        "Gemma2, soft cap": (
            hf.Gemma2ForCausalLM,
            hf.Gemma2Config,
            {**gemma, "final_logit_softcapping": 2.0},
        ),
        "Gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, gemma),
        "Granite, scaled": (hf.GraniteForCausalLM, hf.GraniteConfig, {**grouped,
                                                                      "logits_scaling": 4.0}),
        "Phi, head with bias": (hf.PhiForCausalLM, hf.PhiConfig, llama),
        "GPTNeoX": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, llama),
        "Mixtral, experts": (
            hf.MixtralForCausalLM,
            hf.MixtralConfig,
            {**grouped, "num_local_experts": 2},
        ),
        "GPT2": (
            hf.GPT2LMHeadModel,
            hf.GPT2Config,
            {**short, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ),
        "BLOOM": (
            hf.BloomForCausalLM,
            hf.BloomConfig,
            {**short, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ),
        "OPT": (
            hf.OPTForCausalLM,
            hf.OPTConfig,
            {
                **{k: v for k, v in llama.items() if k not in ("intermediate_size",
                                                              "initializer_range")},
                "ffn_dim": 48,
                "word_embed_proj_dim": 32,
                "init_std": 0.3,
            },
        ),
    }  # fmt: skip
    model, config, options = made[name]
    return model(config(**{**options, **changes})).eval()

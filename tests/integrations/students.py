"""The smallest student that trains as a real one does, and what a training run leaves."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import softlabels as sl

RATE = 0.5


def make_student() -> LlamaForCausalLM:
    """One layer over sixteen classes, always the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def flat(model: torch.nn.Module, *, gradients: bool = False) -> list[float]:
    """Every weight, or its gradient."""
    tensors = [p.grad if gradients else p.detach() for p in model.parameters()]
    return torch.cat([t.flatten() for t in tensors if t is not None]).tolist()


def sums(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """KL summed over the batch's labelled positions, and how many those are."""
    y = batch["soft_labels"]
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return sl.losses.kl_divergence(logits, y).sum(), y.mask.sum()


def oracle(
    labels: sl.LabelSet, *, epochs: int, together: int, **options: Any
) -> tuple[list[float], list[float], list[list[float]]]:
    """Plain gradient descent, `together` batches a step: mean losses, weights, gradients a step.

    Every loss is a sum over positions divided by their number in the step, in one backward pass.
    """
    model = make_student()
    losses, gradients = [], []
    loader = sl.loader(labels, rank=0, world_size=1, **options)
    for _ in range(epochs):
        batches = list(loader)
        for start in range(0, len(batches), together):
            parts = [sums(model, batch) for batch in batches[start : start + together]]
            loss = sum(part for part, _ in parts) / sum(int(count) for _, count in parts)
            model.zero_grad()
            loss.backward()
            gradients.append(flat(model, gradients=True))
            with torch.no_grad():
                for p in model.parameters():
                    p -= RATE * p.grad
            losses.append(float(loss.detach()))
    return losses, flat(model), gradients


def arguments(out: Any, **options: Any) -> TrainingArguments:
    """Trainer doing what `oracle` does: plain gradient descent, every loss in its log."""
    settings: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "num_train_epochs": 2,
        "save_strategy": "no",
    }
    return TrainingArguments(str(out), **(settings | options))


def close(found: list[float], expected: list[float]) -> bool:
    """Equal but for the order in which float32 sums were taken."""
    assert len(found) == len(expected)
    scale = max(map(abs, expected))
    return all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5 * scale)
        for a, b in zip(found, expected, strict=True)
    )

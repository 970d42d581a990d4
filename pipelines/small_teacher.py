"""A teacher of a few million parameters and 4,096 classes, trained here on hard labels alone.

    python pipelines/small_teacher.py --text runs/speeches.jsonl --out models/small-teacher

Small enough that every class of every position can be kept, and that a grid of students with
several seeds trains in an hour where nothing else does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CLASSES, LENGTH = 4096, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="JSONL with a column text")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.text.read_text().splitlines()]
    make(texts, args.out, steps=args.steps, device=args.device)


def make(texts: list[str], out: Path, *, steps: int, device: str) -> Path:
    """The folder of the teacher, as `save_pretrained` writes it; made if it is not there."""
    if out.is_dir():
        return out
    torch.manual_seed(0)
    tokenizer = make_tokenizer(texts)
    tokens = torch.tensor([t for text in texts for t in tokenizer(text)["input_ids"]])
    config = LlamaConfig(
        vocab_size=CLASSES, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    loss = torch.tensor(math.nan)
    batches = batches_of(tokens, steps)
    console = Console(stderr=True)
    for batch in track(batches, "teaching the teacher", total=steps, console=console):
        loss = model(input_ids=batch.to(device), labels=batch.to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"a teacher of {model.num_parameters() / 1e6:.1f}M, {loss.item():.2f} nats at the end")
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def batches_of(tokens: Tensor, steps: int, *, rows: int = 16) -> Iterator[Tensor]:
    """Windows at random places, (rows, LENGTH)."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (rows, 1), generator=generator)
        yield tokens[starts + torch.arange(LENGTH)]


def make_tokenizer(texts: list[str]) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CLASSES, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **end)


if __name__ == "__main__":
    main()

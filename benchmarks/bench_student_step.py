"""What share of a training step does a student spend waiting for its labels?

    python benchmarks/bench_student_step.py LABELS [--batch 2] [--seconds 30] [--quick]

LABELS is a finished label set of text with token ids. Students of about 1 and 100 million
parameters train on it on the CPU: forward, `kl_divergence`, backward, AdamW. Waiting is the time
inside `next(loader)`. The first batch must be what the set holds. It should be below 1 %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import machine, markdown
from torch import Tensor, nn

import softlabels as sl

# Width, layers and heads; of these, a vocabulary of 49,152 alone has 1 and 25 million parameters.
STUDENTS = {"1 M": (20, 4, 2), "100 M": (512, 24, 8)}
THREADS = (0, 1)
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="a finished label set with token ids")
    parser.add_argument("--batch", type=int, default=2, help="records of a step")
    parser.add_argument("--seconds", type=float, default=30, help="that each student trains for")
    parser.add_argument("--quick", action="store_true", help="two steps each, the small student")
    args = parser.parse_args()
    seconds = 0.0 if args.quick else args.seconds
    students = ["1 M"] if args.quick else list(STUDENTS)
    labels = sl.LabelSet.open(args.labels)
    check(labels, args.batch)
    rows = []
    for name, threads in ((name, threads) for name in students for threads in THREADS):
        student = Student(labels.plan.teacher.classes, *STUDENTS[name])
        parameters = sum(p.numel() for p in student.parameters())
        batches = endless(sl.loader(labels, batch_size=args.batch, seed=0, threads=threads))
        waits, wholes, tokens = train(student, batches, seconds)
        rows.append(
            [
                f"{parameters / 1e6:.1f} M, {threads} threads",
                f"{len(wholes)}",
                f"{1e3 * statistics.median(wholes):,.0f}",
                f"{tokens / sum(wholes):,.0f}",
                f"{1e3 * statistics.median(waits):.2f}",
                f"{sum(waits) / sum(wholes):.2%}",
                f"{alone(labels, args.batch, threads) / 1e3:,.0f}",
            ]
        )
    k = labels.plan.selection.k
    print(f"Batches of {args.batch} records, k = {k}. {machine()}\n")
    header = ["student, loader", "steps", "ms a step", "tokens a second", "ms waiting", "share"]
    print(markdown([*header, "thousand tokens a second, no student"], rows))


class Student(nn.Module):
    """A causal transformer whose head is its embedding."""

    def __init__(self, classes: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.places = nn.Parameter(torch.zeros(LENGTH, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits, (B, T, V)."""
        length = input_ids.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embedding(input_ids) + self.places[:length]
        hidden = self.body(hidden, mask=causal, is_causal=True)
        return nn.functional.linear(hidden, self.embedding.weight)


def train(
    student: Student, batches: Iterator[dict[str, Any]], seconds: float
) -> tuple[list[float], list[float], int]:
    """Seconds waited and altogether of each step after the first, two at least; their tokens."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    waits: list[float] = []
    wholes: list[float] = []
    tokens, first = 0, True
    while len(wholes) < 2 or sum(wholes) < seconds:
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        labels = batch["soft_labels"]
        losses = sl.losses.kl_divergence(student(batch["input_ids"]), labels)
        loss = sl.losses.reduce(losses, labels.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not bool(loss.isfinite()):
            raise SystemExit(f"the loss of step {len(wholes)} is {float(loss)}")
        if not first:  # which compiles, allocates and opens
            waits.append(waited)
            wholes.append(time.perf_counter() - began)
            tokens += int(batch["attention_mask"].sum())
        first = False
    return waits, wholes, tokens


def alone(labels: sl.LabelSet, batch: int, threads: int) -> float:
    """Tokens a second of an epoch that nobody trains on: a student must be as fast to wait."""
    began, tokens = time.perf_counter(), 0
    for made in sl.loader(labels, batch_size=batch, seed=0, threads=threads):
        tokens += int(made["attention_mask"].sum())
    return tokens / (time.perf_counter() - began)


def endless(loader: sl.Loader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def check(labels: sl.LabelSet, batch: int) -> None:
    """The first batch against the set, record by record."""
    first = next(iter(sl.loader(labels, batch_size=batch, seed=0)))
    for row, (key, part) in enumerate(zip(first["key"], first["part"].tolist(), strict=True)):
        wanted = labels.get(key, part=part)
        found = first["soft_labels"][row, : len(wanted)]
        assert found.mask is not None
        assert wanted.mask is not None
        if not torch.equal(found.ids, wanted.ids) or not torch.equal(found.mask, wanted.mask):
            raise SystemExit(f"record {key!r}, part {part} of the first batch has other labels")
        if not torch.equal(found.log_probs, wanted.log_probs):
            raise SystemExit(f"record {key!r}, part {part} of the first batch has other log-probs")


if __name__ == "__main__":
    main()

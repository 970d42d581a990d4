"""Train a small student from a label set alone; the teacher is not needed, and not opened.

    python pipelines/train_student.py runs/quickstart/labels --out runs/quickstart

Every fifth sample is held out. Before and after training, the student is compared with the teacher
on them: KD loss in nats a position, and how often both think the same token likeliest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import softlabels as sl

HELD_OUT_EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="a label set that carries its inputs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--keep-closed", type=Path, help="fail if a file below it is opened")
    args = parser.parse_args()
    if args.keep_closed is not None:
        keep_closed(args.keep_closed.resolve())

    torch.manual_seed(0)
    labels = sl.LabelSet.open(args.labels)
    training, held_out = split(labels)
    student = make_student(labels.plan.teacher.classes, args.hidden_size)
    began = time.perf_counter()
    before = evaluate(student, labels, held_out)
    losses = train(student, labels, training, epochs=args.epochs)
    after = evaluate(student, labels, held_out)
    result = {
        "parameters": sum(p.numel() for p in student.parameters()),
        "records": {"training": len(training), "held_out": len(held_out)},
        "seconds": round(time.perf_counter() - began, 1),
        "before": before,
        "after": after,
        "losses": losses,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "student.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(result, args.out / "student.png")
    report(result)


def keep_closed(folder: Path) -> None:
    """Make every `open` of a file below `folder` an error, for the rest of this process."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return  # a descriptor of a file that is open already
        # Resolved: the folder may be reached by a relative path or through a link.
        path = Path(os.fsdecode(arguments[0])).resolve()
        if path.is_relative_to(folder):
            raise PermissionError(f"{path} belongs to the teacher, which must stay closed")

    sys.addaudithook(refuse)


def split(labels: sl.LabelSet) -> tuple[list[int], list[int]]:
    """Record numbers to train on and to hold out: whole samples, never windows of one in both."""
    keys = labels.identities["key"].to_pylist()
    held = set(list(dict.fromkeys(keys))[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    numbers = range(len(labels))
    return [n for n in numbers if keys[n] not in held], [n for n in numbers if keys[n] in held]


def make_student(classes: int, hidden_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=classes,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train(
    student: LlamaForCausalLM, labels: sl.LabelSet, records: list[int], *, epochs: int
) -> list[float]:
    """The KD loss of every step, in nats a position."""
    loader = sl.loader(labels, batch_size=1, seed=0, records=records)
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=steps, pct_start=0.15
    )
    losses = []
    batches = (batch for _ in range(epochs) for batch in loader)
    for batch in track(batches, "training the student", total=steps, console=Console(stderr=True)):
        y = batch["soft_labels"]
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = sl.losses.reduce(sl.losses.kl_divergence(logits, y), y.mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(
    student: LlamaForCausalLM, labels: sl.LabelSet, records: list[int]
) -> dict[str, float]:
    """KD loss in nats a position, and the share of positions where both argmaxes agree."""
    student.eval()
    loss = agreed = positions = 0.0
    for batch in sl.loader(labels, batch_size=2, records=records):
        y = batch["soft_labels"]
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss += sl.losses.kl_divergence(logits, y).sum().item()
        agreed += (logits.argmax(-1) == y.sorted().ids[..., 0])[y.mask].sum().item()
        positions += y.mask.sum().item()
    student.train()
    return {"kd_loss": loss / positions, "agreement": agreed / positions}


def report(result: dict[str, Any]) -> None:
    table = Table(title=f"A student of {result['parameters'] / 1e6:.1f}M on held-out text")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    before, after = result["before"], result["after"]
    table.add_row("KD loss, nats", *(f"{x['kd_loss']:.3f}" for x in (before, after)))
    table.add_row("agrees with the teacher", *(f"{x['agreement']:.1%}" for x in (before, after)))
    Console().print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), width_ratios=(2, 1))
    left.plot(result["losses"], lw=1, color="tab:blue", label="training, one record a step")
    for name, style in (("before", ":"), ("after", "--")):
        value = result[name]["kd_loss"]
        left.axhline(value, color="tab:orange", ls=style, label=f"held out, {name}: {value:.2f}")
    left.set(xlabel="step", ylabel="KD loss, nats a position", title="KD loss", ylim=(0, None))
    left.legend(frameon=False)
    values = [100 * result[name]["agreement"] for name in ("before", "after")]
    bars = right.bar(["before", "after"], values, color=["tab:gray", "tab:blue"], width=0.6)
    right.bar_label(bars, fmt="%.1f %%")
    right.set(title="Agrees with the teacher", ylabel="% of held-out positions")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

"""Which labels make the better student? A grid over selections and seeds, one table, one figure.

    python pipelines/speeches.py
    python pipelines/students.py --text runs/speeches.jsonl --out runs/students
    python pipelines/students.py --text runs/speeches.jsonl --out runs/small --small-teacher

Every tenth text is held out, whole. Students of one seed begin with the same weights and see the
same positions in the same order; they differ in their labels alone. Run it again and it goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_teacher import make as make_small_teacher
from smollm2 import fetch as fetch_smollm2
from students_figure import draw, summary
from students_labels import label

import softlabels as sl
from softlabels.training import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    Trained,
    TrainRecipe,
    train,
)

DRAWN = LossRecipe(name="soft_cross_entropy")


@dataclass(frozen=True)
class Arm:
    """A way to label and to learn: which of the label sets, and the loss."""

    name: str
    labels: str
    loss: LossRecipe


ARMS = [
    Arm("hard labels alone", "top-64", LossRecipe(name="ce")),
    Arm("top 8", "top-8", LossRecipe()),
    Arm("top 32", "top-32", LossRecipe()),
    Arm("top 64", "top-64", LossRecipe()),
    Arm("top 12, renormalised", "top-64", LossRecipe(k=12, tail="renormalised")),
    Arm("top 64, renormalised", "top-64", LossRecipe(tail="renormalised")),
    Arm("drawn, bytes of top 8", "drawn-8", DRAWN),
    Arm("drawn, bytes of top 64", "drawn-64", DRAWN),
    Arm("12 drawn, counted", "counted-12", DRAWN),
]
DENSE = [
    Arm("all classes, few texts", "dense", LossRecipe()),
    Arm("hard labels alone, few texts", "dense-top-64", LossRecipe(name="ce")),
    Arm("top 64, few texts", "dense-top-64", LossRecipe()),
    Arm("drawn, bytes of top 64, few texts", "dense-drawn-64", DRAWN),
]


def main() -> None:
    args = parse()
    rows = [json.loads(line) for line in args.text.read_text().splitlines()]
    rows = [{"id": str(row["id"]), "text": row["text"]} for row in rows]
    held_out, training = rows[9::10], [row for n, row in enumerate(rows) if n % 10 != 9]
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [row["text"] for row in training]
    if args.small_teacher:
        folder = make_small_teacher(
            texts, args.out / "teacher", steps=args.teacher_steps, device=args.device
        )
    else:
        folder = fetch_smollm2()
    teacher = sl.teachers.pretrained(str(folder), device=args.device)
    sets = label(
        training, held_out, teacher, args.out,
        windows=args.windows, dense_windows=args.dense_windows,
    )  # fmt: skip
    runs = [(arm, seed) for arm in ARMS + DENSE for seed in range(args.seeds)]
    with ProcessPoolExecutor(
        args.jobs,
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(max(1, torch.get_num_threads() // args.jobs),),
    ) as pool:
        found = list(pool.map(run, runs, [sets] * len(runs), [args] * len(runs)))
    report(dict(zip(runs, found, strict=True)), sets, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="JSONL with columns id and text")
    parser.add_argument("--out", type=Path, required=True, help="label sets, runs and the results")
    parser.add_argument("--small-teacher", action="store_true", help="one that is trained here")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--windows", type=int, help="of 512 tokens that are labelled; default all")
    parser.add_argument("--dense-windows", type=int, default=40, help="with all classes kept")
    parser.add_argument("--size", default="tiny", help="of the student, see softlabels train")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8, help="windows in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="students that train at a time")
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def run(what: tuple[Arm, int], sets: dict[str, Path], args: Any) -> Trained:
    """One student; what is done already is read."""
    arm, seed = what
    recipe = TrainRecipe(
        student=StudentRecipe(size=args.size),
        loss=arm.loss,
        optimizer=OptimizerRecipe(lr=args.lr, weight_decay=0.1),
        data=DataRecipe(batch_size=args.batch_size),
        epochs=args.epochs * (4 if arm in DENSE else 1),
        seed=seed,
        device=args.device,
    )
    folder = args.out / "runs" / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    held_out = sl.LabelSet.open(sets["held-out"])
    return train(sets[arm.labels], recipe=recipe, out=folder, held_out=held_out, progress=False)


def report(found: dict[tuple[Arm, int], Trained], sets: dict[str, Path], args: Any) -> None:
    """The table on standard output, results.json and results.png."""
    lines = [
        summary(
            arm.name,
            sl.LabelSet.open(sets[arm.labels]),
            [trained for (its, _), trained in found.items() if its is arm],
        )
        for arm in ARMS + DENSE
    ]
    one = next(iter(found.values()))
    made = {"parameters": one.parameters, "seeds": args.seeds, "steps": one.steps, "arms": lines}
    made["teacher_cross_entropy"] = one.after.teacher_cross_entropy if one.after else None
    (args.out / "results.json").write_text(json.dumps(made, indent=2) + "\n")
    print(draw(made, args.out / "results.png"))


if __name__ == "__main__":
    main()

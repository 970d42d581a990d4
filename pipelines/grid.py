"""A grid over losses, k, temperatures, mixes with hard labels and seeds on one label set.

    python pipelines/grid.py runs/quickstart/labels --out runs/grid --loss kl reverse_kl --k 8 64
        --temperature 1 2 --hard-weight 0 0.5 --seeds 2

One table on standard output, results.json and results.png. Combinations that cannot be (a loss at a
temperature that it does not have) are left out and named. Run it again and it goes on; with more
values it trains only those that are new.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from students_figure import draw, summary

import softlabels as sl
from softlabels.training import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    TrainRecipe,
    train,
)
from softlabels.training.recipe import LossName


def main() -> None:
    args = parse()
    labels = sl.LabelSet.open(args.labels)
    losses = dict(recipes(args))
    if not losses:
        sys.exit("error: none of these combinations can be; see above")
    runs = list(product(losses, range(args.seeds)))
    found: dict[str, list[Any]] = {name: [] for name in losses}
    for name, seed in track(runs, "training students", console=Console(stderr=True)):
        recipe = TrainRecipe(
            student=StudentRecipe(size=args.size),
            loss=losses[name],
            optimizer=OptimizerRecipe(lr=args.lr),
            data=DataRecipe(batch_size=args.batch_size, held_out_every=5),
            epochs=args.epochs,
            seed=seed,
        )
        folder = args.out / "runs" / f"{name.replace(', ', '-').replace(' ', '')}-{seed}"
        found[name].append(train(labels, recipe=recipe, out=folder, progress=False))
    arms = [summary(name, labels, trained) for name, trained in found.items()]
    one = next(iter(found.values()))[0]
    made = {"parameters": one.parameters, "seeds": args.seeds, "steps": one.steps, "arms": arms}
    (args.out / "results.json").write_text(json.dumps(made, indent=2) + "\n")
    print(draw(made, args.out / "results.png"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", help="a label set that carries its inputs")
    parser.add_argument("--out", type=Path, required=True, help="runs and the results")
    parser.add_argument("--loss", nargs="+", default=["ce", "kl"], choices=get_args(LossName))
    parser.add_argument("--k", nargs="+", type=int, default=[None], help="all of the set's")
    parser.add_argument("--temperature", nargs="+", type=float, default=[1.0])
    parser.add_argument("--hard-weight", nargs="+", type=float, default=[0.0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", default="nano", help="of the student, see softlabels train")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3)
    return parser.parse_args()


def recipes(args: argparse.Namespace) -> Iterator[tuple[str, LossRecipe]]:
    """The losses by name; of hard labels alone there is one."""
    for loss, k, temperature, weight in product(
        args.loss, args.k, args.temperature, args.hard_weight
    ):
        if loss == "ce":
            yield "ce", LossRecipe(name="ce")
            continue
        name = f"{loss}, k = {k or 'all'}, T = {temperature:g}, hard {weight:g}"
        try:
            yield (
                name,
                LossRecipe(name=loss, k=k, temperature=temperature, hard_weight=weight),
            )
        except sl.errors.InputError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

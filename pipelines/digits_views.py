"""Which labels teach a student of digits best: gold ones, a teacher's, or those of stored views?

    python pipelines/digits_views.py [--seeds 3] [--views 32] [--steps 3000] [--limit N]

A teacher learns 1,200 digits with fresh views; it labels V stored views of each, once. Students get
40, 120 or 1,200 digits: with gold labels alone; with the teacher's labels of the digits as they
are; with stored views, replayed; with the same views and the teacher run beside the student. The
last two must come out equal to the last digit, and the run stops if they do not.
"""

from __future__ import annotations

import argparse
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import digits
import torch
from torch import nn

import softlabels as sl

GOLD, GOLD_OF_VIEWS, CLEAN = "gold labels", "gold labels of views", "clean soft labels"
STORED, ONLINE = "stored views", "online teacher"
ARMS = (GOLD, GOLD_OF_VIEWS, CLEAN, STORED, ONLINE)


def main() -> None:
    args = parse()
    learnt, test = digits.rows()
    torch.manual_seed(0)
    teacher = digits.Convolutions()
    teaching = digits.drawn(learnt, args.teacher_steps, seed=0)
    digits.fit(teacher, teaching, digits.hard).eval()
    print(f"the teacher tells {digits.accuracy(teacher, test):.3f} of {len(test)} other digits")
    views, out = digits.views(args.views), args.out
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    labels = sl.precompute(
        learnt[: args.limit], sl.teachers.from_callable(teacher, classes=10, takes="arrays"), out,
        column="image", key="id", label="label", views=views, codec="plain", progress=False,
    )  # fmt: skip
    totals = labels.totals
    print(
        f"{totals.records:,} views labelled in {time.perf_counter() - began:.1f} s, "
        f"{totals.bytes / totals.records:.0f} bytes each\n"
    )
    print(f"| digits | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}")
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for count in args.digits:
        found: dict[str, list[float]] = {arm: [] for arm in ARMS}
        chosen = digits.few(learnt[: args.limit], count)
        for seed in range(args.seeds):
            students = {}
            for arm in ARMS:
                began = time.perf_counter()
                students[arm] = run(arm, labels, chosen, teacher, views, seed, args.steps)
                seconds[arm].append(time.perf_counter() - began)
                found[arm].append(digits.accuracy(students[arm], test))
            check_equal(students[STORED], students[ONLINE])
        print(f"| {count} | {' | '.join(digits.spread(found[arm]) for arm in ARMS)} |", flush=True)
    mean = " | ".join(f"{sum(s) / len(s):.1f}" for s in seconds.values())
    print(f"| seconds a student | {mean} |")
    print("\nStored views and the online teacher made the same students, weight by weight.")


def run(
    arm: str, labels: sl.LabelSet, rows: Any, teacher: nn.Module, views: sl.Views, seed: int,
    count: int,
) -> nn.Module:  # fmt: skip
    """One student, which begins as all of its seed do."""
    records = None
    if arm in (GOLD, CLEAN):
        records = clean_records(labels, rows)
    loader = sl.loader(
        labels, rows, batch_size=min(digits.BATCH, len(rows)), seed=seed, records=records,
        views=views, on_missing="skip", parts="all" if records is not None else "one",
    )  # fmt: skip
    torch.manual_seed(seed)
    student, batches = digits.student(), digits.steps(loader, count)
    if arm == ONLINE:
        batches = map(partial(labelled_now, teacher=teacher), batches)
    loss = digits.hard if arm in (GOLD, GOLD_OF_VIEWS) else digits.soft
    return digits.fit(student, batches, loss)


def clean_records(labels: sl.LabelSet, rows: Any) -> list[int]:
    """The records of the digits as they are."""
    wanted = {row["id"] for row in rows}
    table = labels.columns(["key", "view"]).to_pylist()
    return [n for n, row in enumerate(table) if row["view"] == 0 and row["key"] in wanted]


def labelled_now(batch: digits.Batch, teacher: nn.Module) -> digits.Batch:
    """The batch with labels that the teacher gives now."""
    with torch.no_grad():
        logits = teacher(batch["inputs"])
    kept = sl.TopK(10)(logits, batch["label"], temperatures=(1.0, 2.0, 4.0))
    return batch | {"soft_labels": kept}


def check_equal(one: nn.Module, other: nn.Module) -> None:
    """Stop if two students differ in a single bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        raise SystemExit("stored views and the online teacher made different students")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits_views"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=32, help="of each digit")
    parser.add_argument("--steps", type=int, default=3000, help="of each student")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--digits", type=int, nargs="+", default=[40, 120, 1200])
    parser.add_argument("--limit", type=int, help="label only so many digits")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Sequence-level distillation: the teacher writes answers, and says of each token what it believed.

    python pipelines/sequence_level.py [--prompts 120] [--seeds 2] [--teacher FOLDER] [--limit N]

SmolLM2 answers questions about Python; a label set keeps its answers with its own probabilities of
every token. Students, each some layers of the teacher, learn from the answers as text (Kim and
Rush, "Sequence-level knowledge distillation", EMNLP 2016), from the probabilities, or from both.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from digits import spread
from smollm2 import fetch
from transformers import AutoTokenizer

import softlabels as sl
from softlabels.training import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    TrainRecipe,
    train,
)

ASKED = (
    "What does {} mean in Python? Answer in one sentence.",
    "Give a short example of {} in Python.",
    "When would a programmer use {} in Python?",
)
ARMS = {
    "the answers as text": LossRecipe(name="ce"),
    "the teacher's probabilities": LossRecipe(name="kl"),
    "both, half and half": LossRecipe(name="kl", hard_weight=0.5),
}


def main() -> None:
    args = parse()
    folder = args.teacher or fetch()
    rows = prompts(args.prompts)[: args.limit]
    shutil.rmtree(args.out, ignore_errors=True)
    began, sets = time.perf_counter(), {}
    for name, some in (("learnt", rows[len(rows) // 8 :]), ("test", rows[: len(rows) // 8])):
        sets[name] = sl.precompute(
            some, str(folder), args.out / name, column="messages", key="id", max_length=256,
            answers=sl.Answers(max_new_tokens=args.tokens), progress=False,
        )  # fmt: skip
    totals = sets["learnt"].totals
    print(
        f"{totals.positions:,} tokens of answers written and labelled in "
        f"{time.perf_counter() - began:.0f} s, {totals.bytes / totals.positions:.0f} bytes each; "
        f"the first one:\n> {first_answer(sets['learnt'], folder)!r}\n"
    )
    print("| learns from | KL to the teacher | agrees on the next token | seconds |\n|--|--|--|--|")
    for name, loss in ARMS.items():
        kls, shares, seconds = [], [], 0.0
        for seed in range(args.seeds):
            began = time.perf_counter()
            recipe = TrainRecipe(
                student=StudentRecipe(teacher=str(folder), layers=args.layers),
                loss=loss,
                optimizer=OptimizerRecipe(lr=args.lr),
                data=DataRecipe(batch_size=8),
                epochs=args.epochs,
                seed=seed,
                device="cpu",
            )
            out = args.out / f"{name.replace(' ', '-')}-{seed}"
            found = train(args.out / "learnt", recipe=recipe, out=out, held_out=sets["test"],
                          progress=False)  # fmt: skip
            seconds += time.perf_counter() - began
            assert found.before is not None
            assert found.after is not None
            if name == next(iter(ARMS)) and not seed:
                before = found.before
                print(
                    f"| nothing | {before.kl:.3f} | {before.top1_agreement:.3f} | 0 |", flush=True
                )
            kls.append(found.after.kl)
            shares.append(found.after.top1_agreement)
        mean = seconds / args.seeds
        print(f"| {name} | {spread(kls)} | {spread(shares)} | {mean:.0f} |", flush=True)


def prompts(count: int) -> list[dict[str, Any]]:
    """Questions about what Python's own help has pages for, as chats."""
    names = [name.replace("-", " ") for name in sorted(topics)]
    asked = [ask.format(name) for ask in ASKED for name in names][:count]
    return [
        {"id": number, "messages": [{"role": "user", "content": text}]}
        for number, text in enumerate(asked)
    ]


def first_answer(labels: sl.LabelSet, folder: Path) -> str:
    """What the teacher wrote, as text."""
    records = labels.take([0])
    assert records.token_ids is not None
    (predicted,) = records.wanted.nonzero()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.decode(records.token_ids[predicted + 1], skip_special_tokens=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sequence_level"))
    parser.add_argument("--teacher", type=Path, help="a folder; SmolLM2 by default")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--layers", type=int, default=4, help="of the teacher's, in a student")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only so many prompts")
    return parser.parse_args()


if __name__ == "__main__":
    main()

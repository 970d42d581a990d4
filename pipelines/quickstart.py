"""The whole story in one run: label real text with a real teacher, then train a student without it.

    python pipelines/quickstart.py --tokens 12000 --k 64 --out runs/quickstart

The teacher is SmolLM2-135M-Instruct; the text is the language reference that every CPython
carries. Run it again and it finds what is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

from opened import watch
from smollm2 import fetch

SOFTLABELS = Path(sys.executable).with_name("softlabels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=12_000, help="how much text is labelled")
    parser.add_argument("--k", type=int, default=64, help="classes kept at every position")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    args = parser.parse_args()
    began = time.perf_counter()

    step("1. A teacher: SmolLM2-135M-Instruct, 135 million parameters, 49,152 classes")
    teacher = fetch()
    print(near(teacher))

    step(f"2. Text: about {args.tokens:,} tokens of the Python language reference")
    text, labels = args.out / "text.jsonl", args.out / "labels"
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(text, teacher, tokens=args.tokens)

    step("3. Label it: the teacher runs once")
    softlabels(
        "precompute", "--teacher", teacher, "--data", text, "--out", labels,
        "--key", "id", "--k", args.k, "--unit-rows", 4,
    )  # fmt: skip
    softlabels("info", labels)
    softlabels("verify", labels)
    softlabels("show", labels, "--positions", 8, "--top", 4)

    step("4. Train a student from the labels, in a process that never opens the teacher")
    script, student = Path(__file__).with_name("train_student.py"), args.out / "student"
    with watch(teacher / "model.safetensors") as opened:
        run(Path(sys.executable), script, labels, "--out", student, "--keep-closed", teacher)
    if any(opened):
        sys.exit("error: the teacher's weights were opened while the student trained")
    print("the teacher's weights stayed closed" + (" (watched by inotify)" if opened else ""))

    step(f"5. Made in {time.perf_counter() - began:.0f} s")
    for path, what in (
        (labels, "the label set: load it with softlabels, or with datasets alone"),
        (student / "model", "the student, as transformers loads it"),
        (student / "metrics.png", "its loss, and how often it agrees"),
        (student / "metrics.jsonl", "the same in numbers"),
    ):
        print(f"{path!s:<38} {what}")
    print(
        "\nnext: look at any sample\n"
        f"    {near(SOFTLABELS)} show {labels} {first_key(text)}\n"
        "or label four times as much; the student improves most from more text:\n"
        f"    {near(sys.executable)} {near(__file__)} --tokens {4 * args.tokens} "
        f"--out {args.out.with_name(args.out.name + '-4x')}"
    )


def write_text(path: Path, teacher: Path, *, tokens: int) -> None:
    """Whole topics as rows {id, text}, in an order that is mixed but always the same."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows, total = [], 0
    for name in sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest()):
        length = len(tokenizer(topics[name], verbose=False)["input_ids"])
        # A topic that is most of the text would leave too few others to hold out.
        if length <= tokens // 4 and total + length <= tokens:
            rows.append({"id": name, "text": topics[name]})
            total += length
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} topics, {total:,} tokens: {path}")


def first_key(path: Path) -> str:
    with path.open() as file:
        return str(json.loads(file.readline())["id"])


def softlabels(*arguments: object) -> None:
    run(SOFTLABELS, *arguments)


def run(*command: object) -> None:
    """Show a command as a person would type it, and run it."""
    words = [near(word) if isinstance(word, Path) else str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    if code := subprocess.run(words).returncode:
        sys.exit(code)


def near(path: Path | str) -> str:
    """A path from here, so that commands can be copied."""
    return os.path.relpath(path)


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main()

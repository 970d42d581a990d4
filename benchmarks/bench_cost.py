"""What does a student's step cost from stored labels, beside cross-entropy and a live teacher?

    python benchmarks/bench_cost.py [--quick] [--steps 15] [--device cuda] [--teacher FOLDER]

A Llama of about 10 million parameters on V = 49,152 takes whole steps: loading, forward, loss,
backward, AdamW. The teacher has the shape of SmolLM2-135M and random weights, or is a causal LM's
FOLDER, as `python pipelines/smollm2.py` makes one. It labels every token once with
`sl.precompute`, which is timed; live, it runs within each step, its dense KL in plain torch.
Losses are compared with dense ones first. The peak is what resident memory, or what is allocated
on a device, rises by in a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from bench_losses import dense_kl
from timing import interleaved, machine, markdown, peak_extra_bytes
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import softlabels as sl

TEACHER = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
           "num_attention_heads": 9, "num_key_value_heads": 3}  # fmt: skip
CE, OUR_CE = "cross-entropy (torch)", "cross-entropy (linear_kl_divergence)"
STORED, LIVE = "KD from the set", "KD, teacher in the loop"


def main() -> None:
    args = parsed()
    teacher = teacher_of(args)
    student = llama(
        args.classes, hidden_size=args.width, intermediate_size=3 * args.width,
        num_hidden_layers=args.layers, num_attention_heads=args.width // 32,
        num_key_value_heads=args.width // 32,
    ).to(args.device, args.dtype)  # fmt: skip
    rows = rows_of(args)
    with tempfile.TemporaryDirectory() as folder:
        began = args.clock()
        labels = sl.precompute(
            rows, teacher, Path(folder) / "labels", selection=sl.TopK(args.k), column="ids",
            key="id", max_length=args.length, codec="compact", progress=False,
        )  # fmt: skip
        labelling = args.clock() - began
        steps = Steps(student, teacher, labels, args)
        check(student, teacher, steps, args)
        seconds = {
            name: taken.cpu if args.cpu_seconds else taken.wall
            for name, taken in interleaved(steps.all, runs=args.steps).items()
        }
        peaks = {
            name: peak_extra_bytes(step, device=args.device) for name, step in steps.all.items()
        }
    report(args, student, teacher, seconds, peaks, wait=statistics.median(steps.waits))
    even(seconds, labelling, tokens=len(rows) * args.length, step=args.batch * args.length)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a teacher of 4 layers, short steps")
    parser.add_argument("--steps", type=int, help="of each kind that are timed: 15, or 3")
    parser.add_argument("--cpu-seconds", action="store_true", help="for a machine with other work")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--teacher", type=Path, help="folder of a causal LM")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--width", type=int, default=160, help="of the student, a multiple of 32")
    parser.add_argument("--layers", type=int, default=6, help="of the student")
    parser.add_argument("--batch", type=int, help="records of a step: 2, or 16 on a device")
    parser.add_argument("--length", type=int, help="tokens of a record: 256, or 1,024 on a device")
    parser.add_argument("--records", type=int, help="that are labelled: 24, or 256 on a device")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    args.dtype = torch.float32 if on_cpu else torch.bfloat16
    args.steps = args.steps or (3 if args.quick else 15)
    args.length = args.length or (64 if args.quick else 256 if on_cpu else 1024)
    args.batch = args.batch or (2 if on_cpu or args.quick else 16)
    args.records = args.records or (8 if args.quick else 24 if on_cpu else 256)
    args.clock = time.process_time if args.cpu_seconds else time.perf_counter
    args.classes = 49_152
    if args.teacher is not None:
        args.classes = json.loads((args.teacher / "config.json").read_text())["vocab_size"]
    return args


def teacher_of(args: argparse.Namespace) -> Any:
    if args.teacher is not None:
        model = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=args.dtype)
    else:
        shape = TEACHER | ({"num_hidden_layers": 4} if args.quick else {})
        # Logits of some spread: at the usual .02 all classes are nearly alike.
        model = llama(args.classes, initializer_range=0.1, **shape).to(args.dtype)
    return model.to(args.device).eval()


def llama(classes: int, **shape: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=classes, tie_word_embeddings=True, **shape))


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of equal length: drawn tokens, or text where the teacher has read some."""
    count = args.records * args.length
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(args.classes, (count,), generator=generator)
    if args.teacher is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.teacher)
        text = "\n\n".join(topics[name] for name in sorted(topics))
        found = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
        tokens = found.repeat(-(-count // len(found)))[:count]
    return [{"id": n, "ids": ids.tolist()} for n, ids in enumerate(tokens.split(args.length))]


@dataclass
class Steps:
    """Whole training steps of one student, by what they learn from."""

    student: Any
    teacher: Any
    labels: sl.LabelSet
    args: argparse.Namespace
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.student.parameters(), 1e-4)
        loader = sl.loader(
            self.labels, batch_size=self.args.batch, seed=0, device=self.args.device,
            drop_last=True,
        )  # fmt: skip
        self.batches = chain.from_iterable(repeat(loader))
        self.kept = next(self.batches)
        hard = sl.losses.next_tokens(self.kept["input_ids"], self.kept["attention_mask"])
        self.losses = {
            CE: lambda: cross_entropy(self.student, self.kept, hard),
            OUR_CE: lambda: our_cross_entropy(self.student, self.kept, hard),
            STORED: lambda: stored_kl(self.student, self.following()),
            LIVE: lambda: live_kl(self.student, self.teacher, self.kept),
        }

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        return {name: self.whole(loss) for name, loss in self.losses.items()}

    def following(self) -> dict[str, Any]:
        """The loader's next batch; only this step does not have its inputs at hand."""
        began = self.args.clock()
        batch = next(self.batches)
        self.waits.append(self.args.clock() - began)
        return batch

    def whole(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.args.device != "cpu":
                torch.cuda.synchronize()

        return step


def cross_entropy(student: Any, batch: dict[str, Any], hard: Tensor) -> Tensor:
    logits = student(input_ids=batch["input_ids"]).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), hard.flatten())


def our_cross_entropy(student: Any, batch: dict[str, Any], hard: Tensor) -> Tensor:
    hidden = student.model(input_ids=batch["input_ids"]).last_hidden_state
    made = {"device": hard.device}
    nothing = sl.SoftLabels(
        ids=torch.zeros(*hard.shape, 1, dtype=torch.int64, **made),
        log_probs=torch.zeros(*hard.shape, 1, **made),
        mask=torch.zeros(hard.shape, dtype=torch.bool, **made),
    )
    found = sl.losses.linear_kl_divergence(
        hidden, student.lm_head.weight, nothing, hard_labels=hard, hard_weight=1.0
    )
    return sl.losses.reduce(found, hard != -100)


def stored_kl(student: Any, batch: dict[str, Any]) -> Tensor:
    y = batch["soft_labels"]
    hidden = student.model(input_ids=batch["input_ids"]).last_hidden_state
    found = sl.losses.linear_kl_divergence(hidden, student.lm_head.weight, y)
    return sl.losses.reduce(found, y.mask)


def live_kl(student: Any, teacher: Any, batch: dict[str, Any]) -> Tensor:
    """The usual way: all logits of both."""
    with torch.no_grad():
        log_p = torch.log_softmax(teacher(input_ids=batch["input_ids"]).logits.float(), -1)
    return dense_kl(student(input_ids=batch["input_ids"]).logits.float(), log_p).mean()


@torch.no_grad()
def check(student: Any, teacher: Any, steps: Steps, args: argparse.Namespace) -> None:
    """Every loss against one in float64 from the teacher's logits, which are all there."""
    batch = steps.kept
    y, ids = batch["soft_labels"], batch["input_ids"]
    logits = student(input_ids=ids).logits.double()
    log_q = torch.log_softmax(logits, -1)
    log_p = torch.log_softmax(teacher(input_ids=ids).logits.double(), -1)
    kept, rest = [], []
    for log in (log_p, log_q):
        kept.append(log.gather(-1, y.ids))
        rest.append(log.scatter(-1, y.ids, -torch.inf).logsumexp(-1))
    buckets = (kept[0].exp() * (kept[0] - kept[1])).sum(-1) + rest[0].exp() * (rest[0] - rest[1])
    hard = sl.losses.next_tokens(ids, batch["attention_mask"])
    ce = functional.nll_loss(log_q.flatten(0, 1), hard.flatten())
    narrow = args.dtype != torch.float32
    # The set is compact: 1.2e-4 nats of KL, and some 1e-3 of a loss.
    pairs = {
        CE: (cross_entropy(student, batch, hard), ce, 1e-4),
        OUR_CE: (our_cross_entropy(student, batch, hard), ce, 1e-4),
        STORED: (stored_kl(student, batch), buckets.mean(), 1e-2),
        LIVE: (live_kl(student, teacher, batch), dense_kl(logits, log_p).mean(), 1e-3),
    }
    for name, (found, wanted, tolerance) in pairs.items():
        off = abs(found.item() - wanted.item())
        if not off <= (max(tolerance, 2e-2) if narrow else tolerance):
            raise SystemExit(f"{name}: {found.item():.6f}, the dense one in float64 {wanted:.6f}")
        print(f"{name}: {found.item():.4f} nats, off by {off:.0e}")


def report(
    args: argparse.Namespace,
    student: Any,
    teacher: Any,
    seconds: dict[str, float],
    peaks: dict[str, int],
    *,
    wait: float,
) -> None:
    if args.device != "cpu":
        print(torch.cuda.get_device_name(args.device), end="; ")
    print(machine())
    print(
        f"\nStudent {student.num_parameters() / 1e6:.1f}M, teacher "
        f"{teacher.num_parameters() / 1e6:.0f}M, V = {args.classes:,}, k = {args.k}, "
        f"{args.batch} × {args.length:,} tokens a step, {str(args.dtype).removeprefix('torch.')}, "
        f"medians of {args.steps}"
        f"{', CPU seconds' if args.cpu_seconds else ''}\n"
    )
    beside = sum(p.numel() * p.element_size() for p in teacher.parameters()) / 2**20
    rows = [
        [
            name,
            f"{1e3 * taken:,.0f}",
            f"{taken / seconds[CE]:.2f}",
            f"{seconds[LIVE] / taken:.1f}",
            f"{peaks[name] / 2**20:,.0f}" + (f" + {beside:,.0f}" if name == LIVE else ""),
        ]
        for name, taken in seconds.items()
    ]
    print(markdown(["a step", "ms", "/ CE", "live / it", "peak MiB, + teacher"], rows))
    print(f"\nWaiting for the loader: {1e3 * wait:.2f} ms a step, {wait / seconds[STORED]:.1%}")


def even(seconds: dict[str, float], labelling: float, *, tokens: int, step: int) -> None:
    """After how many students, of one epoch each, labelling has paid for itself."""
    a_token = {name: seconds[name] / step for name in (STORED, LIVE)}
    saved = (a_token[LIVE] - a_token[STORED]) * tokens
    rows = [
        ["labelling, everything", f"{labelling:,.1f}"],
        ["a student with the teacher in the loop", f"{a_token[LIVE] * tokens:,.1f}"],
        ["a student from the set", f"{a_token[STORED] * tokens:,.1f}"],
    ]
    print("\n" + markdown([f"an epoch of {tokens:,} tokens", "seconds"], rows))
    print(f"\nLabelling has paid for itself after {labelling / saved:.2f} students of one epoch")


if __name__ == "__main__":
    main()

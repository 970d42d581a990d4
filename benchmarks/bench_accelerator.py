"""What do labelling with a large teacher, and unpacking its labels, cost on an accelerator?

    python benchmarks/bench_accelerator.py [label] [unpack] [--quick] [--device cuda]

label: a Llama of the shape of Llama-3.1-8B with random weights in bfloat16 labels records of 512
random tokens, k = 64 at T = 1, 2 and 4. The job reads, labels, encodes, writes and checks, its plan
made before; the teacher alone runs the same batches, its head over the same chunks of rows, and
keeps nothing. Both in turn, of one unit and of many: what a further unit costs leaves out what a
job does once, as writing its last unit while no teacher is at work.

unpack: positions a second of `LabelSet.take`, on the CPU and on the device, from records in random
order that are in memory, checksums checked.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from timing import interleaved, machine, markdown
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import softlabels as sl
from softlabels.format import layout
from softlabels.inputs.prepare import prepare
from softlabels.precomputing.batches import bucketed, padded
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.tasks import TASKS
from softlabels.teachers.transformers import CausalLM

K, LENGTH = 64, 512
# Of Llama-3.1-8B.
SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
SMALL = {**SHAPE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["label", "unpack"])
    parser.add_argument("--quick", action="store_true", help="a small teacher, one pair")
    parser.add_argument("--pairs", type=int, default=3, help="runs of the job and of the teacher")
    parser.add_argument("--units", type=int, default=12, help="of the longer job")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device != "cpu":
        print(torch.cuda.get_device_name(args.device), end="; ")
    print(machine(), f"transformers {transformers.__version__}")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if "label" in args.parts:
            label(Path(folder), args)
        if "unpack" in args.parts:
            unpack(Path(folder), args)


class Random(CausalLM):
    """A model known by its seed: nobody waits for a digest of 16 GB."""

    @cached_property
    def identity(self) -> TeacherIdentity:
        return TeacherIdentity(
            name="random Llama",
            revision="seed 0",
            weights=None,
            dtype="bfloat16",
            engine="transformers",
            engine_version=transformers.__version__,
            classes=self.classes,
        )


def random_llama(shape: dict[str, int], device: str) -> Random:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        # Logits of deviation 3 or so, as a trained model's, and not of 1.
        model.lm_head.weight.mul_(3 / (0.02 * shape["hidden_size"] ** 0.5))
    return Random(model, task=TASKS["causal_lm"])


def label(root: Path, args: argparse.Namespace) -> None:
    shape, unit, pairs = (SMALL, 8, 1) if args.quick else (SHAPE, 128, args.pairs)
    units = 3 if args.quick else args.units
    teacher = random_llama(shape, args.device)
    few, many = unit, units * unit
    tokens = np.random.default_rng(0).integers(shape["vocab_size"], size=(many, LENGTH))
    rows = [{"id": f"{i}", "ids": ids.tolist()} for i, ids in enumerate(tokens)]
    job = partial(
        sl.precompute, teacher=teacher, column="ids", key="id", selection=sl.TopK(K),
        max_length=LENGTH, unit_rows=unit, batch_tokens=1024 if args.quick else 8192,
        progress=False,
    )  # fmt: skip
    made = job(rows[:few], out=root / "first")
    batches = list(batches_of(made, tokens, unit))
    check(made, teacher, *batches[0])
    of_few = [inputs for records, inputs in batches if records.max() < few]
    contestants = {
        "the teacher": partial(bare, teacher, of_few),
        "the job": partial(again, job, rows[:few], root),
        "the teacher, many units": partial(bare, teacher, [inputs for _, inputs in batches]),
        "the job, many units": partial(again, job, rows, root),
    }
    for name in ("the teacher", "the job"):
        contestants[name]()
    taken = interleaved(contestants, runs=pairs, warm=False)
    alone, whole, alone_of_many, whole_of_many = (np.array(of.walls) for of in taken.values())
    further = (
        (alone_of_many - alone) / (units - 1),
        (whole_of_many - whole) / (units - 1),
    )
    table = [
        line("one unit", unit * LENGTH, alone, whole),
        line(f"{units} units", many * LENGTH, alone_of_many, whole_of_many),
        line("a further unit", unit * LENGTH, *further),
    ]
    print(
        f"\nUnits of {unit} records of {LENGTH} tokens, {made.plan.batch_tokens:,} a batch; "
        f"{made.totals.bytes / made.totals.positions:.0f} bytes a position; {pairs} pairs\n"
    )
    header = ["", "the teacher alone, tokens/s", "the job, tokens/s", "times the teacher"]
    print(markdown(header, table))


def line(name: str, tokens: int, alone: np.ndarray, whole: np.ndarray) -> list[str]:
    rates = [f"{tokens / np.median(seconds):,.0f}" for seconds in (alone, whole)]
    return [name, *rates, f"{np.median(whole / alone):.3f}"]


def batches_of(
    labels: sl.LabelSet, tokens: np.ndarray, unit: int
) -> Iterator[tuple[np.ndarray, tuple[Tensor, Tensor, Tensor]]]:
    """The records of every batch and what the teacher is given."""
    plan = labels.plan
    for start in range(0, len(tokens), unit):
        column = pa.chunked_array([pa.array(list(tokens[start : start + unit]))])
        windows = prepare(column, plan.preparation, tokenizer=None, classes=plan.teacher.classes)
        for records in bucketed(windows.lengths, plan.batch_tokens):
            yield start + records, padded(windows, records)


def check(labels: sl.LabelSet, teacher: Random, records: np.ndarray, inputs: Any) -> None:
    """The first batch's labels against the same logits, dense: a set's values, and its KL."""
    input_ids, wanted, padding = inputs
    dense = torch.cat(list(teacher.logits(input_ids, wanted, padding=padding))).float().cpu()
    found = labels.take(records).labels
    values = torch.gather(dense, -1, found.ids).sort(-1, descending=True).values
    if not torch.equal(values, dense.topk(K, -1).values):
        raise SystemExit("other classes are kept than the largest")
    exact = dense.log_softmax(-1).gather(-1, found.ids)
    kl = (exact.exp() * (exact - found.log_probs)).sum(-1)
    if not float(kl.abs().max()) < 1e-2:
        raise SystemExit(f"kept log-probs are off by a KL of {float(kl.abs().max()):.1e}")


def bare(teacher: Random, batches: list[Any]) -> None:
    for input_ids, wanted, padding in batches:
        for _ in teacher.logits(input_ids, wanted, padding=padding):
            pass
    finish(teacher.device)


def again(job: Callable[..., sl.LabelSet], rows: list[dict[str, Any]], root: Path) -> None:
    """The job into a new folder that holds the plan."""
    out = root / "again"
    out.mkdir()
    shutil.copy(root / "first" / layout.PLAN, out)
    job(rows, out=out)
    shutil.rmtree(out)


class Peaked(torch.nn.Module):
    """Logits as of a language model: some classes are frequent, and a few lead at a position."""

    name, version, classes = "peaked", "1", 49_152

    def __init__(self, device: str) -> None:
        super().__init__()
        frequent = -1.2 * torch.arange(1.0, self.classes + 1).log()
        self.frequent = torch.nn.Parameter(frequent.to(device), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        generator = torch.Generator(ids.device).manual_seed(int(ids[0, 0]))
        logits = torch.randn(*ids.shape, self.classes, device=ids.device, generator=generator)
        return logits.mul_(2).add_(self.frequent)


def unpack(root: Path, args: argparse.Namespace) -> None:
    records, rounds = (16, 1) if args.quick else (200, 3)
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"{i}", "ids": ids.tolist()}
        for i, ids in enumerate(generator.integers(49_152, size=(records, LENGTH)))
    ]
    labels = sl.precompute(
        rows, sl.teachers.from_callable(Peaked(args.device)), root / "peaked", column="ids",
        key="id", selection=sl.TopK(K), batch_tokens=2048, progress=False,
    )  # fmt: skip
    order = [generator.permutation(records) for _ in range(rounds)]
    table = []
    for size in (8, 32):
        numbers = [
            part for whole in order for part in np.array_split(whole, max(1, records // size))
        ]
        rates = {}
        for name, to in ways(args.device).items():
            same(to(labels, numbers[0]), labels.take(numbers[0]).labels)
            began = time.perf_counter()
            for part in numbers:
                to(labels, part)
            finish(torch.device(args.device))
            rates[name] = rounds * labels.totals.positions / (time.perf_counter() - began)
        table.append([f"{size} records of {LENGTH}", *(f"{rate:,.0f}" for rate in rates.values())])
    print(f"\n{labels.totals.positions:,} positions, positions a second of take()\n")
    print(markdown(["at a time", *ways(args.device)], table))


def ways(device: str) -> dict[str, Callable[[sl.LabelSet, np.ndarray], sl.SoftLabels]]:
    return {
        "to the CPU": lambda labels, part: labels.take(part).labels,
        "to the CPU, then copied": lambda labels, part: labels.take(part).labels.to(device),
        "unpacked on the device": lambda labels, part: labels.take(part, device=device).labels,
    }


def same(found: sl.SoftLabels, expected: sl.SoftLabels) -> None:
    if not torch.equal(found.ids.cpu(), expected.ids):
        raise SystemExit("other ids on the device")
    torch.testing.assert_close(found.log_probs.cpu(), expected.log_probs, rtol=0, atol=1e-6)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

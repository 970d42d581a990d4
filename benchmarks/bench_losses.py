"""What does training from a label set cost, beside cross-entropy and the dense KL?

    python benchmarks/bench_losses.py [--quick]

Forward and backward of one batch of float32 logits, whose gradient is made anew each time. The
peak is what resident memory rises by above the logits, their gradient included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import interleaved_medians, machine, markdown, peak_extra_bytes
from torch import Tensor
from torch.nn import functional

import softlabels as sl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small batch, three runs")
    parser.add_argument("--k", type=int, default=64)
    args = parser.parse_args()
    positions, classes, runs = (64, 8_192, 3) if args.quick else (1024, 49_152, 7)

    torch.manual_seed(0)
    teacher = torch.randn(positions, classes).mul_(3)
    student = torch.randn(positions, classes).requires_grad_()
    hard = torch.randint(classes, (positions,))
    labels = sl.TopK(args.k)(teacher, hard, temperatures=(1.0,))
    check(positions=16, classes=256)

    dense = torch.log_softmax(teacher, -1)
    steps = {
        "cross-entropy (torch)": lambda: functional.cross_entropy(student, hard),
        "dense KL (torch)": lambda: dense_kl(student, dense).mean(),
        "losses.cross_entropy": lambda: sl.losses.reduce(sl.losses.cross_entropy(student, hard)),
        "losses.kl_divergence": lambda: sl.losses.reduce(sl.losses.kl_divergence(student, labels)),
    }
    contestants = {name: both_ways(loss, student) for name, loss in steps.items()}
    seconds = interleaved_medians(contestants, runs=runs)
    peaks = {name: peak_extra_bytes(run) for name, run in contestants.items()}
    baseline = seconds["cross-entropy (torch)"]
    rows = [
        [name, f"{1e3 * taken:.0f}", f"{taken / baseline:.2f}", f"{peaks[name] / 2**20:.0f}"]
        for name, taken in seconds.items()
    ]
    print(f"{positions:,} × {classes:,} float32, k = {args.k}. {machine()}\n")
    print(markdown(["forward + backward", "ms", "ratio", "peak MiB"], rows))


def both_ways(loss: Callable[[], Tensor], student: Tensor) -> Callable[[], None]:
    def run() -> None:
        student.grad = None
        loss().backward()
        student.grad = None

    return run


def dense_kl(student: Tensor, log_p: Tensor) -> Tensor:
    log_q = torch.log_softmax(student, -1)
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def check(*, positions: int, classes: int) -> None:
    """In float64, with every class kept, ours is the dense KL; its gradient too."""
    teacher = torch.randn(positions, classes).mul_(3)
    hard = torch.randint(classes, (positions,))
    labels = sl.TopK(classes)(teacher, hard, temperatures=(1.0,))
    student = torch.randn(positions, classes, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(teacher.double(), -1)
    pairs = [
        (sl.losses.kl_divergence(student, labels), dense_kl(student, log_p)),
        (
            sl.losses.cross_entropy(student, hard),
            functional.cross_entropy(student, hard, reduction="none"),
        ),
    ]
    for ours, theirs in pairs:
        # The labels are float32.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main()

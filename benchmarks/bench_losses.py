"""What does training from a label set cost, beside cross-entropy and the dense KL?

    python benchmarks/bench_losses.py [--quick] [--device cuda]

Forward and backward of one batch, from logits and from hidden states with their head, the gradients
made anew each time; ratios are to what cross-entropy took in the same turn. The peak is what
resident memory, or what is allocated on a device, rises by above the inputs, gradients included.
Liger's kernels stand beside where they are installed and run;
its JSD makes the teacher's logits too, from hidden states of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import interleaved, machine, markdown, peak_extra_bytes
from torch import Tensor
from torch.nn import functional

import softlabels as sl
from softlabels.labels import concatenate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small batches, three runs")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    check(positions=16, classes=256)
    check_linear()
    if args.device != "cpu":
        check_narrow(args.device)
        print(torch.cuda.get_device_name(args.device), end="; ")
    print(machine())
    of_logits(args)
    of_hidden_states(args)


def of_logits(args: argparse.Namespace) -> None:
    """From logits that are there."""
    positions, classes, runs = (64, 8_192, 3) if args.quick else (1024, 49_152, 7)
    teacher = torch.randn(positions, classes).mul_(3)
    student = torch.randn(positions, classes, device=args.device).requires_grad_()
    hard = torch.randint(classes, (positions,))
    labels = sl.TopK(args.k)(teacher, hard, temperatures=(1.0,)).to(args.device)
    dense, hard = torch.log_softmax(teacher, -1).to(args.device), hard.to(args.device)
    steps = {
        "cross-entropy (torch)": lambda: functional.cross_entropy(student, hard),
        "dense KL (torch)": lambda: dense_kl(student, dense).mean(),
        "losses.cross_entropy": lambda: sl.losses.reduce(sl.losses.cross_entropy(student, hard)),
    }
    for name in ("kl_divergence", "reverse_kl_divergence", "js_divergence", "total_variation"):
        steps[f"losses.{name}"] = partial(reduced, getattr(sl.losses, name), student, labels)
    print(f"\nFrom logits: {positions:,} × {classes:,} float32, k = {args.k}\n")
    report(steps, [student], runs=runs)


def of_hidden_states(args: argparse.Namespace) -> None:
    """From the head's input, the head's own product and its gradient included."""
    positions, width, classes, runs = (256, 64, 8_192, 3) if args.quick else (2048, 576, 49_152, 9)
    dtype = torch.float32
    if args.device != "cpu":
        dtype = torch.bfloat16
        if not args.quick:
            positions, width, classes = 8192, 4096, 128_256
    made = {"device": args.device, "dtype": dtype}
    hidden = torch.randn(positions, width, **made).requires_grad_()
    head = (torch.randn(classes, width, **made) / width**0.5).requires_grad_()
    hard = torch.randint(classes, (positions,), device=args.device)
    dense, labels = teacher_of(positions, classes, args)
    linear = sl.losses.linear_kl_divergence
    steps = {
        "cross-entropy (torch)": lambda: functional.cross_entropy((hidden @ head.T).float(), hard),
        "dense KL (torch)": lambda: dense_kl((hidden @ head.T).float(), dense).mean(),
        "kl_divergence of logits": lambda: reduced(
            sl.losses.kl_divergence, hidden @ head.T, labels
        ),
        "linear_kl_divergence": lambda: linear(hidden, head, labels).mean(),
        "the same with cross-entropy": lambda: linear(
            hidden, head, labels, hard_labels=hard, hard_weight=0.1
        ).mean(),
    }
    steps |= liger_steps(hidden, head, hard)
    shown = f"{positions:,} × {width:,} × {classes:,} {str(dtype).removeprefix('torch.')}"
    print(f"\nFrom hidden states: {shown}, k = {args.k}\n")
    report(steps, [hidden, head], runs=runs)


def teacher_of(
    positions: int, classes: int, args: argparse.Namespace
) -> tuple[Tensor, sl.SoftLabels]:
    """Log-probs of random logits, and labels of them, made a few rows at a time."""
    dense = torch.empty(positions, classes, device=args.device)
    parts = []
    for rows in dense.split(256):
        teacher = torch.randn(rows.shape, device=args.device).mul_(3)
        hard = torch.randint(classes, (len(rows),), device=args.device)
        parts.append(sl.TopK(args.k)(teacher, hard, temperatures=(1.0,)))
        torch.log_softmax(teacher, -1, out=rows)
    return dense, concatenate(parts)


def reduced(loss: Callable[..., Tensor], logits: Tensor, labels: sl.SoftLabels) -> Tensor:
    return sl.losses.reduce(loss(logits, labels))


def liger_steps(hidden: Tensor, head: Tensor, hard: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Liger's chunked losses, where it is installed and runs."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

        ce, jsd = LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearJSD()
        others, other_head = (
            torch.randn_like(hidden),
            torch.randn_like(head) / hidden.shape[1] ** 0.5,
        )
        steps: dict[str, Callable[[], Tensor]] = {
            "cross-entropy (Liger)": lambda: ce(head, hidden, hard),
            "JSD, dense teacher (Liger)": lambda: jsd(hidden, head, others, other_head, hard),
        }
        for step in steps.values():
            step()
    except Exception as error:
        print(f"Liger is left out: {type(error).__name__}: {error}")
        return {}
    return steps


def report(steps: dict[str, Callable[[], Tensor]], inputs: list[Tensor], *, runs: int) -> None:
    contestants = {name: both_ways(loss, inputs) for name, loss in steps.items()}
    taken = interleaved(contestants, runs=runs)
    device = inputs[0].device
    peaks = {name: peak_extra_bytes(run, device=device) for name, run in contestants.items()}
    first = next(iter(steps))
    rows = [
        [
            name,
            f"{1e3 * of.wall:.0f}",
            f"{of.over(taken[first]):.2f}",
            f"{1e3 * of.cpu:.0f}",
            f"{of.cpu_over(taken[first]):.2f}",
            f"{peaks[name] / 2**20:.0f}",
            f"{peaks[name] / max(1, peaks[first]):.2f}",
        ]
        for name, of in taken.items()
    ]
    head = ["forward + backward", "ms", "ratio", "CPU ms", "ratio", "peak MiB", "ratio"]
    print(markdown(head, rows))


def both_ways(loss: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        loss().backward()
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        for tensor in inputs:
            tensor.grad = None

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


def check_linear() -> None:
    """In float64, ours from hidden states is ours from logits; its gradients too."""
    hidden = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    head = torch.randn(256, 8, dtype=torch.float64, requires_grad=True)
    hard = torch.randint(256, (32,))
    labels = sl.TopK(16)(torch.randn(32, 256).mul_(3), hard, temperatures=(1.0,))
    ours = sl.losses.linear_kl_divergence(hidden, head, labels, chunk_rows=7)
    theirs = sl.losses.kl_divergence(hidden @ head.T, labels)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        *(torch.autograd.grad(loss.mean(), (hidden, head)) for loss in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other)


def check_narrow(device: str) -> None:
    """On a device, ours in float32 and from bfloat16 hidden states is ours in float64."""
    hidden, head = torch.randn(300, 64, device=device), torch.randn(5_000, 64, device=device) / 8
    hidden, head = (t.bfloat16().requires_grad_() for t in (hidden, head))
    hard = torch.randint(5_000, (300,), device=device)
    teacher = torch.randn(300, 5_000, device=device).mul_(3)
    labels = sl.TopK(16)(teacher, hard, temperatures=(1.0, 2.0))
    for temperature in (1.0, 2.0):
        options = {"temperature": temperature, "tail": "rest"}
        linear = sl.losses.linear_kl_divergence(hidden, head, labels, chunk_rows=128, **options)
        logits = hidden @ head.T
        wide, exact = logits.float(), logits.double()
        ours = sl.losses.kl_divergence(wide, labels, **options)
        theirs = sl.losses.kl_divergence(exact, labels, **options)
        for loss in (linear, ours):
            torch.testing.assert_close(loss.double(), theirs, rtol=1e-4, atol=1e-5)
        one, other = (
            torch.autograd.grad(loss.mean(), of, retain_graph=True)[0].double()
            for loss, of in ((ours, wide), (theirs, exact))
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
        for one, other in zip(
            *(torch.autograd.grad(loss.mean(), (hidden, head)) for loss in (linear, theirs)),
            strict=True,
        ):
            off = (one.double() - other.double()).norm() / other.double().norm()
            if not float(off) < 1e-2:  # bfloat16 has 8 bits
                raise SystemExit(f"gradients differ by {float(off):.1e}")


if __name__ == "__main__":
    main()

"""What does reducing logits to labels cost, beside torch.topk and torch.logsumexp?

    python benchmarks/bench_selection.py [--quick] [--device cuda]

All sides give top-k, the logsumexp at T = 1 and the log tail mass at T = 1, 2, 4. Logits are normal
with deviation 3; in bfloat16 the k-th is nearly always tied, the worst case for ties by id. On a
CUDA device, where FlashInfer's top-k stands beside if it is installed, the logits' bytes a second
are set against the bytes that a copy reads and writes in one.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, machine, markdown
from torch import Tensor

import softlabels as sl
from softlabels.selection import reduce_torch
from softlabels.selection import top_k as selecting

TEMPERATURES = (1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few positions, three runs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    positions, runs = (128, 7) if device.type == "cpu" else (4096, 5)
    if args.quick:
        positions, runs = 16, 3

    torch.manual_seed(0)
    rows = []
    for classes in (49_152, 128_256, 262_144):
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.randn(positions, classes, device=device).mul_(3).to(dtype)
            for k in (32, 64, 256):
                rows.append(compare(logits, k, runs=runs))
    print(f"{positions} positions, T = 1, 2, 4. {where(device)}\n")
    names = ["softlabels ms", "torch / it"]
    engine = "numba" if device.type == "cpu" else "triton"
    names += [f"without {engine} ms", "torch / it"]
    names += ["GB/s", "of a copy"] if device.type == "cuda" else []
    print(markdown(["V, k, dtype", "torch ms", *names, *others(device)], rows))


def compare(logits: Tensor, k: int, *, runs: int) -> list[str]:
    no_labels = torch.full((len(logits),), -1, device=logits.device)
    ours = functools.partial(sl.TopK(k), logits, no_labels, temperatures=TEMPERATURES)
    contestants: dict[str, Callable[[], Any]] = {
        "torch": functools.partial(plain, logits, k),
        "ours": ours,
        "ours, torch alone": functools.partial(with_torch_alone, ours),
    }
    theirs = contestants["torch"]()
    for name in ("ours", "ours, torch alone"):
        check(f"{name}, {list(logits.shape)}, k = {k}", contestants[name](), *theirs)
    del theirs
    if logits.is_cuda:
        contestants["copy"] = logits.clone
        for name in others(logits.device):
            contestants[name] = functools.partial(flashinfer, logits, k)
    waiting = {name: functools.partial(finished, run, logits) for name, run in contestants.items()}
    taken = {name: of.wall for name, of in interleaved(waiting, runs=runs).items()}
    kind = str(logits.dtype).removeprefix("torch.")
    digits = 2 if logits.is_cuda else 1
    row = [f"{logits.shape[-1]:,}, {k}, {kind}", f"{1e3 * taken['torch']:.{digits}f}"]
    for name in ("ours", "ours, torch alone"):
        row += [f"{1e3 * taken[name]:.{digits}f}", f"{taken['torch'] / taken[name]:.1f}"]
    if logits.is_cuda:
        # A copy reads and writes; a selection has to read.
        row += [f"{logits.nbytes / taken['ours'] / 1e9:.0f}"]
        row += [f"{taken['copy'] / 2 / taken['ours']:.0%}"]
    return [*row, *(f"{1e3 * taken[name]:.1f}" for name in others(logits.device))]


def others(device: torch.device) -> list[str]:
    installed = importlib.util.find_spec("flashinfer") is not None
    return ["FlashInfer top-k alone ms"] if device.type == "cuda" and installed else []


def flashinfer(logits: Tensor, k: int) -> Any:
    return importlib.import_module("flashinfer").top_k(logits, k)


def finished(run: Callable[[], Any], logits: Tensor) -> None:
    run()
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)


def with_torch_alone(run: Callable[[], sl.SoftLabels]) -> sl.SoftLabels:
    """What is chosen where neither numba nor triton is installed."""
    on_cpu, on_cuda = selecting.on_cpu, selecting.on_cuda
    selecting.on_cpu = lambda: (reduce_torch.reduce, selecting.CACHED_BYTES)
    selecting.on_cuda = lambda: reduce_torch.reduce
    try:
        return run()
    finally:
        selecting.on_cpu, selecting.on_cuda = on_cpu, on_cuda


def where(device: torch.device) -> str:
    name = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return name + machine()


def plain(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, logsumexp and log tails as anyone would write them."""
    z = logits.float()
    values, ids = torch.topk(z, k)
    rest = z.scatter(-1, ids, -torch.inf)
    tails = [
        torch.logsumexp(rest / t, -1) - torch.logsumexp(z / t if t != 1 else z, -1)
        for t in TEMPERATURES
    ]
    return values, torch.logsumexp(z, -1), torch.stack(tails, -1)


def check(
    name: str, labels: sl.SoftLabels, values: Tensor, logsumexp: Tensor, tails: Tensor
) -> None:
    """The same values, whichever of several equal classes were taken."""
    expected = {
        "log_probs": values - logsumexp.unsqueeze(-1),
        "logsumexp": logsumexp,
        "log_tails": tails,
    }
    for field, theirs in expected.items():
        off = (getattr(labels, field) - theirs).abs()
        if not float(off.max()) <= 1e-5:
            rows = (off.flatten(1) if off.ndim > 1 else off[:, None]).amax(-1).gt(1e-5).nonzero()
            sys.exit(
                f"{name}: {field} of rows {rows.flatten().tolist()} up to {float(off.max()):.1e} "
                "off torch's"
            )


if __name__ == "__main__":
    main()

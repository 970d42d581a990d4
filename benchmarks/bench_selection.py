"""What does reducing logits to labels cost, beside torch.topk and torch.logsumexp?

    python benchmarks/bench_selection.py [--quick]

Both sides give top-k, the logsumexp at T = 1 and the log tail mass at T = 1, 2, 4. Logits are
normal with deviation 3; in bfloat16 the k-th is nearly always tied, the worst case for ties by id.
"""

from __future__ import annotations

import argparse
import functools

import torch
from timing import interleaved_medians, machine, markdown
from torch import Tensor

import softlabels as sl

TEMPERATURES = (1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few positions, three runs")
    args = parser.parse_args()
    positions, runs = (16, 3) if args.quick else (128, 7)

    torch.manual_seed(0)
    rows = []
    for classes in (49_152, 128_256):
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.randn(positions, classes).mul_(3).to(dtype)
            for k in (32, 64):
                rows.append(compare(logits, k, runs=runs))
    print(f"{positions} positions, T = 1, 2, 4. {machine()}\n")
    print(markdown(["V, k, dtype", "softlabels ms", "torch ms", "torch / softlabels"], rows))


def compare(logits: Tensor, k: int, *, runs: int) -> list[str]:
    no_labels = torch.full((len(logits),), -1)
    ours = functools.partial(sl.TopK(k), logits, no_labels, temperatures=TEMPERATURES)
    theirs = functools.partial(plain, logits, k)
    check(ours(), *theirs())
    taken = interleaved_medians({"ours": ours, "theirs": theirs}, runs=runs)
    kind = str(logits.dtype).removeprefix("torch.")
    return [
        f"{logits.shape[-1]:,}, {k}, {kind}",
        f"{1e3 * taken['ours']:.0f}",
        f"{1e3 * taken['theirs']:.0f}",
        f"{taken['theirs'] / taken['ours']:.1f}",
    ]


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


def check(labels: sl.SoftLabels, values: Tensor, logsumexp: Tensor, tails: Tensor) -> None:
    """The same values, whichever of several equal classes were taken."""
    log_probs = values - logsumexp.unsqueeze(-1)
    torch.testing.assert_close(labels.log_probs, log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(labels.logsumexp, logsumexp, rtol=0, atol=1e-5)
    torch.testing.assert_close(labels.log_tails, tails, rtol=0, atol=1e-5)


if __name__ == "__main__":
    main()

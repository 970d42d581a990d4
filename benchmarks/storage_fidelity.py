"""What bench_storage.py holds layouts to: added KL, a limit, tails at any temperature; a figure.

    python benchmarks/storage_fidelity.py LABELS

prints how far tails estimated from T = 1 alone are off, on the positions of LABELS that are dense.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import markdown
from torch import Tensor

import softlabels as sl
from softlabels.labels import concatenate

# Readers that take what the kept log-probs leave of 1 for the tail clamp it here (DistillKit).
LEAST_REST = 1e-6
# How far off a likeliest log-prob may be that was read right, more than any layout's rounding.
_FIRST_OFF = 0.02
# Dense rows at a time: few enough that float64 copies of them stay in memory that is reused.
_ROWS = 32


@dataclass(frozen=True)
class AddedKL:
    """KL(teacher ‖ stored) in nats.

    Attributes:
        mean, worst: over kept classes and the rest, by temperature.
        kept_mean: over the kept classes alone, both sides normalised, T = 1.
    """

    mean: dict[float, float]
    worst: dict[float, float]
    kept_mean: float


def added_kl(
    name: str,
    teacher: sl.SoftLabels,
    stored: Any,
    *,
    classes: int,
    temperatures: Sequence[float],
    far: float = 0.0,
) -> AddedKL:
    """What a layout adds to the KL of every position.

    Args:
        name: of the layout.
        teacher: in descending order.
        stored: with `ids` and `log_probs`, in any order; SoftLabels with their own tails, or
            entries alone, to which `guessed` gives the rest.
        far: share of the positions whose likeliest class may have another probability, 1 at most.

    Raises:
        SystemExit: an id is another, or the likeliest class of a position has another probability.
    """
    by_id, order = teacher.ids.argsort(-1), stored.ids.argsort(-1)
    if not torch.equal(teacher.ids.gather(-1, by_id), stored.ids.gather(-1, order)):
        raise SystemExit(f"{name} gave other class ids back than were written")
    wanted, first = teacher.log_probs[:, 0], stored.ids == teacher.ids[:, :1]
    off = (torch.where(first, stored.log_probs, 0).sum(-1) - wanted).abs()
    share = float((off > _FIRST_OFF * (1 + wanted.abs())).double().mean())
    if share > far:
        raise SystemExit(
            f"{name} gave another probability back for the likeliest class of {share:.4%} of "
            f"positions; {far:.4%} may have one"
        )
    mean, worst = {}, {}
    for temperature in temperatures:
        if isinstance(stored, sl.SoftLabels):
            log_q = full(stored, temperature)
        else:
            log_q = guessed(stored.log_probs, temperature, classes)
        found = divergence(permuted(full(teacher, temperature), by_id), permuted(log_q, order))
        mean[temperature], worst[temperature] = float(found.mean()), float(found.max())
    kept = divergence(
        teacher.log_probs.double().gather(-1, by_id).log_softmax(-1),
        stored.log_probs.double().gather(-1, order).log_softmax(-1),
    )
    return AddedKL(mean, worst, float(kept.mean()))


def full(labels: sl.SoftLabels, temperature: float) -> Tensor:
    """Log-probs of the kept classes and, last, of the rest, (N, k + 1), float64."""
    labels = labels.map(lambda t: t.double() if t.is_floating_point() else t)
    kept, rest = labels.log_probs_at(temperature), labels.log_tail(temperature)
    return torch.cat([kept, rest[:, None]], -1)


def guessed(log_probs: Tensor, temperature: float, classes: int) -> Tensor:
    """As `full`, where no tail is stored: what is missing from 1, spread over the other classes.

    At T = 1 published readers do the same. At others DistillKit takes the rest for one class: on
    real labels that adds 1.7 nats at T = 2, k = 64, where this adds 0.11.
    """
    log_probs, others = log_probs.double(), classes - log_probs.shape[-1]
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST).log()
    spread = rest / temperature + (1 - 1 / temperature) * math.log(others)
    return torch.cat([log_probs / temperature, spread], -1).log_softmax(-1)


def permuted(values: Tensor, order: Tensor) -> Tensor:
    """Kept classes in that order, the rest last."""
    return torch.cat([values[:, :-1].gather(-1, order), values[:, -1:]], -1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row."""
    return torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class Probes:
    """Positions of which every logit is known.

    Attributes:
        teacher: their labels as they are stored, in descending order, batch shape (n,).
        logits: float, (n, V).
    """

    teacher: sl.SoftLabels
    logits: Tensor

    def log_tails(self, ids: Tensor, temperature: float) -> Tensor:
        """Log of the mass outside ids, (n,), float64."""
        found = []
        for rows, logits in self._chunks():
            others = logits.scatter(-1, ids[rows], -torch.inf)
            found.append(
                (others / temperature).logsumexp(-1) - (logits / temperature).logsumexp(-1)
            )
        return torch.cat(found)

    def check(self) -> None:
        """Abort unless the stored labels are those of the logits."""
        for rows, logits in self._chunks():
            found = logits.log_softmax(-1).gather(-1, self.teacher.ids[rows])
            if (found - self.teacher.log_probs[rows]).abs().max() > 1e-4:
                raise SystemExit("the dense probes are not of these labels")

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.logits), _ROWS):
            rows = slice(start, start + _ROWS)
            yield rows, self.logits[rows].double()


def dense_probes(labels: sl.LabelSet) -> Probes | None:
    """The positions of a label set that are kept dense, if there are any."""
    parts = list(labels.probes())
    if not parts:
        return None
    records, positions = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("records", "positions")
    )
    teacher = [
        labels[int(record)].sorted()[torch.from_numpy(positions[records == record])]
        for record in np.unique(records)
    ]
    probes = Probes(
        replace(concatenate(teacher), mask=None), torch.cat([part.logits for part in parts])
    )
    probes.check()
    return probes


def show_estimates(probes: Probes, *, ks: Sequence[int], temperatures: Sequence[float]) -> None:
    """Tails that `with_estimated_tails` makes of log-probs at T = 1, as a server tells them."""
    header = ["k", "T", "mass", "off by, mean", "99 %", "KL", "spread evenly, mean", "99 %", "KL"]
    rows = []
    for k in ks:
        bare = replace(probes.teacher.first(k), log_tails=None, temperatures=())
        labels = bare.with_estimated_tails(temperatures)
        for temperature in temperatures:
            true = probes.log_tails(bare.ids, temperature)
            log_p = with_tail(bare, true, temperature)
            ours = full(labels, temperature)
            evenly = guessed(bare.log_probs, temperature, probes.logits.shape[-1])
            # An even spread is the most that convexity allows, of the same tail at T = 1.
            if bool((ours[:, -1] > evenly[:, -1] + 1e-3).any()):
                raise SystemExit("an estimate is above what is possible")
            row = [f"{k}", f"{temperature:g}", f"{float(true.exp().mean()):.3f}"]
            for log_q in (ours, evenly):
                off = (log_q[:, -1].exp() - true.exp()).abs()
                row += [f"{float(off.mean()):.4f}", f"{float(off.quantile(0.99)):.3f}"]
                row.append(f"{float(divergence(log_p, log_q).mean()):.1e}")
            rows.append(row)
    print(f"Tails estimated from T = 1 alone, {len(probes.logits):,} dense positions\n")
    print(markdown(header, rows))


def with_tail(labels: sl.SoftLabels, log_tail: Tensor, temperature: float) -> Tensor:
    """As `full`, with this rest."""
    kept = (labels.log_probs.double() / temperature).log_softmax(-1)
    return torch.cat([kept + torch.log(-torch.expm1(log_tail))[:, None], log_tail[:, None]], -1)


def main() -> None:
    parser = argparse.ArgumentParser(description="How far are tails estimated from T = 1 off?")
    parser.add_argument("labels", type=Path, help="exact, k of 16 or more, with dense positions")
    probes = dense_probes(sl.LabelSet.open(parser.parse_args().labels))
    if probes is None:
        raise SystemExit(
            "no position of these labels is kept dense: softlabels precompute --probes"
        )
    ks = [k for k in (256, 64, 16) if k <= probes.teacher.k]
    show_estimates(probes, ks=ks, temperatures=(1.5, 2.0, 3.0, 4.0))


# Below, nothing is added: the lowest mark of the axis, "0".
_NOTHING = 1e-8
# What is drawn: marker, then where its name stands from its last point, and how it is aligned.
_DRAWN = {
    "compact": ("o", (0, 11), "center"),
    "lossless bfloat16": ("s", (0, 11), "center"),
    "plain": ("D", (0, 11), "center"),
    "u16 + f16 lists, zstd-3": ("^", (10, -31), "right"),
    "Megatron-LM": ("v", (10, -5), "left"),
    "DistillKit budget": ("P", (-10, -5), "right"),
    "DistillKit recommended": ("X", (45, 24), "right"),
}
_K_SHOWN = ("compact", "lossless bfloat16", "plain", "u16 + f16 lists, zstd-3")


def draw(rows: Sequence[Any], path: Path, *, temperatures: Sequence[float]) -> None:
    """Bytes a position against the KL that storing adds, a panel for each temperature."""
    from matplotlib import pyplot  # only here: not everyone who measures has it

    pyplot.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = pyplot.subplots(
        1, len(temperatures), figsize=(12, 7), sharey=True, layout="constrained"
    )
    powers = range(-7, 1)
    for panel, temperature in zip(panels, temperatures, strict=True):
        for name, points in _series(rows, temperature).items():
            _draw_series(panel, name, points)
        _draw_limit(panel, rows, temperature)
        panel.set(xscale="log", yscale="log", ylim=(_NOTHING / 3, 2), xlim=(12, 600))
        hint = "the number at a point is its k" if temperature == 1 else "grey ones store no tails"
        panel.set_title(f"T = {temperature:g}    ({hint})", loc="left")
        panel.set_xlabel("bytes a position, entries and tails")
        panel.set_yticks(
            [_NOTHING, *(10.0**power for power in powers)],
            ["0", *(f"$10^{{{power}}}$" for power in powers)],
        )
        panel.set_xticks([2**power for power in range(4, 10)], [2**p for p in range(4, 10)])
        panel.minorticks_off()
        panel.grid(color="0.9")
    panels[0].set_ylabel("mean KL(teacher ‖ stored) over kept classes and the rest, nats")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _series(rows: Sequence[Any], temperature: float) -> dict[str, list[tuple[float, float, int]]]:
    """(bytes, nats, k) of each layout that is drawn, by ascending bytes."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in _DRAWN}
    for row in rows:
        if row.name in found:
            kl = max(row.kl.mean[temperature], _NOTHING)
            found[row.name].append((row.entries + (row.tails or 0), kl, row.k))
    return {name: sorted(points) for name, points in found.items() if points}


def _draw_series(panel: Any, name: str, points: list[tuple[float, float, int]]) -> None:
    marker, offset, side = _DRAWN[name]
    ours = name.split()[0] in ("compact", "lossless", "plain")
    xs, ys, ks = zip(*points, strict=True)
    panel.plot(
        xs, ys, marker=marker, color="black" if ours else "0.45", linewidth=1.4 if ours else 1,
        markersize=8, markerfacecolor="black" if ours else "white", zorder=3,
    )  # fmt: skip
    at = {"textcoords": "offset points", "zorder": 4}
    weight = "bold" if ours else "normal"
    label = name if len(points) > 1 else f"{name}, {ks[0]}"
    panel.annotate(label, points[-1][:2], xytext=offset, ha=side, weight=weight, **at)
    for x, y, k in points if name in _K_SHOWN else []:
        panel.annotate(f"{k}", (x, y), xytext=(0, -17), ha="center", color="0.3", size=9, **at)


def _draw_limit(panel: Any, rows: Sequence[Any], temperature: float) -> None:
    points = sorted(
        (row.limit + row.tails, row.kl.mean[temperature]) for row in rows if row.limit is not None
    )
    panel.plot(
        *zip(*points, strict=True), color="black", linestyle="", marker="|", markersize=22,
        markeredgewidth=1.6,
    )  # fmt: skip
    panel.annotate(
        "its order-0 entropy", points[0], xytext=(0, 30), size=9,
        textcoords="offset points", arrowprops={"arrowstyle": "-", "color": "0.5"},
    )  # fmt: skip


if __name__ == "__main__":
    main()

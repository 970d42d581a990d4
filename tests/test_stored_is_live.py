"""Training from a set is training with the teacher in the loop; and the pipeline would tell."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

SELECTIONS: dict[str, Any] = {"dense": sl.Dense(), "top-k": sl.TopK(16)}


@pytest.mark.slow
def test_ten_steps_from_sets_have_the_losses_of_the_teacher_in_the_loop(teacher_dir: Path) -> None:
    command = [
        sys.executable, PIPELINES / "stored_is_live.py", "--teacher", teacher_dir,
        "--steps", "10", "--rows", "12", "--batch", "4", "--k", "16",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if "less |" in line]
    assert [line[0] for line in lines] == ["| dense, lossless", "| top-k, lossless"]
    for line in lines:
        first, last = map(float, line[2].split(", "))
        assert last < first
        assert float(line[3]) <= 1e-5


def test_labels_of_a_slightly_different_teacher_are_noticed(
    tmp_path: Path, model: Any, teacher_dir: Path, texts: list[str]
) -> None:
    from stored_is_live import label, report, train

    teacher: Any = sl.teachers.causal_lm(teacher_dir)
    sets = label(texts[:8], teacher, SELECTIONS, tmp_path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.001)
    assert report(sets, train(sets, SELECTIONS, model, steps=2, batch=4)) == 0
    assert report(sets, train(sets, SELECTIONS, other, steps=2, batch=4)) == 1


@pytest.mark.parametrize("scale", [44, 176])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_worst_rounding_that_the_codec_allows_stays_within_the_bound_and_comes_near_it(
    scale: int, spread: float
) -> None:
    from compact_bound import ANGLE, most_change

    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(64, 100, generator=generator, dtype=torch.float64)
    teacher = spread * torch.randn(64, 100, generator=generator)
    exact = sl.TopK(8)(teacher, torch.full((64,), -1), temperatures=(1.0,))
    p, tail = exact.log_probs_at(1.0).double().exp(), exact.log_tail(1.0).double().exp()
    q = logits.softmax(-1).gather(-1, exact.ids)
    loss = sl.losses.kl_divergence(logits, exact)
    # The loss ascends with a kept probability where this is above its mean.
    slope = (p / q).log()
    slope -= (p * slope).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
    worst = torch.zeros(64, dtype=torch.float64)
    for sign, tail_sign in itertools.product((-1, 1), (-1, 1)):
        roots = scale * p ** (1 / 3)
        steps = sign * slope.sign() / 2
        kept = torch.where(roots < 2.5, p * steps.exp(), ((roots + steps) / scale) ** 3)
        angle = tail.sqrt().asin() + tail_sign * ANGLE
        rest = angle.clamp(0, math.pi / 2).sin() ** 2
        rounded = sl.SoftLabels(
            ids=exact.ids,
            log_probs=(kept / kept.sum(-1, keepdim=True) * (1 - rest).unsqueeze(-1)).log(),
            log_tails=rest.log().unsqueeze(-1),
            temperatures=(1.0,),
        )
        change = (sl.losses.kl_divergence(logits, rounded) - loss).abs()
        worst = torch.maximum(worst, change)
    share = worst / most_change(exact, logits, scale=scale)
    assert float(share.max()) <= 1
    assert float(share.max()) > 0.4

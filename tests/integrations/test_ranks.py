"""Two processes train as one does, in every loop; each record is seen once."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from on_ranks import OPTIONS, keys_of, launch
from students import RATE, arguments, close, flat, make_student, oracle, sums

import softlabels as sl
from softlabels.integrations.transformers import SoftLabelTrainer

pytestmark = pytest.mark.slow

# The last one leaves its ranks in the middle of an exchange.
LIGHTNING = ["lightning"] if find_spec("lightning") else []
STORIES = ["plain", "trainer", "accelerated", *LIGHTNING, "dispatched"]
# Both ranks of every story.
Two = dict[str, list[Any]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, labels_dir: Path) -> Path:
    """What two ranks left, and the labels they had; told once, however many test workers ask."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    out = root / "ranks"
    with FileLock(root / "ranks.lock"):
        if not (out / "0.json").exists():
            shutil.copytree(labels_dir, out / "labels")
            launch(STORIES, out / "labels", out, world_size=2)
    return out


@pytest.fixture(scope="module")
def labels(out: Path) -> sl.LabelSet:
    return sl.LabelSet.open(out / "labels")


@pytest.fixture(scope="module")
def two(out: Path) -> Two:
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
    return {story: [rank[story] for rank in ranks] for story in STORIES}


def in_turn(ranks: list[list[list[Any]]]) -> list[list[Any]]:
    """The batches of all ranks in the order of the loader, without fillers."""
    return [batch for step in zip(*ranks, strict=True) for batch in step if batch]


def expected_keys(labels: sl.LabelSet, epochs: int = 1) -> list[list[Any]]:
    loader = sl.loader(labels, **OPTIONS)
    return [keys_of(batch) for _ in range(epochs) for batch in loader]


def test_a_loop_of_ones_own_has_the_gradients_of_one_process(labels: sl.LabelSet, two: Two) -> None:
    losses, _, gradients = oracle(labels, epochs=1, together=2, **OPTIONS)
    for rank in two["plain"]:
        assert close(rank["losses"], losses[:4])
        for found, expected in zip(rank["gradients"], gradients, strict=False):
            assert close(found, expected)


def test_what_two_ranks_began_one_and_three_go_on_with(
    labels: sl.LabelSet, out: Path, two: Two, tmp_path: Path
) -> None:
    begun = in_turn([rank["keys"] for rank in two["plain"]])
    state, other = (rank["state"] for rank in two["plain"])
    assert state == other
    for world_size in (1, 3):
        ranks = launch(["reading"], out / "labels", tmp_path, world_size=world_size, state=state)
        assert begun + in_turn([rank["reading"] for rank in ranks]) == expected_keys(labels)


def test_a_trainer_on_two_ranks_is_one_with_two_micro_batches(
    labels: sl.LabelSet, two: Two, out: Path, tmp_path: Path
) -> None:
    losses, weights, _ = oracle(labels, epochs=2, together=2, **OPTIONS)
    for rank in two["trainer"]:
        assert close(rank["weights"], weights)
    # Rank 0 alone logs.
    assert close(two["trainer"][0]["losses"], losses)
    resumed = SoftLabelTrainer(
        make_student(),
        arguments(tmp_path, gradient_accumulation_steps=2),
        loader=sl.loader(labels, **OPTIONS),
    )
    resumed.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    assert close(flat(resumed.model), weights)
    evaluated = resumed.evaluate(sl.loader(labels, batch_size=5))["eval_loss"]
    assert all(close([rank["evaluated"]], [evaluated]) for rank in two["trainer"])


def test_an_accelerator_reads_on_every_rank_and_saves_the_place(
    labels: sl.LabelSet, two: Two
) -> None:
    expected, batches = expected_keys(labels, 2), len(sl.loader(labels, **OPTIONS))
    ranks = two["accelerated"]
    # Two steps of two ranks came before the place that was saved.
    assert in_turn([rank["first"] for rank in ranks]) == expected[4:batches]
    assert in_turn([rank["second"] for rank in ranks]) == expected[batches:]
    for rank in ranks:
        assert close(rank["weights"], averaged_by_micro_batch(labels, epochs=2))


def averaged_by_micro_batch(labels: sl.LabelSet, *, epochs: int) -> list[float]:
    """Weights after steps of two micro-batches on two ranks, each micro-batch weighing a half."""
    model, loader = make_student(), sl.loader(labels, **OPTIONS)
    for _ in range(epochs):
        micro = list(zip_longest(*[iter(loader)] * 2))
        for start in range(0, len(micro), 2):
            model.zero_grad()
            for batches in micro[start : start + 2]:
                parts = [sums(model, batch) for batch in batches if batch is not None]
                mean = sum(loss for loss, _ in parts) / sum(int(count) for _, count in parts)
                (mean / 2).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= RATE * p.grad
    return flat(model)


def test_lightning_on_two_ranks_is_plain_gradient_descent(labels: sl.LabelSet, two: Two) -> None:
    pytest.importorskip("lightning")
    _, weights, _ = oracle(labels, epochs=2, together=2, **OPTIONS)
    assert all(close(rank["weights"], weights) for rank in two["lightning"])
    assert in_turn([rank["keys"] for rank in two["lightning"]]) == expected_keys(labels, 2)


def test_an_accelerators_own_ways_with_a_dataloader_are_errors(two: Two) -> None:
    # Rank 0 is the one that would read for all; both choices are tried.
    assert set(two["dispatched"][0]) == {"None", "False"}
    assert two["dispatched"][0]["None"].startswith("InputError: Accelerate would let rank 0")

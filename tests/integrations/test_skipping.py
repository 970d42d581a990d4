"""Epochs as Trainer counts them: every micro-batch is in a step of its own epoch's length."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from students import arguments, flat, make_student
from transformers import TrainerCallback

import softlabels as sl
from softlabels.errors import InputError
from softlabels.integrations.skipping import Skippable
from softlabels.integrations.transformers import SoftLabelTrainer

Pair = tuple[str, int]
ACCUMULATED = 3


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, precompute: Any) -> sl.LabelSet:
    """Samples of up to four windows, of which one a sample fills rows: as many as are drawn."""
    rng = np.random.default_rng(1)
    rows = [
        {"id": f"s{i}", "ids": rng.integers(0, 16, int(rng.integers(1, 20))).tolist()}
        for i in range(60)
    ]
    out = tmp_path_factory.mktemp("many") / "labels"
    labels: sl.LabelSet = precompute(out, rows, unit_rows=60)
    return labels


def packed(labels: sl.LabelSet) -> sl.Loader:
    return sl.loader(labels, batch_size=2, seed=3, row_length=7, parts="one")


def mixed(labels: sl.LabelSet) -> sl.Mix:
    return sl.mix([sl.loader(labels, batch_size=20, seed=seed) for seed in (0, 1)])


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def pairs(batches: Any) -> list[list[Pair]]:
    return [b["key"] for b in batches]


def test_every_epoch_has_the_length_of_the_first_and_nothing_is_left_out(
    many: sl.LabelSet,
) -> None:
    loader = packed(many)
    lengths = [loader.steps_in(epoch) for epoch in range(6)]
    assert min(lengths) < lengths[0] < max(lengths)
    plain = [batch for _ in range(6) for batch in pairs(loader)]
    some = Skippable(packed(many), as_it_is)
    found = []
    for _ in range(4):
        epoch = pairs(some)
        assert len(epoch) == len(some) == lengths[0]
        found += epoch
    assert found == plain[: len(found)]


def test_where_the_number_of_batches_is_not_known_there_is_no_end(many: sl.LabelSet) -> None:
    loader = mixed(many)
    plain = [batch for _ in range(3) for batch in pairs(loader)]
    some = Skippable(mixed(many), as_it_is)
    assert pairs(islice(some, len(plain))) == plain
    with pytest.raises(TypeError, match="when its epoch has ended"):
        len(some)


def test_batches_that_are_thrown_away_are_empty_and_count(many: sl.LabelSet) -> None:
    some = Skippable(packed(many), as_it_is)
    some.skipped = 2
    batches = list(some)
    assert batches[:2] == [{}, {}]
    assert len(batches) == len(some)
    assert pairs(batches[2:]) == pairs(packed(many))[: len(batches) - 2]
    assert {} not in list(some)


class Counted(TrainerCallback):
    """How many micro-batches each optimizer step was made of."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.since = 0

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.since += 1

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps.append(self.since + 1)
        self.since = 0


def train(
    loader: Any, out: Path, *, resume: str | None = None, **options: Any
) -> tuple[list[float], list[int], int]:
    """Weights, and the micro-batches of every step and of none."""
    counted = Counted()
    made = SoftLabelTrainer(
        make_student(),
        arguments(out, gradient_accumulation_steps=ACCUMULATED, **options),
        loader=loader,
        callbacks=[counted],
    )
    made.train(resume_from_checkpoint=resume)
    return flat(made.model), counted.steps, counted.since


@pytest.mark.parametrize("make", [packed, mixed])
def test_no_micro_batch_is_without_its_step_and_every_checkpoint_goes_on(
    many: sl.LabelSet, tmp_path: Path, make: Callable[[sl.LabelSet], Any]
) -> None:
    loader = make(many)
    options: dict[str, Any] = {"num_train_epochs": 3} if make is packed else {"max_steps": 14}
    per_epoch = len(loader) if make is packed else 14 * ACCUMULATED
    weights, steps, left = train(loader, tmp_path, save_strategy="steps", save_steps=1, **options)
    full, rest = divmod(per_epoch, ACCUMULATED)
    epoch = [ACCUMULATED] * full + [rest] * (rest > 0)
    assert steps == (epoch * 3 if make is packed else epoch)
    assert not left
    for step in (full - 1, full + 1, 2 * full + 2) if make is packed else (4, 9):
        checkpoint = str(tmp_path / f"checkpoint-{step}")
        assert train(make(many), tmp_path, resume=checkpoint, **options)[0] == weights


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"batch_size": 2}, {"batch_size": 3}, "9 batches in 3 steps, of this run 6 batches in 2"),
        # As many steps, but other batches would be left over.
        ({"batch_size": 3}, {"batch_size": 4}, "6 batches in 2 steps, of this run 5 batches in 2"),
        ({"batch_size": 3}, {"batch_size": 3, "drop_last": True}, "6 batches .* 5 batches"),
    ],
)
def test_batches_of_another_size_are_refused_after_a_checkpoint(
    labels: sl.LabelSet, tmp_path: Path, before: Any, after: Any, words: str
) -> None:
    train(
        sl.loader(labels, seed=0, **before), tmp_path,
        max_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    with pytest.raises(InputError, match=words):
        train(sl.loader(labels, seed=0, **after), tmp_path, resume=str(tmp_path / "checkpoint-1"))

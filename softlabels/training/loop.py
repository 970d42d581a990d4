"""The loop: batches, steps, evaluations, checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import softlabels.training.checkpoint as checkpoints
from softlabels.errors import InputError
from softlabels.loading.build import loader as make_loader
from softlabels.loading.loader import Loader
from softlabels.progress import Progress
from softlabels.training.checkpoint import Moment
from softlabels.training.evaluate import Evaluation, evaluate
from softlabels.training.forward import Student
from softlabels.training.journal import Journal
from softlabels.training.recipe import TrainRecipe
from softlabels.training.split import HeldOut
from softlabels.training.step import Taken, take_step

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """What a run works with.

    Attributes:
        checkpoints: their folder.
        steps: of the whole run.
        batches: of the whole run; the last step may have fewer than the others.
    """

    recipe: TrainRecipe
    student: Student
    optimizer: torch.optim.Optimizer
    loader: Loader
    held_out: HeldOut | None
    checkpoints: Path
    steps: int
    batches: int


@dataclass(frozen=True)
class TrainingProgress(Progress):
    """A training run at one moment; `tokens` and `seconds` are this process's.

    Attributes:
        step, steps: done, and of the whole run.
        first: the step that this process began with.
        loss: of the last step.
        kl: of the last evaluation.
    """

    step: int = 0
    steps: int = 0
    first: int = 0
    loss: float | None = None
    kl: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """From this process's steps; None before any."""
        done = self.step - self.first
        return self.seconds * (self.steps - self.step) / done if done else None

    def to_json(self) -> dict[str, int | float | None]:
        """The fields of a line of the log."""
        return {
            "share": self.share,
            "step": self.step,
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "eta_s": None if self.seconds_left is None else round(self.seconds_left, 1),
            "loss": self.loss,
            "kl": self.kl,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        words = [f"{self.step:,}/{self.steps:,} steps", f"{self.tokens_per_s:,.0f} tokens/s"]
        if self.seconds_left is not None:
            words.append(f"{self.seconds_left:,.0f} s left")
        words += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        words += [f"held-out KL {self.kl:.3f}"] if self.kl is not None else []
        return " · ".join(words)


def steps_of(recipe: TrainRecipe, loader: Loader) -> tuple[int, int]:
    """Steps and batches of a whole run.

    Raises:
        InputError: epochs are asked for of a stream.
    """
    accumulate = recipe.data.accumulate
    if recipe.steps is not None:
        return recipe.steps, recipe.steps * accumulate
    assert recipe.epochs is not None
    batches = 0
    try:
        for epoch in range(recipe.epochs):
            loader.set_epoch(epoch)
            batches += len(loader)
    except TypeError:
        raise InputError(
            "data is a stream, of which nobody knows how long an epoch is; say steps= in place of "
            "epochs="
        ) from None
    loader.set_epoch(0)
    return -(-batches // accumulate), batches


def train_to_the_end(run: Run, moment: Moment, journal: Journal, report: Report) -> Moment:
    """Take the steps that are left.

    Raises:
        KeyboardInterrupt: after a checkpoint, saying how to go on.
        DivergedError: a loss is not finite.
    """
    if moment.loader is not None:
        run.loader.load_state_dict(moment.loader)
    state = TrainingProgress(
        share=moment.step / run.steps, step=moment.step, steps=run.steps, first=moment.step
    )
    clock = _Clock(moment.seconds)
    if moment.step == 0:
        state = _evaluated(run, journal, state)
    with _interrupts() as interrupted, closing(_endless(run.loader)) as batches:
        while moment.step < run.steps:
            taken = _next_step(run, batches, moment.step, clock)
            moment = replace(moment, step=moment.step + 1, tokens=moment.tokens + taken.tokens)
            clock.tokens += taken.tokens
            state = replace(
                state, share=moment.step / run.steps, step=moment.step, loss=taken.loss,
                tokens=clock.tokens, seconds=clock.seconds,
            )  # fmt: skip
            if _logs(run, moment.step):
                _log(journal, moment, taken, clock)
            if _is_due(run, run.recipe.evaluate_every, moment.step):
                state = _evaluated(run, journal, state)
            stop = interrupted()
            if stop or _is_due(run, run.recipe.checkpoint_every, moment.step):
                moment = _saved(run, moment, journal, clock)
            report(state)
            if stop and moment.step < run.steps:
                raise KeyboardInterrupt(
                    f"interrupted after step {moment.step} of {run.steps}, which is saved: run "
                    "the same command again to go on"
                )
    return moment


def held_out_batches(recipe: TrainRecipe, held_out: HeldOut) -> Loader:
    """Batches to evaluate on, in the set's order."""
    records: Any = held_out.records
    return make_loader(
        held_out.labels,
        held_out.data,
        batch_size=recipe.data.batch_size,
        records=records,
        max_length=recipe.data.max_length,
        rank=0,
        world_size=1,
        device=recipe.device or "cpu",
    )


class _Clock:
    """Seconds of training, and how many of them went by waiting for batches."""

    def __init__(self, before: float) -> None:
        self._before, self._began = before, time.perf_counter()
        self.tokens = 0
        self.waited = 0.0
        self._mark = (self._began, 0, 0.0)

    @property
    def seconds(self) -> float:
        """Of this process."""
        return time.perf_counter() - self._began

    @property
    def all_seconds(self) -> float:
        """Of this and earlier processes."""
        return self._before + self.seconds

    def lap(self) -> dict[str, float]:
        """Speed and share of waiting since the last lap."""
        now = (time.perf_counter(), self.tokens, self.waited)
        seconds = max(1e-9, now[0] - self._mark[0])
        tokens, waited = now[1] - self._mark[1], now[2] - self._mark[2]
        self._mark = now
        return {
            "tokens_per_s": round(tokens / seconds, 1),
            "wait_share": round(waited / seconds, 4),
        }


def _endless(loader: Loader) -> Generator[dict[str, Any]]:
    while True:
        yield from loader


def _next_step(run: Run, batches: Iterator[dict[str, Any]], step: int, clock: _Clock) -> Taken:
    count = min(run.recipe.data.accumulate, run.batches - step * run.recipe.data.accumulate)
    began = time.perf_counter()
    some = [next(batches) for _ in range(count)]
    clock.waited += time.perf_counter() - began
    return take_step(
        run.student, run.optimizer, some, run.recipe,
        step=step, steps=run.steps, parts=_logs(run, step + 1),
    )  # fmt: skip


def _logs(run: Run, step: int) -> bool:
    return step == 1 or _is_due(run, run.recipe.log_every, step)


def _is_due(run: Run, every: int | None, step: int) -> bool:
    return step == run.steps or (every is not None and step % every == 0)


def _log(journal: Journal, moment: Moment, taken: Taken, clock: _Clock) -> None:
    journal.metrics(
        "step", step=moment.step, tokens=moment.tokens, loss=taken.loss, kd=taken.kd, ce=taken.ce,
        hard_weight=taken.hard_weight, lr=taken.lr, grad_norm=taken.grad_norm,
    )  # fmt: skip
    journal.times(step=moment.step, seconds=round(clock.all_seconds, 3), **clock.lap())


def _evaluated(run: Run, journal: Journal, state: TrainingProgress) -> TrainingProgress:
    if run.held_out is None:
        return state
    found = held_out_evaluation(run.student, run.recipe, run.held_out)
    journal.metrics("evaluation", step=state.step, **found.to_json())
    return replace(state, kl=found.kl)


def held_out_evaluation(student: Student, recipe: TrainRecipe, held_out: HeldOut) -> Evaluation:
    """A student on all held-out records, at every temperature that they declare."""
    temperatures = held_out.labels.plan.temperatures
    return evaluate(student, held_out_batches(recipe, held_out), temperatures=temperatures)


def _saved(run: Run, moment: Moment, journal: Journal, clock: _Clock) -> Moment:
    moment = replace(
        moment,
        seconds=clock.all_seconds,
        loader=run.loader.state_dict(),
        lengths=journal.sync(),
    )
    checkpoints.save(run.checkpoints, moment, run.student.model, run.optimizer)
    return moment


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the step at hand; a second one ends everything at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, _: Any) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)

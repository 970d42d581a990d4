"""What a transformers Trainer needs of batches to count on, and to go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from softlabels.errors import InputError
from softlabels.integrations.steps import Batch, Steps
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix


class Skippable(Steps):
    """Steps for a loop that, resumed, asks for every batch again and throws those it had away.

    Trainer counts on epochs that all have as many batches as the first. Of one that ends early it
    makes no step of the last micro-batches, and their gradients join the next epoch's first step.
    So what an epoch lacks is taken from the next one, what it has beyond waits for the next, and
    where the number of batches is not known there is no end.

    Attributes:
        skipped: how many batches the loop is going to throw away next; they are empty.
    """

    def __init__(self, loader: Loader | Mix, emit: Callable[[Batch], Batch]) -> None:
        super().__init__(loader, emit)
        self.skipped = 0
        try:
            self._length: int | None = super().__len__()
        except TypeError:
            self._length = None

    def __len__(self) -> int:
        """Batches in the epoch that was next when this was made; TypeError where unknown."""
        return super().__len__() if self._length is None else self._length

    def __iter__(self) -> Iterator[Batch]:
        given, self.skipped = self.skipped, 0
        yield from ({} for _ in range(given))
        while self._length is None or given < self._length:
            before = given
            for batch in super().__iter__():
                given += 1
                yield batch
                if given == self._length:
                    return
            if given == before:
                return

    def epoch(self, accumulated: int) -> list[int] | None:
        """Batches of all ranks in an epoch, and optimizer steps; None where they are not known."""
        if self._length is None or isinstance(self.loader, Mix):
            return None
        batches = self.loader.feed.count(self.loader.epoch, full=self.loader.drop_last)
        return [batches, -(-self._length // accumulated)]


def position(steps: Skippable, world_size: int, accumulated: int) -> TrainerCallback:
    """What takes the place in the data into a Trainer's checkpoints, and out of them.

    A class of its own for each Trainer: Trainer makes another object of it, with no arguments,
    where `restore_callback_states_from_checkpoint` is set.
    """
    shape: dict[str, Any] = {
        "batches_per_step": world_size * accumulated,
        "epoch": steps.epoch(accumulated),
    }

    class LoaderPosition(TrainerCallback, ExportableState):
        place: dict[str, Any] | None = None

        def state(self) -> dict[str, Any]:
            place = {"loader": steps.state_dict(), **shape}
            return {"args": {}, "attributes": {"place": place}}

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any
        ) -> None:
            if state.global_step:
                # A dict, whatever its annotation says.
                callbacks: Any = state.stateful_callbacks
                place = callbacks.get(type(self).__name__, _NOWHERE)["attributes"]["place"]
                _check_place(place, shape, args)
                # As Trainer counts: an epoch of a stream has max_steps.
                in_epoch = shape["epoch"][1] if shape["epoch"] else state.max_steps
                steps.skipped = state.global_step % in_epoch * accumulated
                steps.load_state_dict(place["loader"])

    return LoaderPosition()


_NOWHERE: dict[str, Any] = {"attributes": {"place": None}}


def _check_place(place: Any, shape: dict[str, Any], args: TrainingArguments) -> None:
    """Refuse a checkpoint after which Trainer would count otherwise than the data goes on."""
    if place is None:
        raise InputError(
            "this checkpoint does not say where its loader was: no SoftLabelTrainer wrote it. "
            "To begin the data anew, load its weights and train without resume_from_checkpoint"
        )
    if place["batches_per_step"] != shape["batches_per_step"]:
        raise InputError(
            f"a step of this checkpoint is {place['batches_per_step']} batches (ranks × "
            f"gradient_accumulation_steps), of this run {shape['batches_per_step']}; Trainer "
            "counts epochs in steps: choose gradient_accumulation_steps so that they are equal"
        )
    if place["epoch"] != shape["epoch"]:
        raise InputError(
            f"an epoch of this checkpoint is {_told(place['epoch'])}, of this run "
            f"{_told(shape['epoch'])}; Trainer counts epochs in steps, so that data would be left "
            "out: give sl.loader(…) the batch_size, row_length and drop_last that it had"
        )
    if args.ignore_data_skip:
        raise InputError(
            "ignore_data_skip=True makes Trainer begin its epoch anew, while the data goes on; "
            "leave it out: nothing is read that was seen"
        )


def _told(epoch: list[int] | None) -> str:
    return "of unknown length" if epoch is None else f"{epoch[0]} batches in {epoch[1]} steps"

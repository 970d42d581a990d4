"""The loader: batches of inputs and soft labels, in an order that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from softlabels.errors import InputError
from softlabels.loading.ahead import made_ahead
from softlabels.loading.batches import Place
from softlabels.loading.feed import Feed
from softlabels.loading.join import JoinReport
from softlabels.loading.ranks import Ranks, refuse_dispatch

Verify = Literal["first-epoch", "always", "never"]
VERIFY = ("first-epoch", "always", "never")


class Round(NamedTuple):
    """A batch for each rank, fewer in an epoch's last round.

    Attributes:
        batches: as the feed gives them.
        after: the place after them.
        last: whether the epoch ends with them.
    """

    batches: list[Any]
    after: Place
    last: bool


class Loader(IterableDataset[dict[str, Any]]):
    """Iterate over it for one epoch of batches; made by `softlabels.loader`.

    Each `iter()` begins the current epoch; with its last batch the next one begins, in another
    order if it is shuffled. An iterator older than another one, or than a call of `set_epoch` or
    `load_state_dict`, goes on with its epoch and no longer moves the loader.

    `state_dict` may be taken after any batch: a few integers, the same on every rank, from which a
    loader with any number of ranks, threads or workers goes on.

    The batches of an epoch are the same for every number of ranks; rank r of W gets the batches r,
    r + W, … In a last round that is not full, the ranks left over get one token without labels,
    whose key is None, so that all take the same number of steps.

    `torch.utils.data.DataLoader(loader, batch_size=None)` gives the same batches in the same
    order, whatever its `num_workers`, but threads are faster. Workers hold copies: with them this
    object's state does not move, so call `set_epoch` before each epoch, and save only between
    epochs, or use torchdata's `StatefulDataLoader`. Persistent workers keep their first copies,
    which `set_epoch` does not reach: they go from epoch to epoch by themselves, and refuse to go
    on after one that was left early.

    Args:
        feed: what is delivered.
        drop_last: leave out batches with fewer rows than the others, and a last round that has no
            batch for some ranks.
        ranks: whose share is delivered.
        threads: that make batches; 0 makes each when it is asked for.
        prefetch: batches that are made before they are asked for.
        verify_inputs: in which epochs rows are held to their digests.
    """

    def __init__(
        self,
        feed: Feed[Any],
        *,
        drop_last: bool,
        ranks: Ranks,
        threads: int,
        prefetch: int,
        verify_inputs: Verify,
    ) -> None:
        self.feed, self.drop_last, self.ranks = feed, drop_last, ranks
        self._threads, self._prefetch, self._verify = threads, prefetch, verify_inputs
        self._epoch, self._place, self._resume = 0, Place(), Place()
        self._turn = 0
        self._reader, self._left = 0, False
        self._first_epoch: int | None = None

    @property
    def report(self) -> JoinReport | None:
        """What the join to the data found; None without data, and for a stream before its end."""
        return self.feed.report

    @property
    def epoch(self) -> int:
        """Which epoch the next batch is of, from 0."""
        return self._epoch

    @property
    def causal(self) -> bool:
        """Whether labels at a token are of the next one, so that a student must not see it."""
        return self.feed.labels.plan.hard_label_alignment == "next"

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank; TypeError where the input is a stream."""
        return self.steps_in(self._epoch)

    def steps_in(self, epoch: int) -> int:
        """Steps in an epoch, as `len` says of the one that is next."""
        batches, ranks = self.feed.count(epoch, full=self.drop_last), self.ranks.world_size
        return batches // ranks if self.drop_last else -(-batches // ranks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None:
            self.ranks.check()
            refuse_dispatch(self)
        elif self._left:
            raise InputError(
                "this worker process left an epoch early and cannot know which one is wanted now; "
                "pass persistent_workers=False, so that each epoch has new workers"
            )
        ours, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, place, turn = self._epoch, self._resume, self._turn
        self._resume, self._turn, self._left = Place(), 0, worker is not None
        self._reader += 1
        reader = self._reader
        make = partial(self._make, epoch=epoch, verify=self._verifies(epoch))
        # DataLoader takes from its workers in turn.
        rounds = enumerate(self._rounds(epoch, place), turn)
        mine = ((number, some) for number, some in rounds if number % workers == ours)
        threads = self._threads if worker is None else 0
        ended = False
        for (number, (_, after, last)), made in made_ahead(
            mine, make, threads=threads, ahead=self._prefetch
        ):
            # A loop may never ask for more than an epoch has: its last batch begins the next one.
            # Not so among workers, of which only one knows that batch.
            ended = last = last and worker is None
            # Whoever began to iterate, or chose an epoch or place, last says where the loader is.
            if reader == self._reader:
                self._epoch, self._place = (epoch + 1, Place()) if last else (epoch, after)
                self._turn = 0 if last else number + 1
            yield made
        if not ended and reader == self._reader:
            self.set_epoch(epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the next `iter()` delivers it from its start."""
        self._epoch, self._turn, self._left = count(epoch, "epoch"), 0, False
        self._place = self._resume = Place()
        self._reader += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: plain numbers and text, for `load_state_dict` or JSON."""
        place = self._place
        state = {"version": 2, "epoch": self._epoch, "seen": place.seen, "batch": place.batch}
        # Whose turn it is among workers is theirs alone: a new set of them begins with the first.
        turn = {} if get_worker_info() is None else {"turn": self._turn}
        return state | turn | {"order": self._name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, with any number of ranks, threads and workers.

        The batch size may differ, too, where records come one to a row and not by length.

        Raises:
            InputError: the state is of another label set, seed or choice of records, or none.
        """
        if state.get("version") != 2 or state.get("order") != self._name:
            raise InputError(
                "this state is of another loader: label set, data, seed, records and arrangement "
                "must be the same"
            )
        place = Place(count(state.get("seen"), "seen"), count(state.get("batch"), "batch"))
        items = self.feed.items()
        if items is not None and place.seen > items:
            raise InputError(f"this state has seen {place.seen} of {items} records")
        self.set_epoch(count(state.get("epoch"), "epoch"))
        self._place = self._resume = place
        self._turn = 0 if get_worker_info() is None else count(state.get("turn"), "turn")

    def without_batches(self) -> InputError:
        """What is to be raised where an epoch has no batch."""
        items = self.feed.items()
        if items is None:  # a stream, which has ended
            items = 0 if self.report is None else self.report.records
        ranks = self.ranks.world_size
        whose = f" for each of {ranks} ranks" if ranks > 1 else ""
        dropped = f", and drop_last leaves out what fills no batch{whose}" if self.drop_last else ""
        return InputError(f"{self.feed.labels.name}: there are {items} records to load{dropped}")

    def _rounds(self, epoch: int, place: Place) -> Iterator[Round]:
        """Every round from a place on."""
        batches = self.feed.batches(epoch, place, full=self.drop_last)
        size = self.ranks.world_size
        held = list(islice(batches, size))
        if place == Place() and (not held or (self.drop_last and len(held) < size)):
            raise self.without_batches()
        while held and (len(held) == size or not self.drop_last):
            following = list(islice(batches, size))
            last = not following or (self.drop_last and len(following) < size)
            yield Round([batch for batch, _ in held], held[-1][1], last)
            held = following

    def _make(self, work: tuple[int, Round], *, epoch: int, verify: bool) -> dict[str, Any]:
        (_, (batches, _, _)), rank = work, self.ranks.rank
        if rank < len(batches):
            return self.feed.make(batches[rank], epoch=epoch, verify=verify)
        return self.feed.filler(batches[0], epoch=epoch)

    def _verifies(self, epoch: int) -> bool:
        if self._first_epoch is None:
            self._first_epoch = epoch
        return self._verify == "always" or (
            self._verify == "first-epoch" and epoch == self._first_epoch
        )

    @cached_property
    def _name(self) -> str:
        return self.feed.name


def count(value: Any, name: str) -> int:
    """A number from 0 on; NumPy's integers too."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"{name} is {value!r}; it must be an integer from 0 on")
    return int(value)

"""A loader as a training loop takes it: it knows its last batch, and where the loop is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from softlabels.errors import InputError
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix

Batch = dict[str, Any]


class Steps(IterableDataset[Batch]):
    """Batches of a loader, each `iter()` going on where the last one was left.

    A loop that is not ours takes as many batches as it counts and may never ask for the one after
    the last, at which a `Loader` moves on to its next epoch; it may leave an epoch early; it may
    save a checkpoint while it looks ahead. So this looks one batch ahead itself, and its state is
    that after the batch that was handed out last: taken after an epoch's last, the next begins.

    It takes its rank's share already, as the loader does, and is to be given to a loop as it is,
    or as `DataLoader(steps, batch_size=None)` where a DataLoader is asked for: nothing may shard,
    sample or batch it again.

    Args:
        loader: or mix, whose epochs are delivered, from its present state on; from now on moved
            by this.
        emit: what is handed out for a batch; the batch by default. See `to_tensors`.

    Attributes:
        loader: as given.
        last: whether the batch that was handed out is its epoch's last.

    Raises:
        InputError: `loader` is none.
    """

    def __init__(self, loader: Loader | Mix, emit: Callable[[Batch], Batch] | None = None) -> None:
        if not isinstance(loader, (Loader, Mix)):
            raise InputError(
                f"a {type(loader).__name__} was given where a softlabels.Loader is wanted, which "
                "takes its rank's share and resumes exactly: sl.loader(labels, data)"
            )
        self.loader, self.last = loader, False
        self._emit, self._state = emit, loader.state_dict()
        self._epoch: int | None = None
        self._reader = 0

    def __len__(self) -> int:
        """Batches in the epoch that is iterated over, else in the next; TypeError where unknown."""
        if isinstance(self.loader, Mix):
            raise TypeError("how many batches a mix gives is known when its epoch has ended")
        # The loader, one batch ahead, may be in the next epoch.
        return self.loader.steps_in(self._state["epoch"] if self._epoch is None else self._epoch)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise InputError(
                "a worker process has a copy of this, and what it delivers is not known here; set "
                "num_workers=0: the loader's threads prepare batches, sl.loader(…, threads=…)"
            )
        self.loader.load_state_dict(self._state)
        self._reader += 1
        reader = self._reader
        try:
            for batch, state, last in self._ahead():
                # Whoever began to iterate, or chose a place, last says where the loop is.
                if reader == self._reader:
                    self._state, self.last = state, last
                yield batch if self._emit is None else self._emit(batch)
        finally:
            if reader == self._reader:
                self._epoch = None

    def _ahead(self) -> Iterator[tuple[Batch, dict[str, Any], bool]]:
        """Each batch, the state after it, and whether its epoch ends with it."""
        batches = iter(self.loader)
        self._epoch = self._epoch_now()
        ahead = next(batches, None)
        if ahead is None:
            # The state was taken by someone who did not know that the epoch was over.
            batches = iter(self.loader)
            self._epoch = self._epoch_now()
            ahead = next(batches, None)
        while ahead is not None:
            batch, state = ahead, self.loader.state_dict()
            ahead = next(batches, None)
            last = ahead is None
            yield batch, self.loader.state_dict() if last else state, last

    def _epoch_now(self) -> int | None:
        return None if isinstance(self.loader, Mix) else self.loader.epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is, the same on every rank; a `Loader` takes it too."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, with any number of ranks.

        Raises:
            InputError: the state is of another loader.
        """
        self.loader.load_state_dict(state)
        self._state, self.last = self.loader.state_dict(), False
        self._epoch = None
        self._reader += 1

    def check_ranks(self, rank: int, world_size: int) -> None:
        """Refuse to give a rank of a loop what belongs to another one.

        Raises:
            InputError: the loader was made for another rank, or number of them.
        """
        for ranks in (part.ranks for part in self._parts):
            if (ranks.rank, ranks.world_size) != (rank, world_size):
                raise InputError(
                    f"this loader was made for rank {ranks.rank} of {ranks.world_size}, this "
                    f"process is rank {rank} of {world_size}: batches would be seen twice or "
                    "never. Make it after the Accelerator, the TrainingArguments or "
                    "init_process_group, without rank= and world_size="
                )

    @property
    def causal(self) -> bool:
        """Whether the student must not see the token that labels are of: see `Loader.causal`.

        Raises:
            InputError: it must not in one loader of a mix, and may in another.
        """
        causal, *others = {part.causal for part in self._parts}
        if others:
            raise InputError(
                "this mix has labels of the 'next' token and of the 'same' one, which no attention "
                "fits; train a student for each"
            )
        return causal

    @property
    def _parts(self) -> list[Loader]:
        return self.loader.loaders if isinstance(self.loader, Mix) else [self.loader]

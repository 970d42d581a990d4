"""Which rank of how many a loader delivers to, and that nobody else shares its batches out."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch

from softlabels.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """Which share of every round of batches is ours.

    Attributes:
        rank: of world_size.
        given: by the user; else what torch.distributed or torchrun said.
    """

    rank: int = 0
    world_size: int = 1
    given: bool = False

    @classmethod
    def find(cls, rank: int | None, world_size: int | None) -> Ranks:
        """The user's, else torch.distributed's, else those of torchrun's environment.

        Raises:
            InputError: only one is given, or they do not fit each other.
        """
        if rank is not None or world_size is not None:
            if rank is None or world_size is None or not 0 <= rank < world_size:
                raise InputError(
                    f"rank is {rank}, world_size {world_size}; give both, with 0 ≤ rank < "
                    "world_size, or neither: torch.distributed's are the default"
                )
            return cls(rank, world_size, given=True)
        if (found := _initialised()) is not None:
            return cls(*found)
        named = (os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", ""))
        if all(value.isdecimal() for value in named) and int(named[0]) < int(named[1]):
            return cls(int(named[0]), int(named[1]))
        return cls()

    def check(self) -> None:
        """Refuse to deliver everything to each of several ranks."""
        found = _initialised()
        if not self.given and found is not None and found != (self.rank, self.world_size):
            raise InputError(
                f"this loader was made for rank {self.rank} of {self.world_size}, before "
                f"torch.distributed was initialised with rank {found[0]} of {found[1]}; make it "
                "afterwards, or pass rank= and world_size="
            )


def refuse_dispatch(loader: Any) -> None:
    """Refuse Accelerate's default for iterable datasets: rank 0 reads for all, and slices."""
    accelerate = sys.modules.get("accelerate.data_loader")
    if accelerate is None:
        return
    active = accelerate.GradientState().active_dataloader
    dispatches = isinstance(active, accelerate.DataLoaderDispatcher)
    if dispatches and getattr(active.dataset, "loader", active.dataset) is loader:
        raise InputError(
            "Accelerate would let rank 0 read this loader, slice its batches and send the slices "
            "to the others (dispatch_batches), but each rank has its own share; prepare it with "
            "softlabels.integrations.accelerate.prepare(accelerator, loader)"
        )


def _initialised() -> tuple[int, int] | None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None

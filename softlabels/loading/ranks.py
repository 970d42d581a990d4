"""Which rank of how many a loader delivers to, and that nobody else shares its batches out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from softlabels import ranks
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
        default = "torch.distributed's are the default"
        if (told := ranks.given(rank, world_size, default=default)) is not None:
            return cls(*told, given=True)
        return cls(*(ranks.of_torch() or (0, 1)))

    def check(self) -> None:
        """Refuse to deliver everything to each of several ranks."""
        found = ranks.initialised()
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

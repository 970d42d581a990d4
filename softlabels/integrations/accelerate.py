"""The loader under an Accelerator, whose own way with iterable datasets does not fit it.

`Accelerator.prepare` of a DataLoader over an iterable dataset lets rank 0 read, slice and send to
all (`dispatch_batches`, its default), or takes every W-th row. A loader's batches are shared out
among ranks already, so it must not be prepared that way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.data_loader import DataLoaderStateMixin  # type: ignore[import-untyped]
from accelerate.state import GradientState  # type: ignore[import-untyped]
from accelerate.utils import send_to_device  # type: ignore[import-untyped]

from softlabels.integrations.steps import Batch, Steps
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix


class Prepared(DataLoaderStateMixin):  # type: ignore[misc]
    """Batches on an accelerator's device, every rank reading its own; made by `prepare`.

    `Accelerator.prepare` and `prepare_data_loader` leave it as it is.

    Args:
        steps: what is delivered.
        accelerator: whose ranks and device.
    """

    def __init__(self, steps: Steps, accelerator: Accelerator) -> None:
        self.steps, self._device = steps, accelerator.device
        self.gradient_state = GradientState()
        # Accelerate's words: nothing is added to a last batch that it would have to cut off again.
        self._drop_last = True
        self._is_accelerate_prepared = True

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank; TypeError where the input is a stream."""
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        self.begin()
        try:
            for batch in self.steps:
                # At an epoch's end `accelerator.accumulate` lets the optimizer step.
                self.end_of_dataloader = self.steps.last
                yield send_to_device(batch, self._device, non_blocking=True)
        finally:
            self.end()

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is; `accelerator.save_state` asks for it."""
        return self.steps.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there; `accelerator.load_state` does it."""
        self.steps.load_state_dict(state)


def prepare(accelerator: Accelerator, loader: Loader | Mix) -> Prepared:
    """What `accelerator.prepare` is for other dataloaders.

    Each rank reads its own batches, which arrive on its device, `soft_labels` among them. The
    place in the data is in what `accelerator.save_state` writes and `load_state` restores:
    `skip_first_batches` must not be called. Each `iter()` goes on where the last one was left.

    Args:
        accelerator: made before the loader, which takes its rank from torch.distributed.
        loader: or mix, of this rank.

    Raises:
        InputError: the loader is another rank's, or none.
    """
    steps = Steps(loader)
    steps.check_ranks(accelerator.process_index, accelerator.num_processes)
    prepared = Prepared(steps, accelerator)
    accelerator.register_for_checkpointing(prepared)
    return prepared

"""Several loaders as one: batches of each, in the proportions asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from softlabels.errors import InputError
from softlabels.loading.fuse import normalised
from softlabels.loading.loader import Loader, count

Stop = Literal["shortest", "longest"]


class Mix(IterableDataset[dict[str, Any]]):
    """Iterate over it for one epoch of batches; made by `softlabels.mix`.

    At every step the loader gives the batch that is furthest behind its share, so that after n
    steps each has given its weight times n, to within one; nothing is drawn. A loader that ends
    before the others begins its next epoch. `state_dict` is theirs and one number for each.
    """

    def __init__(
        self, loaders: Sequence[Loader], names: Sequence[str], weights: Sequence[float], stop: Stop
    ) -> None:
        self.loaders, self._names = list(loaders), list(names)
        self._weights, self._stop = np.asarray(weights), stop
        self._taken, self._ended = [0] * len(self.loaders), [0] * len(self.loaders)
        self._reader = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise InputError(
                "a mix has threads of its own and no use for DataLoader's workers; pass "
                "num_workers=0, or iterate over it without a DataLoader"
            )
        self._reader += 1
        reader, over = self._reader, False
        batches = [iter(loader) for loader in self.loaders]
        while not over:
            if reader != self._reader:
                raise InputError(
                    "this mix has been iterated over or given a state elsewhere since, and is in "
                    "one place only; iterate over it anew"
                )
            index = self._next()
            loader, epoch = self.loaders[index], self.loaders[index].epoch
            batch = next(batches[index], None)
            if batch is None:  # its epoch had ended, and the next one begins
                batches[index] = iter(loader)
                batch = next(batches[index], None)
            if batch is None:
                raise InputError(f"the loader {self._names[index]!r} gives no batches")
            if "source" in batch:
                raise InputError(
                    f"the data of loader {self._names[index]!r} has a column 'source', which in a "
                    "mix says whose batch it is; rename it, or choose others: "
                    "sl.loader(…, columns=[…])"
                )
            self._taken[index] += 1
            self._ended[index] += loader.epoch > epoch
            if over := self._over():
                self._begin_anew()
            yield {**batch, "source": self._names[index]}

    def _begin_anew(self) -> None:
        """Another epoch of the mix begins every loader's next one."""
        self._taken, self._ended = [0] * len(self.loaders), [0] * len(self.loaders)
        for loader in self.loaders:
            state = loader.state_dict()
            loader.set_epoch(state["epoch"] + bool(state["seen"] or state["batch"]))

    def state_dict(self) -> dict[str, Any]:
        """Where the mix is, for `load_state_dict` or JSON."""
        loaders = [loader.state_dict() for loader in self.loaders]
        return {"version": 1, "taken": self._taken[:], "ended": self._ended[:], "loaders": loaders}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: the state is of another mix.
        """
        fits = state.get("version") == 1 and all(
            isinstance(state.get(name), list) and len(state[name]) == len(self.loaders)
            for name in ("loaders", "taken", "ended")
        )
        if not fits:
            raise InputError("this state is of another mix; its loaders must be the same")
        taken, ended = ([count(n, name) for n in state[name]] for name in ("taken", "ended"))
        for loader, its in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(its)
        self._taken, self._ended = taken, ended
        self._reader += 1

    def _next(self) -> int:
        """The loader that is furthest behind, the first of several."""
        step = sum(self._taken) + 1
        return int(np.argmax(self._weights * step - np.asarray(self._taken)))

    def _over(self) -> bool:
        return any(self._ended) if self._stop == "shortest" else all(self._ended)


def mix(
    loaders: Sequence[Loader] | Mapping[str, Loader],
    *,
    weights: Sequence[float] | None = None,
    stop: Stop = "longest",
) -> Mix:
    """Train on several datasets at once, each with its own labels.

    Args:
        loaders: of `softlabels.loader`, in a list or by name; a batch comes from one of them and
            says so in `batch["source"]`, its name or place.
        weights: how often each; equal by default.
        stop: an epoch ends when the "shortest" has ended, or when the "longest" has; then the
            others have begun again.

    Returns:
        a `Mix` of their batches, in an order that depends on the weights alone.

    Raises:
        InputError: no loaders, or weights that cannot be.
    """
    names = list(loaders) if isinstance(loaders, Mapping) else [str(i) for i in range(len(loaders))]
    parts = list(loaders.values()) if isinstance(loaders, Mapping) else list(loaders)
    if not parts:
        raise InputError("mix() needs at least one loader")
    if len(set(map(id, parts))) < len(parts):
        raise InputError(
            "a loader is given twice, but is at one place only; make two, or give it more weight"
        )
    if stop not in ("shortest", "longest"):
        raise InputError(f"stop is {stop!r}; it is 'shortest' or 'longest'")
    shares = normalised([1.0] * len(parts) if weights is None else weights, len(parts))
    if stop == "longest" and not all(shares):
        raise InputError("a loader of weight 0 never ends; leave it out, or stop='shortest'")
    return Mix(parts, names, shares, stop)

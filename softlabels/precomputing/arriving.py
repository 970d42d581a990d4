"""A unit's labels between the teacher's device and the CPU."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.labels import Labels, SoftLabels
from softlabels.precomputing.room import Dense, Room
from softlabels.precomputing.unit import Prepared
from softlabels.progress import NOTHING_SEEN, Seen


class Coming:
    """Labels on their way from the teacher's device to the CPU.

    Args:
        where: their positions, int64, (n,).
        labels: batch shape (n,). Those of a CUDA device are copied to page-locked memory after what
            it has to do already, and nobody waits for it.
    """

    def __init__(self, where: torch.Tensor, labels: Labels) -> None:
        self.where = where
        self._copied: torch.cuda.Event | None = None
        self._labels = labels.to("cpu", non_blocking=labels.device.type == "cuda")
        if labels.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(labels.device))

    @property
    def on_its_way(self) -> bool:
        """Whether `arrived` may have to wait."""
        return self._copied is not None

    def arrived(self) -> Labels:
        """The labels on the CPU; waits for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._labels


class Arriving:
    """A unit that the teacher is labelling, or has labelled; its last batch may be on its way.

    What an accelerator gave is copied while it computes the next batch, be it of the next unit.

    Args:
        prepared: the unit.
        room: where labels are put.
        dense: where probed positions are put.
        advance: told of every batch that came before `wait`: its tokens, the unit's, what was seen.

    Attributes:
        raised: records that the teacher raised at, and what.
        seen: what the labels that have come show of the teacher.
    """

    def __init__(
        self,
        prepared: Prepared,
        room: Room,
        dense: Dense,
        advance: Callable[[int, int, Seen], None],
    ) -> None:
        self.prepared, self.dense = prepared, dense
        self.raised: dict[int, str] = {}
        self.seen = NOTHING_SEEN
        self._room, self._advance = room, advance
        self._late: deque[tuple[int, list[Coming]]] = deque()

    def expect(self, records: NDArray[np.int64], coming: list[Coming]) -> None:
        """A batch is on its way: put the one before where it belongs, and this one if it is here.

        Args:
            records: of the batch.
            coming: its labels.
        """
        windows = self.prepared.windows
        self._late.append((int(windows.lengths[records].sum()), coming))
        while len(self._late) > any(part.on_its_way for part in coming):
            tokens, came = self._late.popleft()
            self._advance(tokens, windows.size, self.put(came))

    def put(self, coming: Iterable[Coming]) -> Seen:
        """Put labels where they belong as they arrive; returns what they show."""
        seen = NOTHING_SEEN
        for part in coming:
            labels = part.arrived()
            self._room.put(part.where, labels)
            seen += _shown_by(labels)
        self.seen += seen
        return seen

    def wait(self) -> None:
        """Wait for what is on its way."""
        while self._late:
            self.put(self._late.popleft()[1])

    @property
    def labels(self) -> Labels:
        """Of every wanted position, when all have come."""
        return self._room.labels

    @cached_property
    def failures(self) -> dict[int, str]:
        """Records that have no labels, and why, when all have come."""
        windows = self.prepared.windows
        owners = np.repeat(np.arange(len(windows)), windows.lengths)[windows.wanted]
        torn = np.unique(owners[~self._room.whole.numpy()]).tolist()
        return dict.fromkeys(torn, self._room.fault) | self.raised


def _shown_by(labels: Labels) -> Seen:
    if not isinstance(labels, SoftLabels):
        return replace(NOTHING_SEEN, positions=len(labels), mass=math.nan)
    hard = labels.hard_log_probs
    judged = None if hard is None else hard[~hard.isnan()]
    return Seen(
        positions=len(labels),
        mass=float(labels.log_probs.exp().sum()),
        nats=0.0 if judged is None else -float(judged.sum()),
        judged=0 if judged is None else len(judged),
    )

"""A unit's labels while they come, batch by batch in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.errors import TeacherError
from softlabels.inputs.windows import Windows
from softlabels.labels import SoftLabels
from softlabels.labelset.probes import Probes


class Room:
    """A unit's labels while they are put there; NaN before.

    Args:
        sampled: the entries have weights.
        keep_logits: hold the raw logits too, in the dtype of the first that come.
        logits_known: the teacher gives logits, which have a logsumexp.
    """

    def __init__(
        self,
        positions: int,
        k: int,
        temperatures: tuple[float, ...],
        *,
        sampled: bool = False,
        keep_logits: bool,
        logits_known: bool,
    ) -> None:
        self._empty = keep_logits

        def make() -> SoftLabels:
            def unknown(*shape: int) -> torch.Tensor:
                return torch.full((positions, *shape), torch.nan)

            return SoftLabels(
                ids=torch.zeros(positions, k, dtype=torch.int64),
                log_probs=unknown(k),
                logsumexp=unknown() if logits_known else None,
                log_tails=unknown(len(temperatures)) if temperatures else None,
                temperatures=temperatures,
                hard_log_probs=unknown(),
                logits=unknown(k) if keep_logits else None,
                sampled=sampled,
            )

        self._make = make

    @cached_property
    def labels(self) -> SoftLabels:
        """What is known of every position so far."""
        # Filled when the first ones come: an accelerator is at work by then and need not wait.
        return self._make()

    def put(self, where: torch.Tensor, labels: SoftLabels) -> None:
        """Labels of the positions `where`.

        Raises:
            TeacherError: the logits are of another dtype than the first ones.
        """
        if self._empty and self.labels.logits is not None and labels.logits is not None:
            narrow = self.labels.logits.to(labels.logits.dtype)
            self.labels, self._empty = replace(self.labels, logits=narrow), False
        for name in SoftLabels.FIELDS:
            room, values = getattr(self.labels, name), getattr(labels, name)
            if room is None:
                continue
            if values is None:
                raise TeacherError(f"the teacher's labels have no {name}, which the plan counts on")
            if room.dtype != values.dtype:
                raise TeacherError(
                    f"the teacher gave logits of {values.dtype}, and its first ones were "
                    f"{room.dtype}: where logits are kept bit for bit, all must be of one dtype"
                )
            room[where] = values

    @property
    def whole(self) -> torch.Tensor:
        """Which positions have labels that are numbers, bool, (positions,)."""
        if self.labels.logsumexp is not None:
            return torch.isfinite(self.labels.logsumexp)
        return ~self.labels.log_probs.isnan().any(-1)


class Coming:
    """Labels on their way from the teacher's device to the CPU.

    Args:
        where: their positions, int64, (n,).
        labels: batch shape (n,). Those of a CUDA device are copied to page-locked memory after what
            it has to do already, and nobody waits for it.
    """

    def __init__(self, where: torch.Tensor, labels: SoftLabels) -> None:
        self.where = where
        self._copied: torch.cuda.Event | None = None
        self._labels = labels.to("cpu", non_blocking=labels.ids.is_cuda)
        if labels.ids.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(labels.ids.device))

    @property
    def on_its_way(self) -> bool:
        """Whether `arrived` may have to wait."""
        return self._copied is not None

    def arrived(self) -> SoftLabels:
        """The labels on the CPU; waits for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._labels


class Dense:
    """Dense logits of a unit's probed positions, as they come.

    Args:
        chosen: bool, (positions,).
    """

    def __init__(self, chosen: NDArray[np.bool_]) -> None:
        self._chosen = torch.from_numpy(chosen)
        self._rows: dict[int, torch.Tensor] = {}

    def put(self, where: torch.Tensor, logits: torch.Tensor) -> None:
        """Logits, (n, V), of the positions `where`, (n,)."""
        hits = self._chosen[where].nonzero().squeeze(1)
        if len(hits):
            narrow = logits[hits.to(logits.device)].to("cpu")
            narrow = narrow.float() if narrow.dtype.itemsize > 4 else narrow
            self._rows |= zip(where[hits].tolist(), narrow.unbind(), strict=True)

    def probes(self, windows: Windows, lost: Iterable[int]) -> Probes | None:
        """Those whose record is not lost; None if there are none."""
        places = np.asarray(sorted(self._rows), np.int64)
        tokens = np.flatnonzero(windows.wanted)[places]
        records = np.searchsorted(windows.offsets, tokens, side="right") - 1
        gone = np.zeros(len(windows), bool)
        gone[list(lost)] = True
        kept = np.flatnonzero(~gone[records])
        if not len(kept):
            return None
        return Probes(
            records=(np.cumsum(~gone) - 1)[records[kept]],
            positions=(tokens - windows.offsets[records])[kept],
            logits=torch.stack([self._rows[place] for place in places[kept].tolist()]),
        )

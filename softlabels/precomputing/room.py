"""A unit's labels while they come, batch by batch in any order."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels import codecs
from softlabels.errors import TeacherError
from softlabels.format.plan import Plan
from softlabels.format.probes import Probes
from softlabels.inputs.windows import Windows
from softlabels.labels import BinaryLabels, Embeddings, Labels, SoftLabels
from softlabels.selection import Selection


class Room:
    """A unit's labels while they are put there; NaN before.

    Args:
        positions: how many there are.
        selection: what of each is kept.
        plan: what else the labels are.
        keep_logits: hold the raw logits too, in the dtype of the first that come.
    """

    def __init__(
        self, positions: int, selection: Selection, plan: Plan, *, keep_logits: bool
    ) -> None:
        self._positions, self._selection, self._plan = positions, selection, plan
        self._keep_logits = self._empty = keep_logits

    @cached_property
    def labels(self) -> Labels:
        """What is known of every position so far."""
        # Filled when the first ones come: an accelerator is at work by then and need not wait.
        count, selection, at = self._positions, self._selection, self._plan.temperatures

        def unknown(*shape: int) -> torch.Tensor:
            return torch.full((count, *shape), torch.nan)

        ids = torch.zeros(count, selection.k, dtype=torch.int64)
        match self._plan.kind:
            case "embedding":
                return Embeddings(unknown(selection.k))
            case "binary":
                classes = self._plan.teacher.classes
                at = at if selection.k < classes else ()
                floors = unknown(len(at)) if at else None
                return BinaryLabels(ids, unknown(selection.k), floors, at)
        return SoftLabels(
            ids=ids,
            log_probs=unknown(selection.k),
            logsumexp=unknown() if self._plan.teacher.logits_known else None,
            log_tails=unknown(len(at)) if at else None,
            temperatures=at,
            hard_log_probs=unknown(),
            logits=unknown(selection.k) if self._keep_logits else None,
            sampled=selection.sampled,
        )

    def put(self, where: torch.Tensor, labels: Labels) -> None:
        """Labels of the positions `where`.

        Raises:
            TeacherError: the logits are of another dtype than the first ones.
        """
        if self._empty and isinstance(labels, SoftLabels) and labels.logits is not None:
            narrow = self.labels.tensors()["logits"].to(labels.logits.dtype)
            self.labels, self._empty = self.labels.with_tensors({"logits": narrow}), False
        for name in self.labels.FIELDS:
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
        """Which positions have labels that are numbers and can be kept, bool, (positions,)."""
        match self.labels:
            case SoftLabels(logsumexp=torch.Tensor() as logsumexp):
                return torch.isfinite(logsumexp)
            case SoftLabels(log_probs=values):
                return ~values.isnan().any(-1)
            case BinaryLabels(log_odds=values):
                return torch.isfinite(values).all(-1)
            case Embeddings(vectors=values):
                return (values.abs() <= self._largest).all(-1)

    @property
    def fault(self) -> str:
        """What is wrong with a record of which a position is not whole."""
        if self._plan.kind != "embedding":
            return "the teacher's logits are NaN or infinite"
        return (
            "a number of the teacher's vector is NaN, or more than the codec "
            f"{self._plan.codec['name']} holds, {self._largest:g}"
        )

    @property
    def _largest(self) -> float:
        return codecs.largest(self._plan.codec)


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

"""The default: id-sorted byte planes, one frame a record, a third of `plain`'s bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs import curves, engines
from softlabels.codecs.frames import byte_planes, from_byte_planes
from softlabels.codecs.needs import Needs
from softlabels.codecs.packed import Packed, hard_log_probs, table_of
from softlabels.codecs.planes import Opened, Planes
from softlabels.codecs.ranks import less_floor, sort_entries
from softlabels.codecs.unpack import unpack_entries
from softlabels.labels import SoftLabels

Bytes = NDArray[np.uint8]


def scale_of(k: int) -> int:
    """The scale at which all fields together add 1.2e-4 nats of KL, up to k = 128: 44 · k^⅓.

    At one scale it grows as k^⅔ (benchmarks/bench_storage.py).
    """
    return min(curves.MAX_SCALE, round(44 * math.cbrt(k)))


@dataclass(frozen=True)
class Compact(Packed[SoftLabels]):
    """Probabilities and tails in one byte each.

    Error bounds: ids none; a probability p is stored as round(scale · p^⅓) where that is 3 or more,
    below within half a nat down to (3/scale)³ · e⁻³⁴, and the kept ones are rescaled to 1 − tail; a
    tail mass sin²θ with θ within 0.0047; logsumexps and hard-label log-probs within 2⁻¹¹ nats.
    Entries of log-prob −∞ are not stored.

    Attributes:
        scale: of the value codes, 1 to 223.
    """

    scale: int = 176
    name: ClassVar[str] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.scale <= curves.MAX_SCALE:
            raise ValueError(f"scale is {self.scale}; it must be from 1 to {curves.MAX_SCALE}")

    @property
    def planes(self) -> tuple[int, int]:
        return 1, 1 + len(self.temperatures) + 4 * self.logits_known + 4

    def to_planes(self, labels: SoftLabels) -> Planes:
        self.check(labels)
        log_probs = labels.log_probs.numpy()
        codes = curves.prob_codes(log_probs, self.scale)
        used = log_probs != -np.inf
        counts, gaps, codes = sort_entries(labels.ids.numpy(), codes, used, self.table)
        codes, floors = less_floor(codes, counts)
        return Planes(
            gaps=gaps,
            by_entry=[codes],
            by_position=[floors, *self._scalars(labels)],
            counts=counts,
        )

    def _scalars(self, labels: SoftLabels) -> list[Bytes]:
        """Planes of what a position has once."""
        planes: list[Bytes] = []
        if self.temperatures:
            assert labels.log_tails is not None
            planes += list(np.ascontiguousarray(curves.tail_codes(labels.log_tails.numpy()).T))
        if self.logits_known:
            assert labels.logsumexp is not None
            planes += byte_planes(curves.logsumexp_codes(labels.logsumexp.numpy()), 4)
        return planes + byte_planes(curves.hard_codes(hard_log_probs(labels)), 4)

    def unpacked(self, opened: Opened, device: torch.device) -> SoftLabels:
        compiled = engines.cpu().compact
        if compiled is None or not self.table.listed or 1.0 not in self.temperatures:
            return super().unpacked(opened, device)
        if device.type != "cpu":
            return super().unpacked(opened, device)
        ids, log_probs, log_tails, logsumexp, hard = map(
            torch.from_numpy,
            compiled(
                opened,
                self.k,
                of_rests=self.layout.of_rests,
                of_rank=self._narrow_ids,
                tails=len(self.temperatures),
                whole=self.temperatures.index(1.0),
                logits_known=self.logits_known,
            ),
        )
        return SoftLabels(
            classes=self.classes,
            ids=ids,
            log_probs=log_probs,
            logsumexp=logsumexp if self.logits_known else None,
            log_tails=log_tails,
            temperatures=self.temperatures,
            hard_log_probs=hard,
        )

    @cached_property
    def _narrow_ids(self) -> NDArray[np.uint32]:
        """The id of each rank: half of `table.ids`, so that more of it stays in cache."""
        return self.table.ids.astype(np.uint32)

    def to_labels(self, planes: Planes, device: torch.device) -> SoftLabels:
        floors, scalars = planes.by_position[0], list(planes.by_position[1:])
        tails = np.stack(scalars[: len(self.temperatures)], 1) if self.temperatures else None
        logsumexp = None
        if self.logits_known:
            values = curves.code_logsumexps(from_byte_planes(scalars[-8:-4]))
            logsumexp = torch.from_numpy(values).to(device)
        hard = torch.from_numpy(curves.code_hard(from_byte_planes(scalars[-4:]))).to(device)
        codes = planes.by_entry[0] + planes.repeat(floors)
        log_tails = None
        if tails is not None:
            log_tails = torch.from_numpy(curves.code_log_tails().take(tails)).to(device)
        kept = None
        if tails is not None and 1.0 in self.temperatures:
            kept = curves.code_log_kept().take(tails[:, self.temperatures.index(1.0)])
        ids, log_probs = unpack_entries(codes, planes, self.k, self.table, kept, device)
        return SoftLabels(
            classes=self.classes,
            ids=ids,
            log_probs=log_probs if kept is not None else self._at_most_all(log_probs),
            logsumexp=logsumexp,
            log_tails=log_tails,
            temperatures=self.temperatures,
            hard_log_probs=hard,
        )

    def _at_most_all(self, log_values: torch.Tensor) -> torch.Tensor:
        """Log-probs of values of which nothing says how much they sum to, but not more than all."""
        found = log_values - float(np.float32(3 * np.log(self.scale)))
        return found - found.exp().sum(-1, keepdim=True).clamp(min=1).log()

    @classmethod
    def untrained(cls, needs: Needs, labels: SoftLabels, number: int | None) -> Self:
        return cls(
            needs.classes,
            needs.k,
            needs.temperatures,
            table_of(labels, needs),
            needs.logits_known,
            scale=scale_of(needs.k),
        )

    def own_settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @classmethod
    def parse_own(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"scale": int(data["scale"])}

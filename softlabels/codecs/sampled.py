"""Entries of a sampled selection with their weights, in the packed layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs import curves
from softlabels.codecs.frames import byte_planes, from_byte_planes
from softlabels.codecs.needs import Needs
from softlabels.codecs.packed import Packed, hard_log_probs, table_of
from softlabels.codecs.planes import Planes
from softlabels.codecs.ranks import sort_entries
from softlabels.codecs.unpack import spread, unpack_ids
from softlabels.errors import InputError
from softlabels.labels import SoftLabels

Unsigned = NDArray[np.unsignedinteger[Any]]

MAX_DRAWS = (1 << 16) - 1
# A weight is a count of draws if it is one to within float32's rounding of its logarithm.
_ROUNDING = 2.0**-22


@dataclass(frozen=True)
class Sampled(Packed[SoftLabels]):
    """Unbiased weights: counts of a number of draws, exactly, or any positive numbers.

    Error bounds: ids none; of counts none; of other weights 2⁻¹¹ of their logarithm, from −55.999
    to 8; logsumexps and hard-label log-probs within 2⁻¹¹ nats. There are no tails: what is not kept
    has weight 0.

    Attributes:
        draws: of a position, at most 65,535: weights are counts / draws. None for other weights.
    """

    draws: int | None = None
    name: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperatures or not (self.draws is None or 1 <= self.draws <= MAX_DRAWS):
            raise ValueError(f"temperatures {self.temperatures}, draws {self.draws}")

    @property
    def _width(self) -> int:
        return 1 if self.draws is not None and self.draws <= 255 else 2

    @property
    def planes(self) -> tuple[int, int]:
        return self._width, 4 * self.logits_known + 4

    def to_planes(self, labels: SoftLabels) -> Planes:
        self.check(labels, sampled=True)
        log_weights = labels.log_probs.numpy()
        used = log_weights != -np.inf
        codes = np.where(used, self._codes(log_weights, used), 0)
        codes = codes.astype(np.uint8 if self._width == 1 else np.uint16)
        counts, gaps, codes = sort_entries(labels.ids.numpy(), codes, used, self.table)
        by_position = []
        if self.logits_known:
            assert labels.logsumexp is not None
            by_position += byte_planes(curves.logsumexp_codes(labels.logsumexp.numpy()), 4)
        by_position += byte_planes(curves.hard_codes(hard_log_probs(labels)), 4)
        return Planes(
            gaps=gaps,
            by_entry=byte_planes(codes, self._width),
            by_position=by_position,
            counts=counts,
        )

    def _codes(self, log_weights: NDArray[np.float32], used: NDArray[np.bool_]) -> Unsigned:
        if self.draws is None:
            found: Unsigned = curves.weight_codes(np.where(used, log_weights, np.float32(0)))
            return found
        wide = log_weights.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            drawn = np.exp(wide) * self.draws
            counts = np.rint(drawn)
            close = np.abs(drawn - counts) <= counts * (1 + np.abs(wide)) * _ROUNDING
        bad = used & ~(close & (counts >= 1) & (counts <= self.draws))
        if bad.any():
            weight = drawn[bad][0] / self.draws
            raise InputError(f"a weight of {weight:g} is no count of {self.draws} draws")
        exact: Unsigned = np.where(used, counts, 0).astype(np.uint32)
        return exact

    def to_labels(self, planes: Planes, device: torch.device) -> SoftLabels:
        codes = from_byte_planes(list(planes.by_entry))
        if self.draws is None:
            values = curves.code_log_weights(codes)
        else:
            with np.errstate(divide="ignore"):
                values = np.log(codes / self.draws).astype(np.float32)
        scalars = list(planes.by_position)
        logsumexp = None
        if self.logits_known:
            logsumexp = torch.from_numpy(curves.code_logsumexps(from_byte_planes(scalars[:4])))
        labels = SoftLabels(
            classes=self.classes,
            ids=unpack_ids(planes, self.k, self.table),
            log_probs=torch.from_numpy(spread(values, planes, self.k, -np.inf)),
            logsumexp=logsumexp,
            hard_log_probs=torch.from_numpy(curves.code_hard(from_byte_planes(scalars[-4:]))),
            sampled=True,
        )
        return labels if device.type == "cpu" else labels.to(device)

    @classmethod
    def untrained(cls, needs: Needs, labels: SoftLabels, number: int | None) -> Self:
        table = table_of(labels, needs)
        return cls(needs.classes, needs.k, (), table, needs.logits_known, draws=needs.draws)

    def own_settings(self) -> dict[str, Any]:
        return {"draws": self.draws}

    @classmethod
    def parse_own(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"draws": None if data["draws"] is None else int(data["draws"])}

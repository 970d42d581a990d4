"""The default of independent classes: id-sorted byte planes, log-odds on a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs.frames import byte_planes, from_byte_planes
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.needs import Needs
from softlabels.codecs.packed import Packed
from softlabels.codecs.planes import Planes, misfit
from softlabels.codecs.ranks import sort_entries
from softlabels.codecs.unpack import unpack_ids
from softlabels.errors import InputError
from softlabels.labels import BinaryLabels

# Log-odds are coded as round(s · asinh(z / 2)): evenly where probabilities change most, by ever
# wider steps where they no longer do. Beyond ±128 they are held: σ(128 / 4) is 1 − 10⁻¹⁴.
_EVEN, _FARTHEST = 2.0, 128.0
_FLOOR_BITS = 16
MIN_BITS, MAX_BITS = 4, 16


@dataclass(frozen=True)
class Binary(Packed[BinaryLabels]):
    """Log-odds in `bits` bits each, floors in 16.

    Error bounds: ids none; log-odds z within √(z² + 4) · (e^h − 1), h = 4.86 / (2^bits − 2), and
    held to ±128. So a class of log-odds up to ±128 adds at most (3.5 · max(1, T) / (2^bits − 2))²
    nats to T² times the KL at T: 7.4e-7 at T = 1 and 12 bits, 1.9e-4 at 8. Floors likewise, of 16
    bits.

    Attributes:
        bits: of a log-odds code, 4 to 16.
    """

    bits: int = 12
    name: ClassVar[str] = "binary"
    kind: ClassVar[str] = "binary"
    number: ClassVar[str | None] = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits is {self.bits}; it must be from {MIN_BITS} to {MAX_BITS}")

    @property
    def _width(self) -> int:
        return -(-self.bits // 8)

    @property
    def _at(self) -> tuple[float, ...]:
        """Temperatures of the floors; there are none where every class is kept."""
        return self.temperatures if self.k < self.classes else ()

    @property
    def planes(self) -> tuple[int, int]:
        return self._width, 2 * len(self._at)

    def to_planes(self, labels: BinaryLabels) -> Planes:
        if labels.k != self.k:
            # A place without an entry would be read as a class of probability ½.
            raise InputError(
                f"{labels.k} entries at a position; the codec was made for {self.k}, no fewer"
            )
        if labels.temperatures != self._at:
            raise InputError(
                f"labels hold floors at {labels.temperatures}, the codec writes {self._at}"
            )
        codes = odds_codes(labels.log_odds.numpy(), self.bits)
        kind = np.uint8 if self._width == 1 else np.uint16
        everything = np.ones(codes.shape, bool)
        ids = labels.ids.numpy()
        counts, gaps, codes = sort_entries(ids, codes.astype(kind), everything, self.table)
        by_position: list[NDArray[np.uint8]] = []
        if self._at:
            assert labels.floors is not None
            for floors in labels.floors.numpy().T:
                by_position += byte_planes(odds_codes(floors, _FLOOR_BITS), 2)
        return Planes(
            gaps=gaps,
            by_entry=byte_planes(codes, self._width),
            by_position=by_position,
            counts=counts,
        )

    def to_labels(self, planes: Planes, device: torch.device) -> BinaryLabels:
        if (planes.counts != self.k).any():
            raise misfit()
        codes = from_byte_planes(list(planes.by_entry))
        values = code_odds(self.bits).take(codes, mode="clip")
        floors = None
        if self._at:
            pairs = range(0, 2 * len(self._at), 2)
            held = [from_byte_planes(list(planes.by_position[at : at + 2])) for at in pairs]
            floors = torch.from_numpy(code_odds(_FLOOR_BITS).take(np.stack(held, 1), mode="clip"))
        labels = BinaryLabels(
            ids=unpack_ids(planes, self.k, self.table),
            log_odds=torch.from_numpy(values.reshape(-1, self.k)),
            floors=floors,
            temperatures=self._at,
            classes=self.classes,
        )
        return labels if device.type == "cpu" else labels.to(device)

    @classmethod
    def untrained(cls, needs: Needs, labels: BinaryLabels, number: int | None) -> Self:
        return cls(
            needs.classes,
            needs.k,
            needs.temperatures,
            IdTable.count(needs.classes, labels.ids.numpy()),
            logits_known=False,
            bits=cls.bits if number is None else number,
        )

    @classmethod
    def check_needs(cls, needs: Needs, number: int | None) -> None:
        if number is not None and not MIN_BITS <= number <= MAX_BITS:
            raise InputError(f"binary:{number}: a class takes {MIN_BITS} to {MAX_BITS} bits")

    def own_settings(self) -> dict[str, Any]:
        return {"bits": self.bits}

    @classmethod
    def parse_own(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"bits": int(data["bits"])}


def _most(bits: int) -> int:
    """The largest code on either side of 0."""
    return (1 << (bits - 1)) - 1


def _scale(bits: int) -> float:
    return _most(bits) / math.asinh(_FARTHEST / _EVEN)


def odds_codes(log_odds: NDArray[np.floating[Any]], bits: int) -> NDArray[np.uint32]:
    """Codes of log-odds, 0 to 2^bits − 2, the same shape; raises `InputError` for a NaN."""
    if np.isnan(log_odds).any():
        raise InputError("log-odds are NaN")
    held = np.clip(log_odds.astype(np.float64), -_FARTHEST, _FARTHEST)
    codes = np.rint(_scale(bits) * np.arcsinh(held / _EVEN)) + _most(bits)
    return codes.astype(np.uint32)


@cache
def code_odds(bits: int) -> NDArray[np.float32]:
    """The log-odds of each code, (2^bits − 1,), read-only; of 16 bits they take a millisecond."""
    codes = np.arange(2 * _most(bits) + 1) - _most(bits)
    odds = (_EVEN * np.sinh(codes / _scale(bits))).astype(np.float32)
    odds.flags.writeable = False
    return odds

"""The teacher's logits back bit for bit, in the packed layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs.frames import byte_planes, from_byte_planes
from softlabels.codecs.needs import Needs
from softlabels.codecs.packed import Packed, hard_log_probs, table_of
from softlabels.codecs.planes import Planes
from softlabels.codecs.ranks import less_floor, sort_entries
from softlabels.codecs.unpack import spread, unpack_ids
from softlabels.errors import InputError
from softlabels.labels import SoftLabels

Unsigned = NDArray[np.unsignedinteger[Any]]

# What a teacher computes in, by the name that the plan gives it.
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Lossless(Packed[SoftLabels]):
    """Logits in the teacher's own dtype; everything else float32, as it was computed.

    Error bound: none in any field. Log-probs are logits − logsumexp again. Entries of log-prob −∞
    are not stored.

    Attributes:
        dtype: of the logits: "bfloat16", "float16" or "float32".
    """

    dtype: str = "float32"
    name: ClassVar[str] = "lossless"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES or not self.logits_known:
            raise ValueError(f"dtype {self.dtype!r}, logits_known {self.logits_known}")

    @property
    def logits_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def _width(self) -> int:
        return self.logits_dtype.itemsize

    @property
    def planes(self) -> tuple[int, int]:
        return self._width, self._width + 4 * len(self.temperatures) + 8

    def to_planes(self, labels: SoftLabels) -> Planes:
        self.check(labels)
        assert labels.logsumexp is not None
        used = labels.log_probs.numpy() != -np.inf
        codes = ordered_bits(self._logits(labels))
        counts, gaps, codes = sort_entries(labels.ids.numpy(), codes, used, self.table)
        codes, floors = less_floor(codes, counts)
        scalars = [labels.logsumexp.numpy(), hard_log_probs(labels)]
        if self.temperatures:
            assert labels.log_tails is not None
            scalars = [*labels.log_tails.numpy().T, *scalars]
        by_position = byte_planes(floors, self._width)
        for values in scalars:
            by_position += byte_planes(_single(values).view(np.uint32), 4)
        return Planes(
            gaps=gaps,
            by_entry=byte_planes(codes, self._width),
            by_position=by_position,
            counts=counts,
        )

    def _logits(self, labels: SoftLabels) -> torch.Tensor:
        given = labels.logits
        if given is None:
            raise InputError("the codec lossless writes logits, and the labels hold none")
        if bool(given.isnan().any()):
            raise InputError("a logit is NaN")
        narrow = given.to(self.logits_dtype)
        if not torch.equal(narrow.to(given.dtype), given):
            raise InputError(
                f"the logits are {given.dtype}, which {self.dtype} cannot hold; the codec was made "
                f"for a teacher that gives {self.dtype}"
            )
        return narrow

    def to_labels(self, planes: Planes, device: torch.device) -> SoftLabels:
        kind = np.uint32 if self._width == 4 else np.uint16
        codes, floors = (
            from_byte_planes(list(given)).astype(kind)
            for given in (planes.by_entry, planes.by_position[: self._width])
        )
        codes = codes + planes.repeat(floors)
        least = ordered_bits(torch.tensor(-torch.inf, dtype=self.logits_dtype)).item()
        logits = from_ordered_bits(spread(codes, planes, self.k, least), self.logits_dtype)
        scalars = planes.by_position[self._width :]
        values = torch.from_numpy(
            np.stack(
                [
                    from_byte_planes(list(scalars[at : at + 4])).view(np.float32)
                    for at in range(0, len(scalars), 4)
                ],
                axis=1,
            )
        )
        labels = SoftLabels(
            classes=self.classes,
            ids=unpack_ids(planes, self.k, self.table),
            log_probs=logits.float() - values[:, -2:-1],
            logits=logits,
            logsumexp=values[:, -2].contiguous(),
            log_tails=values[:, :-2].contiguous() if self.temperatures else None,
            temperatures=self.temperatures,
            hard_log_probs=values[:, -1].contiguous(),
        )
        return labels if device.type == "cpu" else labels.to(device)

    @classmethod
    def untrained(cls, needs: Needs, labels: SoftLabels, number: int | None) -> Self:
        table = table_of(labels, needs)
        return cls(needs.classes, needs.k, needs.temperatures, table, dtype=_dtype(labels))

    @classmethod
    def check_needs(cls, needs: Needs, number: int | None) -> None:
        if not needs.logits_known:
            raise InputError(
                "the codec lossless keeps logits, and the teacher gives normalised values only; "
                "choose plain or compact"
            )

    def own_settings(self) -> dict[str, Any]:
        return {"dtype": self.dtype}

    @classmethod
    def parse_own(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"dtype": str(data["dtype"])}


def _dtype(labels: SoftLabels) -> str:
    """What the teacher gives its logits in; where it is not known float32, which holds them all."""
    if labels.logits is None or not len(labels):
        return "float32"
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(labels.logits.dtype, "float32")


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32, which they are in but for their dtype."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, np.float32)
    if not np.array_equal(narrow, values, equal_nan=True):
        raise InputError(f"the codec lossless writes float32, and these are {values.dtype}")
    return narrow


def ordered_bits(values: torch.Tensor) -> Unsigned:
    """The bits of floats as unsigned integers that ascend as the floats do."""
    size = values.dtype.itemsize
    signed, kind = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}[size]
    bits = values.contiguous().view(signed).numpy().view(kind)
    sign = kind(1 << (8 * size - 1))
    found: Unsigned = np.where(bits & sign, ~bits, bits | sign)
    return found


def from_ordered_bits(bits: Unsigned, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `ordered_bits`."""
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    raw = np.where(bits & sign, bits ^ sign, ~bits)
    signed = np.int16 if bits.itemsize == 2 else np.int32
    return torch.from_numpy(raw.view(signed)).view(dtype)

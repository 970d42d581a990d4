"""The codec that anyone can read: flat lists, float32, nothing quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs.unpack import CPU
from softlabels.errors import CorruptShardError, InputError
from softlabels.labels import SoftLabels

_UINT16_CLASSES = 1 << 16
# Offsets of an Arrow list are int32.
_MAX_LIST_VALUES = (1 << 31) - 1


@dataclass(frozen=True)
class Plain:
    """Flat list columns, one row a record; T positions of k entries are lists of T · k.

    Error bound: none; log-probs, logsumexps, log tails and hard-label log-probs are the teacher's
    float32 values bit for bit.

    Attributes:
        classes: V; ids are uint16 up to 65,536 classes, else uint32.
        temperatures: one log tail a position for each.
    """

    classes: int
    temperatures: tuple[float, ...]
    ordered: ClassVar[bool] = True
    packed_columns: ClassVar[list[str]] = []

    @property
    def fields(self) -> list[pa.Field]:
        floats = pa.list_(pa.float32())
        return [
            pa.field("ids", pa.list_(self.id_type), nullable=False),
            pa.field("log_probs", floats, nullable=False),
            pa.field("logsumexp", floats),
            pa.field("log_tails", floats),
            pa.field("hard_log_probs", floats),
        ]

    @property
    def id_type(self) -> pa.DataType:
        """The narrowest unsigned type that holds every class id."""
        return pa.uint16() if self.classes <= _UINT16_CLASSES else pa.uint32()

    @property
    def split_columns(self) -> list[str]:
        return [f"{field.name}.list.element" for field in self.fields]

    @property
    def logits_dtype(self) -> torch.dtype | None:
        return None

    def encode(self, labels: SoftLabels, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        if labels.sampled:
            raise InputError("weights of a sampled selection are written by the codec sampled")
        ids = labels.ids.numpy()
        self._check_ids(ids)
        hard = None
        if labels.hard_log_probs is not None:
            values = labels.hard_log_probs.numpy()
            hard = _lists(values, offsets, pa.float32(), unknown=np.isnan(values))
        columns = {
            "ids": _lists(ids, offsets, self.id_type),
            "log_probs": _lists(labels.log_probs.numpy(), offsets, pa.float32()),
            "logsumexp": _optional(labels.logsumexp, offsets),
            "log_tails": _optional(labels.log_tails, offsets),
            "hard_log_probs": hard,
        }
        absent = pa.nulls(len(offsets) - 1, pa.list_(pa.float32()))
        return {name: absent if array is None else array for name, array in columns.items()}

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[SoftLabels, NDArray[np.int64]]:
        log_probs, entry_offsets = _flat(table, "log_probs")
        ids, id_offsets = _flat(table, "ids")
        positions = table.column("positions").to_numpy()
        offsets = np.concatenate([[0], np.cumsum(positions, dtype=np.int64)])
        count = int(offsets[-1])
        k = len(ids) // count if count else 1
        if not (
            np.array_equal(entry_offsets, id_offsets) and np.array_equal(id_offsets, offsets * k)
        ):
            raise CorruptShardError("the lists of ids and log_probs do not fit the positions")
        scalars = {
            name: _scalars(table, name, offsets, width)
            for name, width in (
                ("logsumexp", 1),
                ("log_tails", len(self.temperatures)),
                ("hard_log_probs", 1),
            )
        }
        tails = scalars["log_tails"]
        labels = SoftLabels(
            ids=torch.from_numpy(ids.astype(np.int64)).view(count, k),
            log_probs=torch.from_numpy(log_probs).view(count, k),
            logsumexp=scalars["logsumexp"],
            log_tails=None if tails is None else tails.view(count, len(self.temperatures)),
            temperatures=() if tails is None else self.temperatures,
            hard_log_probs=scalars["hard_log_probs"],
            classes=self.classes,
        )
        return labels if device.type == "cpu" else labels.to(device), offsets

    def _check_ids(self, ids: NDArray[np.int64]) -> None:
        low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        if low < 0 or high >= self.classes:
            raise InputError(
                f"class id {low if low < 0 else high} is outside the {self.classes} classes of "
                f"the codec, 0 … {self.classes - 1}"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": "plain",
            "classes": self.classes,
            "temperatures": list(self.temperatures),
            "id_type": str(self.id_type),
            "value_type": "float32",
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["classes"]), tuple(float(t) for t in data["temperatures"]))


def _lists(
    values: NDArray[Any],
    offsets: NDArray[np.int64],
    kind: pa.DataType,
    *,
    unknown: NDArray[np.bool_] | None = None,
) -> pa.Array:
    """Rows of `values`, shape (N,) or (N, m), as one flat list a record; `unknown` become null."""
    width = 1 if values.ndim == 1 else values.shape[1]
    if offsets[-1] * width > _MAX_LIST_VALUES:
        raise InputError(
            f"{offsets[-1]:,} positions of {width:,} values are {offsets[-1] * width:,} in one row "
            f"group, more than an Arrow list's {_MAX_LIST_VALUES:,}; choose a smaller max_length "
            "or k"
        )
    narrow = values.reshape(-1).astype(kind.to_pandas_dtype())
    flat = pa.array(narrow, kind, mask=unknown)
    return pa.ListArray.from_arrays(pa.array((offsets * width).astype(np.int32)), flat)


def _optional(values: torch.Tensor | None, offsets: NDArray[np.int64]) -> pa.Array | None:
    return None if values is None else _lists(values.numpy(), offsets, pa.float32())


def _flat(
    table: pa.Table, name: str, *, unknown: bool = False
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column's values and offsets, without a copy where the values have no nulls.

    Args:
        unknown: whether values may be null; they become NaN.
    """
    column = table.column(name).combine_chunks()
    lists = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    # flatten() honours the slice that offsets describe.
    flat = lists.flatten()
    if lists.null_count or (flat.null_count and not unknown):
        raise CorruptShardError(f"{name} holds nulls where the format has none")
    values = flat.to_numpy(zero_copy_only=False)
    return values if values.flags.writeable else values.copy(), offsets - offsets[0]


def _scalars(
    table: pa.Table, name: str, offsets: NDArray[np.int64], width: int
) -> torch.Tensor | None:
    """A column of `width` float32 values a position; None where it is null throughout."""
    if table.column(name).null_count == len(table):
        return None
    values, found = _flat(table, name, unknown=name == "hard_log_probs")
    if not np.array_equal(found, offsets * width):
        raise CorruptShardError(f"the lists of {name} do not fit the positions")
    return torch.from_numpy(values.astype(np.float32, copy=False))

"""The codec that anyone can read: flat lists, float32, nothing quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.codecs.held import ByColumns
from softlabels.codecs.lists import check_ids, from_lists, id_type, to_lists
from softlabels.codecs.needs import Needs
from softlabels.codecs.unpack import CPU
from softlabels.errors import CorruptShardError, InputError
from softlabels.labels import SoftLabels


@dataclass(frozen=True)
class Plain(ByColumns):
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
    kind: ClassVar[str] = "categorical"

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
        """Of the ids."""
        return id_type(self.classes)

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
        check_ids(ids, self.classes)
        hard = None
        if labels.hard_log_probs is not None:
            values = labels.hard_log_probs.numpy()
            hard = to_lists(values, offsets, pa.float32(), unknown=np.isnan(values))
        columns = {
            "ids": to_lists(ids, offsets, self.id_type),
            "log_probs": to_lists(labels.log_probs.numpy(), offsets, pa.float32()),
            "logsumexp": _optional(labels.logsumexp, offsets),
            "log_tails": _optional(labels.log_tails, offsets),
            "hard_log_probs": hard,
        }
        absent = pa.nulls(len(offsets) - 1, pa.list_(pa.float32()))
        return {name: absent if array is None else array for name, array in columns.items()}

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[SoftLabels, NDArray[np.int64]]:
        log_probs, entry_offsets = from_lists(table, "log_probs")
        ids, id_offsets = from_lists(table, "ids")
        positions = numpy_of(table.column("positions"))
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

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        return cls(needs.classes, needs.temperatures)

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


def _optional(values: torch.Tensor | None, offsets: NDArray[np.int64]) -> pa.Array | None:
    return None if values is None else to_lists(values.numpy(), offsets, pa.float32())


def _scalars(
    table: pa.Table, name: str, offsets: NDArray[np.int64], width: int
) -> torch.Tensor | None:
    """A column of `width` float32 values a position; None where it is null throughout."""
    if table.column(name).null_count == len(table):
        return None
    values, found = from_lists(table, name, unknown=name == "hard_log_probs")
    if not np.array_equal(found, offsets * width):
        raise CorruptShardError(f"the lists of {name} do not fit the positions")
    return torch.from_numpy(values.astype(np.float32, copy=False))

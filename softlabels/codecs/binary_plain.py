"""Independent classes as anyone can read them: flat lists, float32, nothing quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs.held import ByColumns
from softlabels.codecs.lists import check_ids, id_type, rows_of, to_lists
from softlabels.codecs.needs import Needs
from softlabels.codecs.unpack import CPU
from softlabels.errors import CorruptShardError, InputError
from softlabels.labels import BinaryLabels


@dataclass(frozen=True)
class BinaryPlain(ByColumns):
    """Flat list columns, one row a record; T positions of k entries are lists of T · k.

    Error bound: none; log-odds and floors are the teacher's float32 values bit for bit.

    Attributes:
        classes: V; ids are uint16 up to 65,536 classes, else uint32.
        temperatures: one floor a position for each; none where every class is kept.
    """

    classes: int
    temperatures: tuple[float, ...]
    ordered: ClassVar[bool] = True
    packed_columns: ClassVar[list[str]] = []
    logits_dtype: ClassVar[torch.dtype | None] = None
    kind: ClassVar[str] = "binary"

    @property
    def fields(self) -> list[pa.Field]:
        floats = pa.list_(pa.float32())
        return [
            pa.field("ids", pa.list_(id_type(self.classes)), nullable=False),
            pa.field("log_odds", floats, nullable=False),
            pa.field("floors", floats),
        ]

    @property
    def split_columns(self) -> list[str]:
        return [f"{field.name}.list.element" for field in self.fields]

    def encode(self, labels: BinaryLabels, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        ids = labels.ids.numpy()
        check_ids(ids, self.classes)
        floors = pa.nulls(len(offsets) - 1, pa.list_(pa.float32()))
        if labels.floors is not None:
            if labels.temperatures != self.temperatures:
                raise InputError(
                    f"labels hold floors at {labels.temperatures}, the codec writes "
                    f"{self.temperatures}"
                )
            floors = to_lists(labels.floors.numpy(), offsets, pa.float32())
        return {
            "ids": to_lists(ids, offsets, id_type(self.classes)),
            "log_odds": to_lists(labels.log_odds.numpy(), offsets, pa.float32()),
            "floors": floors,
        }

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[BinaryLabels, NDArray[np.int64]]:
        log_odds, offsets = rows_of(table, "log_odds", None)
        ids, _ = rows_of(table, "ids", None)
        if ids.shape != log_odds.shape:
            raise CorruptShardError("the lists of ids and log_odds do not fit each other")
        floors, at = None, tuple[float, ...]()
        if table.column("floors").null_count < len(table):
            at = self.temperatures
            floors = torch.from_numpy(rows_of(table, "floors", len(at))[0])
        labels = BinaryLabels(
            ids=torch.from_numpy(ids.astype(np.int64)),
            log_odds=torch.from_numpy(log_odds),
            floors=floors,
            temperatures=at,
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
            "name": "binary_plain",
            "classes": self.classes,
            "temperatures": list(self.temperatures),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["classes"]), tuple(float(t) for t in data["temperatures"]))

"""What the packed codecs have in common: sorted ids, one frame a record, and their settings."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs.frames import train_dictionary
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.needs import Made, Needs
from softlabels.codecs.planes import PACKED_FIELDS, Layout, Opened, Planes, Sealed, join
from softlabels.codecs.ranks import rest_width
from softlabels.codecs.unpack import CPU
from softlabels.errors import InputError
from softlabels.labels import BinaryLabels, SoftLabels

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]
L = TypeVar("L", SoftLabels, BinaryLabels)

MAX_CLASSES = 1 << 31
# What a dictionary is trained on. Of samples of another length it is as good (bench_storage.py).
_SAMPLE_POSITIONS = 4
# Entries, of 2,048 positions at k = 64, whose temporaries stay in cache: a third faster than all at
# once.
_BLOCK_ENTRIES = 1 << 17


@dataclass(frozen=True)
class Packed(Made, ABC, Generic[L]):
    """Entries by ascending rank of their id; a record is one zstd frame in the column `packed`.

    Attributes:
        classes: V, at most 2³¹.
        k: entries at a position, at most.
        temperatures: one log tail a position for each.
        table: class ids by descending frequency.
        logits_known: whether there are logsumexps.
        dictionary: zstd's, for records of fewer than 96 positions; empty for none.
    """

    classes: int
    k: int
    temperatures: tuple[float, ...]
    table: IdTable
    logits_known: bool = True
    dictionary: bytes = b""

    name: ClassVar[str]
    kind: ClassVar[str] = "categorical"
    ordered: ClassVar[bool] = False
    split_columns: ClassVar[list[str]] = []
    dictionary_columns: ClassVar[list[str]] = []
    packed_columns: ClassVar[list[str]] = ["packed"]

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.classes <= MAX_CLASSES:
            raise ValueError(
                f"k = {self.k}, {self.classes} classes: k is at least 1 and at most the classes, "
                f"they at most {MAX_CLASSES}"
            )

    @property
    def fields(self) -> list[pa.Field]:
        return PACKED_FIELDS

    @property
    def logits_dtype(self) -> torch.dtype | None:
        return None

    def encode(self, labels: L, offsets: Int64s) -> dict[str, pa.Array]:
        size = max(1, _BLOCK_ENTRIES // labels.k)
        blocks = range(0, max(1, len(labels)), size)
        parts = [self.to_planes(labels[at : at + size]) for at in blocks]
        return self.layout.pack(join(parts), offsets)

    def hold(self, table: pa.Table) -> SealedLabels[L]:
        return SealedLabels(self, self.layout.seal(table))

    def decode(self, table: pa.Table, device: torch.device = CPU) -> tuple[L, Int64s]:
        return self.hold(table).labels(device)

    def unpacked(self, opened: Opened, device: torch.device) -> L:
        """Labels of decompressed records, of batch shape (positions,)."""
        return self.to_labels(self.layout.unpack(opened), device)

    def trained(self, labels: L) -> Self:
        """This codec with a dictionary for records like these."""
        offsets = np.arange(0, len(labels) + 1, _SAMPLE_POSITIONS)
        samples = self.layout.records(self.to_planes(labels), offsets)
        return replace(self, dictionary=train_dictionary([b"".join(record) for record in samples]))

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        labels = pilot()
        codec = cls.untrained(needs, labels, number)
        return codec.trained(labels) if len(labels) else codec

    @classmethod
    @abstractmethod
    def untrained(cls, needs: Needs, labels: L, number: int | None) -> Self:
        """The codec for labels like these, without a dictionary.

        Args:
            number: that followed its name.
        """

    @abstractmethod
    def to_planes(self, labels: L) -> Planes:
        """Bytes of labels of batch shape (positions,)."""

    @abstractmethod
    def to_labels(self, planes: Planes, device: torch.device) -> L:
        """The inverse of `to_planes`."""

    @property
    @abstractmethod
    def planes(self) -> tuple[int, int]:
        """How many planes there are of entries, beside their gaps, and of positions."""

    @cached_property
    def layout(self) -> Layout:
        """Where they stand in a frame."""
        return Layout(self.k, rest_width(self.classes), *self.planes, self.dictionary)

    def check(self, labels: SoftLabels, *, sampled: bool = False) -> None:
        """Refuse distributions that the codec was not made for.

        Raises:
            InputError: saying what they lack.
        """
        self.check_k(labels.k)
        if labels.sampled != sampled:
            kinds = {True: "weights of a sampled selection", False: "probabilities"}
            raise InputError(
                f"the labels hold {kinds[labels.sampled]}, the codec {self.name} writes "
                f"{kinds[sampled]}"
            )
        if self.temperatures and labels.temperatures != self.temperatures:
            raise InputError(
                f"labels hold log tails at {labels.temperatures}, the codec writes "
                f"{self.temperatures}"
            )
        if self.logits_known and labels.logsumexp is None:
            raise InputError("labels without logsumexp, but the teacher's logits are known")

    def check_k(self, k: int) -> None:
        """Refuse more entries than the codec was made for; raises `InputError`."""
        if k > self.k:
            raise InputError(f"{k} entries at a position; the codec was made for {self.k}")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": self.classes,
            "k": self.k,
            "temperatures": list(self.temperatures),
            "table": self.table.to_text(),
            "logits_known": self.logits_known,
            "dictionary": base64.b64encode(self.dictionary).decode(),
            **self.own_settings(),
        }

    def own_settings(self) -> dict[str, Any]:
        """What only this codec has."""
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        classes = int(data["classes"])
        made = cls(
            classes=classes,
            k=int(data["k"]),
            temperatures=tuple(float(t) for t in data["temperatures"]),
            table=IdTable.from_text(classes, data["table"]),
            logits_known=bool(data["logits_known"]),
            dictionary=base64.b64decode(data.get("dictionary", ""), validate=True),
            **cls.parse_own(data),
        )
        _ = made.layout  # what is wrong with it is found here, not at the first record
        return made

    @classmethod
    def parse_own(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `own_settings`."""
        return {}


@dataclass(frozen=True)
class SealedLabels(Generic[L]):
    """Rows whose frames are not opened yet.

    Attributes:
        codec: whose they are.
        sealed: the frames.
    """

    codec: Packed[L]
    sealed: Sealed

    @property
    def nbytes(self) -> int:
        return self.sealed.nbytes

    @classmethod
    def picked(cls, parts: Sequence[tuple[Self, int, int]]) -> Self:
        sealed = Sealed.picked([(part.sealed, start, stop) for part, start, stop in parts])
        return cls(parts[0][0].codec, sealed)

    def labels(self, device: torch.device) -> tuple[L, Int64s]:
        opened = self.codec.layout.open(self.sealed)
        return self.codec.unpacked(opened, device), self.sealed.offsets


def table_of(labels: SoftLabels, needs: Needs) -> IdTable:
    """The classes by how often they are among the entries of a pilot."""
    return IdTable.count(needs.classes, labels.ids[labels.log_probs > -torch.inf].numpy())


def hard_log_probs(labels: SoftLabels) -> NDArray[np.float32]:
    """Of each position, NaN where there is none, (N,)."""
    if labels.hard_log_probs is None:
        return np.full(len(labels), np.nan, np.float32)
    return labels.hard_log_probs.numpy()

"""SoftLabels ↔ Arrow columns; one codec a file, each writes itself as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.codecs.compact import Compact
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.plain import Plain
from softlabels.errors import InputError, UnsupportedFormatError, quoted
from softlabels.labels import SoftLabels

__all__ = ["Codec", "Compact", "Needs", "Plain", "check_name", "from_json", "resolve"]


class Codec(Protocol):
    """Labels of many records, one after another, to columns with one row a record, and back."""

    @property
    def fields(self) -> list[pa.Field]:
        """The columns it writes."""

    @property
    def split_columns(self) -> list[str]:
        """Parquet leaf columns to store with BYTE_STREAM_SPLIT."""

    @property
    def packed_columns(self) -> list[str]:
        """Columns that it has compressed itself."""

    @property
    def ordered(self) -> bool:
        """Whether entries come back in descending log-prob."""

    def encode(self, labels: SoftLabels, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Columns of R records; record i owns positions offsets[i]:offsets[i + 1], (R + 1,)."""

    def decode(self, table: pa.Table) -> tuple[SoftLabels, NDArray[np.int64]]:
        """Labels of batch shape (positions,), and their offsets, (R + 1,)."""

    def to_json(self) -> dict[str, Any]:
        """Name and every setting."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_json` described."""


_CODECS: dict[str, type[Codec]] = {"plain": Plain, "compact": Compact}


@dataclass(frozen=True)
class Needs:
    """What a codec is made for.

    Attributes:
        classes: V.
        k: entries at a position, at most.
        temperatures: one log tail a position for each.
        logits_known: whether there are logsumexps.
    """

    classes: int
    k: int
    temperatures: tuple[float, ...]
    logits_known: bool


def check_name(name: str) -> None:
    """Raise `InputError` if there is no such codec."""
    if name not in _CODECS:
        raise InputError(f"there is no codec {quoted(name)}; choose from {', '.join(_CODECS)}")


def resolve(name: str, needs: Needs, *, pilot: Callable[[], NDArray[np.int64]]) -> Codec:
    """The codec of that name.

    Args:
        pilot: labels a sample of the data; the class ids that were kept, in any shape.

    Raises:
        InputError: there is no such codec.
    """
    check_name(name)
    if name == "plain":
        return Plain(needs.classes, needs.temperatures)
    return Compact(
        classes=needs.classes,
        k=needs.k,
        temperatures=needs.temperatures,
        table=IdTable.count(needs.classes, pilot()),
        logits_known=needs.logits_known,
    )


def from_json(data: Mapping[str, Any]) -> Codec:
    """The codec that a plan describes.

    Raises:
        UnsupportedFormatError: it is not known to this version.
    """
    name = str(data.get("name"))
    if name not in _CODECS:
        raise UnsupportedFormatError(
            f"the label set is written with the codec {quoted(name)}, which this version does not "
            f"know (it knows {', '.join(_CODECS)}); upgrade softlabels"
        )
    try:
        return _CODECS[name].from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedFormatError(
            f"the label set's settings of the codec {name} cannot be read: {quoted(repr(error))}"
        ) from None

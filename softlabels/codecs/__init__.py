"""SoftLabels ↔ Arrow columns; one codec a file, each writes itself as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.codecs.plain import Plain
from softlabels.errors import InputError, UnsupportedFormatError, quoted
from softlabels.labels import SoftLabels

__all__ = ["Codec", "Plain", "from_json", "resolve"]


class Codec(Protocol):
    """Labels of many records, one after another, to columns with one row a record, and back."""

    @property
    def fields(self) -> list[pa.Field]:
        """The columns it writes."""

    @property
    def split_columns(self) -> list[str]:
        """Parquet leaf columns to store with BYTE_STREAM_SPLIT."""

    def encode(self, labels: SoftLabels, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Columns of R records; record i owns positions offsets[i]:offsets[i + 1], (R + 1,)."""

    def decode(self, table: pa.Table) -> tuple[SoftLabels, NDArray[np.int64]]:
        """Labels of batch shape (positions,), and their offsets, (R + 1,)."""

    def to_json(self) -> dict[str, Any]:
        """Name and every setting."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_json` described."""


_CODECS: dict[str, type[Codec]] = {"plain": Plain}


def resolve(name: str, *, classes: int, temperatures: Sequence[float]) -> Codec:
    """The codec of that name, for so many classes.

    Raises:
        InputError: there is no such codec.
    """
    if name not in _CODECS:
        raise InputError(f"there is no codec {quoted(name)}; choose from {', '.join(_CODECS)}")
    return _CODECS[name].from_json({"classes": classes, "temperatures": list(temperatures)})


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

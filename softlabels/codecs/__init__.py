"""Labels ↔ Arrow columns; one codec a file, each writes itself as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.codecs import product, vectors
from softlabels.codecs.binary import Binary
from softlabels.codecs.binary_plain import BinaryPlain
from softlabels.codecs.compact import Compact
from softlabels.codecs.held import Held
from softlabels.codecs.int8 import Int8
from softlabels.codecs.lossless import Lossless
from softlabels.codecs.needs import Needs
from softlabels.codecs.plain import Plain
from softlabels.codecs.product import Product
from softlabels.codecs.sampled import Sampled
from softlabels.codecs.unpack import CPU
from softlabels.codecs.vectors import Vectors
from softlabels.errors import InputError, UnsupportedFormatError, quoted
from softlabels.labels import Labels

__all__ = [
    "CPU",
    "PRESETS",
    "Binary",
    "BinaryPlain",
    "Codec",
    "Compact",
    "Held",
    "Int8",
    "Lossless",
    "Needs",
    "Plain",
    "Preset",
    "Product",
    "Sampled",
    "Vectors",
    "check",
    "default",
    "from_json",
    "names",
    "preset",
    "resolve",
]


class Codec(Protocol):
    """Labels of many records, one after another, to columns with one row a record, and back.

    Attributes:
        kind: of the labels that it writes: "categorical", "binary" or "embedding".
        number: the setting that a number after its name stands for, as in "binary:8"; or None.
    """

    kind: ClassVar[str]
    number: ClassVar[str | None]

    @property
    def fields(self) -> list[pa.Field]:
        """The columns it writes."""

    @property
    def split_columns(self) -> list[str]:
        """Parquet leaf columns to store with BYTE_STREAM_SPLIT."""

    @property
    def dictionary_columns(self) -> list[str]:
        """Parquet leaf columns to store by a dictionary."""

    @property
    def packed_columns(self) -> list[str]:
        """Columns that it has compressed itself."""

    @property
    def ordered(self) -> bool:
        """Whether entries come back in descending log-prob."""

    @property
    def logits_dtype(self) -> torch.dtype | None:
        """Of the raw logits that it keeps bit for bit; None if it keeps none."""

    def encode(self, labels: Any, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Columns of R records; record i owns positions offsets[i]:offsets[i + 1], (R + 1,)."""

    def hold(self, table: pa.Table) -> Held:
        """Rows still encoded, from their columns and `positions`; large values are not copied.

        Raises:
            CorruptShardError: columns contradict each other.
        """

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[Labels, NDArray[np.int64]]:
        """Labels of batch shape (positions,), on `device`, and their offsets, (R + 1,)."""

    @classmethod
    def check_needs(cls, needs: Needs, number: int | None) -> None:
        """Refuse what it cannot be made for, before there is data; raises `InputError`."""

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        """The codec for some labels.

        Args:
            pilot: as `resolve` takes it; asked where it learns.
            name: under which it stands in the table.
            number: that followed its name.

        Raises:
            InputError: the pilot is not enough to learn from.
        """

    def to_json(self) -> dict[str, Any]:
        """Name and every setting."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_json` described."""


# By name; the first one of a kind is its default. A new codec is a file here and a line there.
_CODECS: dict[str, type[Codec]] = {
    "compact": Compact,
    "lossless": Lossless,
    "plain": Plain,
    "sampled": Sampled,
    "binary": Binary,
    "binary_plain": BinaryPlain,
    "float16": Vectors,
    "float32": Vectors,
    "int8": Int8,
    "product": Product,
}


@dataclass(frozen=True)
class Preset:
    """A codec, and how many entries it is meant for.

    Attributes:
        codec: its name.
        k: entries at a position where the user names no selection; vectors are kept whole.
    """

    codec: str
    k: int = 64


# By intent; docs/RESULTS.md has the measured bytes and KL of each.
PRESETS = {"tiny": Preset("compact", k=8)} | {name: Preset(name) for name in _CODECS}


def default(*, sampled: bool, kind: str = "categorical") -> str:
    """The codec where none is named, of a kind of label; of weights, or of probabilities."""
    fitting = (name for name, each in _CODECS.items() if each.kind == kind)
    return "sampled" if sampled else next(fitting)


def names(kind: str = "categorical") -> str:
    """The codecs of a kind of label, for people; weights have one of their own."""
    fitting = (n for n, each in PRESETS.items() if _CODECS[each.codec].kind == kind)
    return ", ".join(name for name in fitting if name != "sampled")


def split(name: str) -> tuple[str, int | None]:
    """A codec's name, and the number after it, which is one of its settings (`Codec.number`).

    Raises:
        InputError: another codec has a number, or it is none.
    """
    base, colon, number = name.partition(":")
    if not colon:
        return base, None
    setting = _CODECS[base].number if base in _CODECS else None
    if setting is None or not (number.isascii() and number.isdecimal()) or not int(number):
        taking = " and ".join(f"{n}:{c.number}" for n, c in _CODECS.items() if c.number)
        raise InputError(
            f"the codec {quoted(name)}: a number from 1 on may follow some names: {taking}"
        )
    return base, int(number)


def preset(name: str, kind: str = "categorical") -> Preset:
    """The preset of that name, and a number after it; raises `InputError` if there is none."""
    base, number = split(name)
    if base not in PRESETS:
        raise InputError(f"there is no codec {quoted(name)}; choose from {names(kind)}")
    return PRESETS[base] if number is None else replace(PRESETS[base], codec=name)


def largest(settings: Mapping[str, Any]) -> float:
    """Of a vector's numbers, what a codec that wrote itself as JSON can hold."""
    return {"float16": vectors.LARGEST, "product": product.LARGEST}.get(
        str(settings.get("name")), np.finfo(np.float32).max.item()
    )


def is_same(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a codec that wrote itself as JSON is the one of that name and number."""
    base, number = split(name)
    return settings.get("name") == base and (
        number is None or settings.get(str(_CODECS[base].number)) == number
    )


def check(name: str, needs: Needs) -> None:
    """Refuse a codec that cannot write this.

    Raises:
        InputError: saying why, and which can.
    """
    name, number = split(name)
    known = _CODECS.get(PRESETS[name].codec if name in PRESETS else name)
    if known is None:
        raise InputError(f"there is no codec {quoted(name)}; choose from {names(needs.kind)}")
    if known.kind != needs.kind:
        raise InputError(
            f"the codec {name} writes labels of the kind {known.kind}, and these are "
            f"{needs.kind}; choose from {names(needs.kind)}"
        )
    if needs.sampled != (known is Sampled):
        kinds = "weights, which sampled alone writes" if needs.sampled else "probabilities"
        way_out = "leave out codec=" if needs.sampled else f"choose from {names(needs.kind)}"
        raise InputError(f"the selection gives {kinds}, and the codec is {name}; {way_out}")
    known.check_needs(needs, number)


def resolve(name: str, needs: Needs, *, pilot: Callable[[], Any]) -> Codec:
    """The codec of that name, with what it learns from the data.

    Args:
        name: one of `PRESETS`' codecs, and a number where it takes one: "binary:8", "product:96".
        pilot: labels of a sample of the data, batch shape (positions,); of no positions where
            there is none to be had.

    Raises:
        InputError: there is no such codec, or it cannot write what is needed.
    """
    check(name, needs)
    base, number = split(name)
    return _CODECS[base].made_for(needs, pilot, name=base, number=number)


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

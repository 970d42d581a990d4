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
from softlabels.codecs.binary import MAX_BITS, MIN_BITS, Binary
from softlabels.codecs.binary_plain import BinaryPlain
from softlabels.codecs.compact import Compact, scale_of
from softlabels.codecs.held import Held
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.int8 import Int8
from softlabels.codecs.lossless import DTYPES, Lossless
from softlabels.codecs.packed import Packed
from softlabels.codecs.plain import Plain
from softlabels.codecs.product import Product
from softlabels.codecs.sampled import Sampled
from softlabels.codecs.unpack import CPU
from softlabels.codecs.vectors import Vectors
from softlabels.errors import InputError, UnsupportedFormatError, quoted
from softlabels.labels import BinaryLabels, Labels, SoftLabels

__all__ = [
    "CPU",
    "DEFAULT",
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
    """

    kind: ClassVar[str]

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

    def to_json(self) -> dict[str, Any]:
        """Name and every setting."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_json` described."""


_CODECS: dict[str, type[Codec]] = {
    "plain": Plain,
    "compact": Compact,
    "lossless": Lossless,
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
PRESETS = {
    "tiny": Preset("compact", k=8),
    "compact": Preset("compact"),
    "lossless": Preset("lossless"),
    "plain": Preset("plain"),
    "sampled": Preset("sampled"),
    "binary": Preset("binary"),
    "binary_plain": Preset("binary_plain"),
    "float16": Preset("float16"),
    "float32": Preset("float32"),
    "int8": Preset("int8"),
    "product": Preset("product"),
}
# The setting that a number after a name stands for, as in "binary:8" and "product:96".
_NUMBERS = {"binary": "bits", "product": "parts"}
DEFAULT = "compact"
_DEFAULTS = {"categorical": DEFAULT, "binary": "binary", "embedding": "float16"}


def default(*, sampled: bool, kind: str = "categorical") -> str:
    """The codec where none is named, of a kind of label; of weights, or of probabilities."""
    return "sampled" if sampled else _DEFAULTS[kind]


def names(kind: str = "categorical") -> str:
    """The codecs of a kind of label, for people; weights have one of their own."""
    fitting = (n for n, each in PRESETS.items() if _CODECS[each.codec].kind == kind)
    return ", ".join(name for name in fitting if name != "sampled")


def split(name: str) -> tuple[str, int | None]:
    """A codec's name, and the number after it: bits a class of binary, bytes a vector of product.

    Raises:
        InputError: another codec has a number, or it is none.
    """
    base, colon, number = name.partition(":")
    if not colon:
        return base, None
    if base not in _NUMBERS or not (number.isascii() and number.isdecimal()) or not int(number):
        raise InputError(
            f"the codec {quoted(name)}: a number from 1 on may follow two names, binary:BITS of a "
            "class and product:BYTES of a vector"
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
        number is None or settings.get(_NUMBERS[base]) == number
    )


@dataclass(frozen=True)
class Needs:
    """What a codec is made for.

    Attributes:
        classes: V; of vectors their width.
        k: entries at a position, at most.
        temperatures: one log tail a position for each, or one floor.
        logits_known: whether there are logsumexps.
        sampled: the entries have weights.
        draws: of a position, where all weights are counts of them.
        kind: of the labels.
    """

    classes: int
    k: int
    temperatures: tuple[float, ...]
    logits_known: bool = True
    sampled: bool = False
    draws: int | None = None
    kind: str = "categorical"

    def check(self, name: str) -> None:
        """Refuse a codec that cannot write this.

        Raises:
            InputError: saying why, and which can.
        """
        name, number = split(name)
        known = _CODECS.get(PRESETS[name].codec if name in PRESETS else name)
        if known is not None and known.kind != self.kind:
            raise InputError(
                f"the codec {name} writes labels of the kind {known.kind}, and these are "
                f"{self.kind}; choose from {names(self.kind)}"
            )
        if name == "binary" and number is not None and not MIN_BITS <= number <= MAX_BITS:
            raise InputError(f"binary:{number}: a class takes {MIN_BITS} to {MAX_BITS} bits")
        if name == "product" and number is not None and self.classes % number:
            raise InputError(f"{self.classes} numbers do not make {number} equal parts of a byte")
        if name == "lossless" and not self.logits_known:
            raise InputError(
                "the codec lossless keeps logits, and the teacher gives normalised values only; "
                "choose plain or compact"
            )
        if self.sampled != (name == "sampled"):
            kinds = "weights, which sampled alone writes" if self.sampled else "probabilities"
            way_out = "leave out codec=" if self.sampled else f"choose from {names(self.kind)}"
            raise InputError(f"the selection gives {kinds}, and the codec is {name}; {way_out}")


def resolve(name: str, needs: Needs, *, pilot: Callable[[], Any]) -> Codec:
    """The codec of that name, with what it learns from the data.

    Args:
        name: one of `PRESETS`' codecs, and a number where it takes one: "binary:8", "product:96".
        pilot: labels of a sample of the data, batch shape (positions,); of no positions where
            there is none to be had.

    Raises:
        InputError: there is no such codec, or it cannot write what is needed.
    """
    needs.check(name)
    name, number = split(name)
    if name not in _CODECS:
        raise InputError(f"there is no codec {quoted(name)}; choose from {names(needs.kind)}")
    match name:
        case "plain":
            return Plain(needs.classes, needs.temperatures)
        case "binary_plain":
            return BinaryPlain(needs.classes, needs.temperatures)
        case "float16" | "float32":
            return Vectors(needs.classes, name)
        case "int8":
            return Int8(needs.classes)
        case "product":
            found = pilot().vectors.float().numpy()
            # What it cannot hold is said of the sample, by its key, when that is labelled.
            fits = np.abs(found).max(-1, initial=0) <= product.LARGEST
            return Product.learn(found[fits], parts=number)
        case "binary":
            return _binary(needs, pilot(), number)
    labels = pilot()
    codec: Packed[SoftLabels]
    table = IdTable.count(needs.classes, labels.ids[labels.log_probs > -torch.inf].numpy())
    if name == "sampled":
        codec = Sampled(needs.classes, needs.k, (), table, needs.logits_known, draws=needs.draws)
    elif name == "lossless":
        codec = Lossless(needs.classes, needs.k, needs.temperatures, table, dtype=_dtype(labels))
    else:
        codec = Compact(
            needs.classes,
            needs.k,
            needs.temperatures,
            table,
            needs.logits_known,
            scale=scale_of(needs.k),
        )
    return codec.trained(labels) if len(labels) else codec


def _binary(needs: Needs, labels: BinaryLabels, bits: int | None) -> Binary:
    table = IdTable.count(needs.classes, labels.ids.numpy())
    settings: dict[str, Any] = {} if bits is None else {"bits": bits}
    codec = Binary(
        needs.classes, needs.k, needs.temperatures, table, logits_known=False, **settings
    )
    return codec.trained(labels) if len(labels) else codec


def _dtype(labels: SoftLabels) -> str:
    """What the teacher gives its logits in; where it is not known float32, which holds them all."""
    if labels.logits is None or not len(labels):
        return "float32"
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(labels.logits.dtype, "float32")


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

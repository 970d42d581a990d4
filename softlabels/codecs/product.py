"""Vectors as product codes: parts of each, looked up in a book of 256 that was learnt before."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
import zstandard
from numpy.typing import NDArray

from softlabels.codecs.held import ByColumns
from softlabels.codecs.lists import rows_of, to_lists
from softlabels.codecs.needs import Needs
from softlabels.codecs.unpack import CPU
from softlabels.codecs.vectors import checked
from softlabels.errors import InputError
from softlabels.labels import Embeddings

Floats = NDArray[np.float32]

# A byte a part.
ENTRIES = 256
# Numbers in a part where nobody says otherwise: 48 bytes for 384 numbers.
_PART = 8
_ROUNDS = 25
# Plans are read whole: a book of 4,096 numbers a vector takes 4 MiB.
_MOST_NUMBERS = 1 << 22
# Products of two larger ones, summed over the numbers of a vector, may be too large for float32.
LARGEST = 1e16


@dataclass(frozen=True)
class Product(ByColumns):
    """A flat list column `codes`, uint8, one for each of `parts` parts of a vector.

    Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011. There is no error
    bound: what a vector loses depends on how far it lies from those that the book was learnt of;
    on these the mean squared error of a number was `error`.

    Attributes:
        width: D.
        parts: bytes of a vector; a divisor of D.
        book: centroids, float32, (parts, 256, D / parts), little-endian.
        error: mean squared error of a number of the vectors that the book was learnt of.
    """

    width: int
    parts: int
    book: bytes
    error: float
    ordered: ClassVar[bool] = False
    packed_columns: ClassVar[list[str]] = []
    # Parquet has no bytes, only int32: with its upper planes apart a quarter less is stored.
    split_columns: ClassVar[list[str]] = ["codes.list.element"]
    logits_dtype: ClassVar[torch.dtype | None] = None
    kind: ClassVar[str] = "embedding"
    number: ClassVar[str | None] = "parts"

    def __post_init__(self) -> None:
        if self.width < 1 or self.parts < 1 or self.width % self.parts:
            raise ValueError(f"{self.parts} parts of {self.width} numbers")
        if len(self.book) != 4 * ENTRIES * self.width:
            raise ValueError(f"the book has {len(self.book)} bytes, not {4 * ENTRIES * self.width}")

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field("codes", pa.list_(pa.uint8()), nullable=False)]

    @cached_property
    def centroids(self) -> Floats:
        """(parts, 256, D / parts)."""
        flat = np.frombuffer(self.book, "<f4").astype(np.float32)
        return flat.reshape(self.parts, ENTRIES, self.width // self.parts)

    @classmethod
    def learn(cls, vectors: Floats, parts: int | None = None) -> Self:
        """A codec for vectors like these, the same every time.

        Args:
            vectors: (N, D), at least 256.
            parts: by default one for every eight numbers, or the next divisor of D below.

        Raises:
            InputError: they are too few, too wide or too large, or `parts` does not divide D.
        """
        count, width = vectors.shape
        if count < ENTRIES or ENTRIES * width > _MOST_NUMBERS:
            raise InputError(
                f"product codes are learnt of {count} vectors of {width} numbers; they take at "
                f"least {ENTRIES} vectors of at most {_MOST_NUMBERS // ENTRIES:,} numbers: pass "
                "more data, with random access, or choose float16 or int8"
            )
        chosen = parts or next(n for n in range(max(1, width // _PART), 0, -1) if width % n == 0)
        if chosen < 1 or width % chosen:
            raise InputError(f"{width} numbers do not make {chosen} equal parts; choose a divisor")
        _check_size(vectors)
        pieces = vectors.astype(np.float32, copy=False).reshape(count, chosen, -1)
        book = np.stack([_centroids(pieces[:, part]) for part in range(chosen)])
        found = [book[part][_nearest(pieces[:, part], book[part])] for part in range(chosen)]
        error = float(np.square(np.stack(found, 1) - pieces).mean(dtype=np.float64))
        return cls(width, chosen, book.astype("<f4").tobytes(), error)

    def encode(self, labels: Embeddings, offsets: NDArray[np.int64]) -> dict[str, pa.Array]:
        vectors = checked(labels, self.width)
        _check_size(vectors)
        pieces = vectors.reshape(len(labels), self.parts, self.width // self.parts)
        codes = np.empty((len(labels), self.parts), np.uint8)
        for part, centroids in enumerate(self.centroids):
            codes[:, part] = _nearest(pieces[:, part], centroids)
        return {"codes": to_lists(codes, offsets, pa.uint8())}

    def decode(
        self, table: pa.Table, device: torch.device = CPU
    ) -> tuple[Embeddings, NDArray[np.int64]]:
        codes, offsets = rows_of(table, "codes", self.parts)
        # All parts' centroids as one list: a gather for all of them.
        places = torch.from_numpy(codes).to(device).long()
        places += torch.arange(self.parts, device=device) * ENTRIES
        flat = torch.from_numpy(self.centroids.reshape(self.parts * ENTRIES, -1)).to(device)
        return Embeddings(flat[places].view(len(codes), self.width)), offsets

    @classmethod
    def made_for(
        cls, needs: Needs, pilot: Callable[[], Any], *, name: str, number: int | None
    ) -> Self:
        found = pilot().vectors.float().numpy()
        # What it cannot hold is said of the sample, by its key, when that is labelled.
        fits = np.abs(found).max(-1, initial=0) <= LARGEST
        return cls.learn(found[fits], parts=number)

    @classmethod
    def check_needs(cls, needs: Needs, number: int | None) -> None:
        if number is not None and needs.classes % number:
            raise InputError(f"{needs.classes} numbers do not make {number} equal parts of a byte")

    def to_json(self) -> dict[str, Any]:
        book = zstandard.ZstdCompressor(level=19).compress(self.book)
        return {
            "name": "product",
            "width": self.width,
            "parts": self.parts,
            "book": base64.b64encode(book).decode(),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        width = int(data["width"])
        packed = base64.b64decode(data["book"], validate=True)
        try:
            size = 4 * ENTRIES * width
            if not zstandard.frame_content_size(packed) == size <= 4 * _MOST_NUMBERS:
                raise ValueError("the book has another size than the vectors")
            book = zstandard.ZstdDecompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise ValueError(f"the book cannot be decompressed: {error}") from None
        return cls(width, int(data["parts"]), book, float(data["error"]))


def _check_size(vectors: Floats) -> None:
    """Refuse what has no nearest centroid in float32; raises `InputError`."""
    largest = float(np.abs(vectors).max(initial=0))
    # Written so that a NaN is refused as well.
    if not largest <= LARGEST:
        raise InputError(
            f"a number of a vector is {largest:g}, and product codes are made for numbers up to "
            f"{LARGEST:g}; choose the codec float32 or int8"
        )


def _centroids(pieces: Floats) -> Floats:
    """256 centroids of pieces (N, d): Lloyd's rounds from pieces that are drawn with a seed."""
    random = np.random.default_rng(0)
    found = pieces[random.choice(len(pieces), ENTRIES, replace=False)].astype(np.float32)
    for _ in range(_ROUNDS):
        nearest = _nearest(pieces, found)
        counts = np.bincount(nearest, minlength=ENTRIES)
        sums = np.zeros(found.shape)
        np.add.at(sums, nearest, pieces)
        held = counts > 0
        found[held] = sums[held] / counts[held, None]
        # A centroid that nobody is near to goes where one is far from all.
        lost = np.flatnonzero(~held)
        if len(lost):
            far = np.square(pieces - found[nearest]).sum(-1)
            found[lost] = pieces[np.argsort(-far, kind="stable")[: len(lost)]]
    return found


def _nearest(pieces: Floats, centroids: Floats) -> NDArray[np.int64]:
    """The centroid that each piece is nearest to, (N,); of equal ones the first."""
    out = np.empty(len(pieces), np.int64)
    halves = np.square(centroids).sum(-1) / 2
    for start in range(0, len(pieces), 1 << 14):
        block = pieces[start : start + (1 << 14)]
        out[start : start + len(block)] = (halves - block @ centroids.T).argmin(-1)
    return out

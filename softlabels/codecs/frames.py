"""One compressed frame a record: its planes one after another, with zstd's own checksum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, InputError

Bytes = NDArray[np.uint8]

# Readers that strip trailing NUL bytes from binary values must find none.
_END = b"\x01"
# Shorter records cost less with all their planes in one block, because a block has its own table.
_SPLIT_POSITIONS = 96


class Frames:
    """Compresses and decompresses the planes of records.

    Args:
        level: of zstd.
    """

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, planes: Sequence[Bytes], *, positions: int) -> bytes:
        """The planes of one record as one frame, each plane in blocks of its own."""
        total = sum(len(plane) for plane in planes)
        if positions < _SPLIT_POSITIONS:
            return self._compressor.compress(b"".join(plane.tobytes() for plane in planes)) + _END
        stream = self._compressor.compressobj(size=total)
        parts = []
        for plane in planes:
            parts.append(stream.compress(plane.data))
            parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        parts.append(stream.flush())
        return b"".join([*parts, _END])

    def unpack(self, blobs: pa.Array, sizes: NDArray[np.int64]) -> list[Bytes]:
        """The bytes of each frame of a binary column, checked.

        Args:
            sizes: what each must hold; known before memory is taken.

        Raises:
            CorruptShardError: a frame is damaged, or of another size.
        """
        offsets = np.frombuffer(blobs.buffers()[1], np.int32)[blobs.offset :][: len(blobs) + 1]
        data = memoryview(blobs.buffers()[2] or b"")
        if blobs.null_count:
            raise CorruptShardError("packed holds nulls")
        found = []
        for start, stop, size in zip(offsets[:-1], offsets[1:], sizes, strict=True):
            frame = data[start : stop - len(_END)]
            try:
                if zstandard.frame_content_size(frame) != size:
                    raise CorruptShardError(
                        f"a frame holds {zstandard.frame_content_size(frame)} bytes, its record "
                        f"{size}"
                    )
                found.append(np.frombuffer(self._decompressor.decompress(frame), np.uint8))
            except zstandard.ZstdError as error:
                raise CorruptShardError(f"a frame cannot be decompressed: {error}") from None
        return found


def byte_planes(values: NDArray[np.uint32], count: int) -> list[Bytes]:
    """The lowest `count` bytes of each value, lowest first, each (N,)."""
    columns = values.astype("<u4", copy=False).reshape(-1, 1).view(np.uint8)
    return [np.ascontiguousarray(columns[:, place]) for place in range(count)]


def from_byte_planes(planes: Sequence[Bytes]) -> NDArray[np.uint32]:
    """The inverse of `byte_planes`."""
    out = planes[0].astype(np.uint32)
    for place, plane in enumerate(planes[1:], start=1):
        out |= plane.astype(np.uint32) << (8 * place)
    return out


def as_binary(blobs: Sequence[bytes]) -> pa.Array:
    """A binary column; raises `InputError` when it would be longer than Arrow's offsets reach."""
    if sum(map(len, blobs)) > np.iinfo(np.int32).max:
        raise InputError("a row group of more than 2 GiB; choose a smaller max_length or k")
    return pa.array(blobs, pa.binary())

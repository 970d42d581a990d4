"""One compressed frame a record: its planes one after another, with zstd's own checksum."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError, InputError
from softlabels.memory import empty

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]

# Readers that strip trailing NUL bytes from binary values must find none.
_END = b"\x01"
_NOTHING = memoryview(b"")
# Bytes of a value that Arrow keeps in the view.
_IN_VIEW = 12
# Shorter records cost less with all their planes in one block, because a block has its own table.
SHORT_POSITIONS = 96
# A record of four positions takes a tenth to a sixth less with a dictionary of this size; a larger
# one, or a higher level, saves nothing more (benchmarks/bench_storage.py).
_DICTIONARY_BYTES = 4096
# Levels above 1 save nothing: the planes hold no repetitions, and Huffman codes are all it takes.
_LEVEL = 1
# So looking for short ones costs time and bytes: 12 and .1 % less than level 1 alone.
_LONG = zstandard.ZstdCompressionParameters.from_level(
    _LEVEL, min_match=7, hash_log=12, write_checksum=True, write_content_size=True
)

# A plane up to this long, of what a position has once, is compressed only where that saves an
# eighth: to make its Huffman table takes longer than to decode it. A tenth of a percent of a
# record's bytes for a fourteenth of zstd's time.
_SHORT_PLANE, _LEAST_SAVED = 4096, 8
# Of a block's header, and of the literals in a block: by the Huffman table of one before.
_RAW, _COMPRESSED, _TREELESS = 0, 2, 3


class Frames:
    """Compresses and decompresses the planes of records, in any number of threads.

    Args:
        dictionary: for records of fewer than `SHORT_POSITIONS` positions; empty for none.

    Raises:
        ValueError: zstd cannot use the dictionary.
    """

    def __init__(self, dictionary: bytes = b"") -> None:
        self._dictionary = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._threads = threading.local()
        try:
            self._contexts.of_short.decompress(self._contexts.to_short.compress(_END))
        except zstandard.ZstdError as error:
            raise ValueError(f"zstd cannot use the dictionary: {error}") from None

    @property
    def _contexts(self) -> _Contexts:
        """This thread's own: zstd's are not to be shared."""
        if not hasattr(self._threads, "contexts"):
            self._threads.contexts = _Contexts(self._dictionary)
        contexts: _Contexts = self._threads.contexts
        return contexts

    def pack(self, planes: Sequence[memoryview], *, positions: int) -> bytes:
        """The planes of one record as one frame; of a long one each in blocks of its own."""
        contexts = self._contexts
        if positions < SHORT_POSITIONS:
            return contexts.to_short.compress(b"".join(planes)) + _END
        stream = contexts.to_long.compressobj(size=sum(map(len, planes)))
        blocks = []
        for plane in planes:
            begun = stream.compress(plane)
            blocks.append(begun + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        return b"".join([*_worthwhile(blocks, planes), stream.flush(), _END])

    def unpack(
        self,
        frames: Sequence[memoryview],
        places: Int64s,
        *,
        sizes: Int64s,
        positions: Int64s,
    ) -> Bytes:
        """What frames hold, one after another.

        Args:
            frames, places: as `frames_of` gives them.
            sizes: bytes that each holds, (R,).
            positions: of each record, (R,).

        Raises:
            CorruptShardError: a frame is damaged, or of another size.
        """
        ends = sizes.cumsum().tolist()
        out = empty((ends[-1] if ends else 0,), np.uint8)
        room, begun, contexts = out.data, 0, self._contexts
        # zstandard's `multi_decompress_to_buffer` makes threads wait less for each other, but at
        # k = 32 the system's allocator gives its memory back to the kernel: 50 page faults a batch.
        for frame, (start, stop), end, is_short in zip(
            frames, places.tolist(), ends, (positions < SHORT_POSITIONS).tolist(), strict=True
        ):
            reader = contexts.of_short if is_short else contexts.of_long
            try:
                held = reader.stream_reader(frame[start:stop]).readinto(room[begun:end])
            except zstandard.ZstdError as error:
                raise CorruptShardError(f"a frame cannot be decompressed: {error}") from None
            if held != end - begun:
                raise CorruptShardError("a frame is cut short")
            begun = end
        return out


def _worthwhile(blocks: Sequence[bytes], planes: Sequence[memoryview]) -> list[bytes]:
    """A frame's blocks, one a plane, with the last planes as they are where that costs little.

    A block is replaced only if none after it leans on it, by its Huffman table or its repetitions.
    """
    found, table_is_used = list(blocks), False
    for place in range(len(planes) - 1, 0, -1):
        block, length = blocks[place], len(planes[place])
        if length > _SHORT_PLANE:
            break
        if not block or block[0] >> 1 & 3 != _COMPRESSED:
            continue
        kind = block[3] & 3
        if length + 3 - len(block) < length // _LEAST_SAVED and not (
            # Without repetitions the last byte is their number, 0; with some it is never 0.
            block[-1] or (table_is_used and kind != _TREELESS)
        ):
            found[place] = (length << 3 | _RAW << 1).to_bytes(3, "little") + planes[place]
        elif kind >= _COMPRESSED:
            table_is_used = kind == _TREELESS
    return found


def frames_of(blobs: pa.ChunkedArray) -> tuple[list[memoryview], Int64s]:
    """The frames of a binary column, or one of binary views, where they lie.

    Returns:
        the bytes that each is a part of, (R,), and where it starts and stops there, (R, 2).

    Raises:
        CorruptShardError: they do not end as frames do.
    """
    if blobs.null_count:
        raise CorruptShardError("packed holds nulls")
    frames: list[memoryview] = []
    places: list[tuple[int, int]] = []
    for chunk in blobs.chunks:
        for data, start, stop in _places(chunk):
            if data[max(start, stop - len(_END)) : stop] != _END:
                raise CorruptShardError("a frame does not end as it should")
            frames.append(data)
            places.append((start, stop - len(_END)))
    return frames, np.asarray(places, np.int64).reshape(-1, 2)


def _places(chunk: pa.Array) -> Iterator[tuple[memoryview, int, int]]:
    _, where, *buffers = chunk.buffers()
    data = [memoryview(buffer or b"") for buffer in buffers]
    if pa.types.is_binary_view(chunk.type):
        views = memoryview(where or b"").cast("i")[4 * chunk.offset :][: 4 * len(chunk)].tolist()
        for length, buffer, start in zip(views[::4], views[2::4], views[3::4], strict=True):
            # Shorter values stand in the view itself, and are no frames.
            yield (data[buffer], start, start + length) if length > _IN_VIEW else (_NOTHING, 0, 0)
    else:
        bounds = memoryview(where or b"").cast("i")[chunk.offset :][: len(chunk) + 1].tolist()
        yield from ((data[0], start, stop) for start, stop in pairwise(bounds))


def sizes_of(
    frames: Sequence[memoryview], places: Int64s, *, least: Int64s, most: Int64s
) -> Int64s:
    """Bytes that each frame says it holds, (R,); checked before memory is taken.

    Args:
        frames, places: as `frames_of` gives them.
        least, most: bytes that each may hold, (R,).

    Raises:
        CorruptShardError: it says something else, or nothing.
    """
    try:
        found = [
            zstandard.frame_content_size(frame[start:stop])
            for frame, (start, stop) in zip(frames, places.tolist(), strict=True)
        ]
    except zstandard.ZstdError as error:
        raise CorruptShardError(f"a frame cannot be decompressed: {error}") from None
    sizes = np.asarray(found, np.int64)
    if (sizes < least).any() or (sizes > most).any():
        wrong = np.flatnonzero((sizes < least) | (sizes > most))[0]
        raise CorruptShardError(
            f"a frame holds {sizes[wrong]} bytes, its record from {least[wrong]} to {most[wrong]}"
        )
    return sizes


class _Contexts:
    def __init__(self, dictionary: zstandard.ZstdCompressionDict | None) -> None:
        self.to_long = zstandard.ZstdCompressor(compression_params=_LONG)
        self.to_short = zstandard.ZstdCompressor(
            _LEVEL, dict_data=dictionary, write_checksum=True, write_dict_id=False
        )
        self.of_long = zstandard.ZstdDecompressor()
        self.of_short = zstandard.ZstdDecompressor(dict_data=dictionary)


def train_dictionary(samples: Sequence[bytes]) -> bytes:
    """A dictionary for frames like these; empty if they are too few or too small for one."""
    try:
        return zstandard.train_dictionary(_DICTIONARY_BYTES, list(samples), level=_LEVEL).as_bytes()
    except zstandard.ZstdError:
        return b""


def byte_planes(values: NDArray[np.unsignedinteger], count: int) -> list[Bytes]:
    """The lowest `count` bytes of each value, lowest first, each (N,)."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    columns = little.reshape(-1, 1).view(np.uint8)
    return [np.ascontiguousarray(columns[:, place]) for place in range(count)]


def from_byte_planes(planes: Sequence[Bytes]) -> NDArray[np.uint32]:
    """The inverse of `byte_planes`, for at most four."""
    out = planes[0].astype(np.uint32)
    for place, plane in enumerate(planes[1:], start=1):
        out |= plane.astype(np.uint32) << (8 * place)
    return out


def as_binary(blobs: Sequence[bytes]) -> pa.Array:
    """A binary column; raises `InputError` when it would be longer than Arrow's offsets reach."""
    if sum(map(len, blobs)) > np.iinfo(np.int32).max:
        raise InputError("a row group of more than 2 GiB; choose a smaller max_length or k")
    return pa.array(blobs, pa.binary())

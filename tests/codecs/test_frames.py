"""Frames: what is compressed, what is stored as it is, and that zstd reads either."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.codecs.frames import Frames

# Of so many different bytes, all as frequent: of 126 a little less than an eighth is saved.
KINDS = {"noise": 256, "an eighth": 126, "few": 12, "constant": 1}


def plane(kind: str, length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(KINDS[kind], size=length, dtype=np.uint8).tobytes()


def repeating(size: int, seed: int) -> bytes:
    """512 bytes whose last `size` stood 300 before."""
    noise = plane("noise", 512, seed)
    return noise[: 512 - size] + noise[212 - size : 212]


def pack(planes: list[bytes]) -> bytes:
    packed = Frames().pack([memoryview(one) for one in planes], positions=512)
    assert packed[-1:] == b"\x01"
    assert zstandard.ZstdDecompressor().decompress(packed[:-1]) == b"".join(planes)
    return packed


@st.composite
def records(draw: st.DrawFn) -> list[bytes]:
    # Equal seeds make planes that repeat each other.
    lengths = st.sampled_from([0, 1, 64, 512, 1000, 4096, 4097, 140_000])
    one = st.builds(plane, st.sampled_from(sorted(KINDS)), lengths, st.integers(0, 2))
    again = st.builds(repeating, st.sampled_from([20, 40, 150]), st.integers(0, 2))
    planes = draw(st.lists(one | again, max_size=9))
    return [plane("few", 500, 9), *planes]


@given(records())
@settings(deadline=None, max_examples=60)
def test_zstd_gives_back_every_plane(planes: list[bytes]) -> None:
    pack(planes)


@pytest.mark.parametrize(
    ("kind", "length", "stored"),
    [("an eighth", 4096, True), ("an eighth", 4097, False), ("few", 512, False)],
)
def test_a_short_plane_is_compressed_only_where_it_saves_an_eighth(
    kind: str, length: int, stored: bool
) -> None:
    last = plane(kind, length, 1)
    assert (last in pack([plane("few", 9000, 0), last])) is stored


def test_a_plane_whose_table_the_next_one_uses_stays_compressed() -> None:
    first, second = plane("an eighth", 1000, 1), plane("an eighth", 600, 2) + bytes(400)
    start = plane("few", 9000, 0)
    assert first in pack([start, first])
    packed = pack([start, first, second])
    assert first not in packed
    assert second not in packed


def test_a_plane_whose_repetitions_the_next_one_leans_on_stays_compressed() -> None:
    first, second = repeating(40, 1), repeating(150, 2)
    assert first not in pack([plane("few", 9000, 0), first, second])

"""The cache's files among processes that write, drop and map them at the same time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from softlabels.stores import cache as caches
from softlabels.stores.cache import Cache, Piece, SparseFile

DIGEST = "ab" * 32


def ones(start: int, stop: int) -> bytes:
    return b"\1" * (stop - start)


def total(data: memoryview) -> str:
    return str(sum(data))


def brought(file: SparseFile, size: int) -> SparseFile:
    file.bring([Piece(0, size, str(size))], total)
    return file


def test_a_file_that_another_process_is_writing_is_not_dropped(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=0)
    with cache.writing():
        being_written = cache.blobs / ".of another"
        being_written.write_bytes(bytes(10_000))
        left = cache.blobs / ".of one that was killed"
        left.write_bytes(bytes(10_000))
        (cache.blobs / DIGEST).write_bytes(bytes(10_000))
    ago = time.time() - 2 * caches._WRITTEN_S
    os.utime(left, (ago, ago))
    assert cache.make_room(cache.blobs / "none")
    assert list(cache.blobs.iterdir()) == [being_written]


def test_a_file_is_put_although_another_process_makes_room_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, limit=0)
    replace = os.replace

    def after_another_made_room(source: str, target: Path) -> None:
        cache.make_room(cache.blobs / "none")
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another_made_room)
    cache.put(cache.blobs / DIGEST, bytes(5000))
    assert (cache.blobs / DIGEST).stat().st_size == 5000


@pytest.mark.parametrize("other", [10, 5000, 100_000])
def test_a_copy_that_is_mapped_keeps_its_size_whatever_another_receipt_says(
    tmp_path: Path, other: int
) -> None:
    cache = Cache(tmp_path, limit=1 << 30)
    first = brought(cache.sparse(DIGEST, 32_768, ones), 32_768)
    second = brought(cache.sparse(DIGEST, other, ones), other)
    # Cut in place, the first one's pages would be gone, and reading them end the process.
    assert first.dropped
    assert first.buffer.to_pybytes() == ones(0, 32_768)
    assert second.buffer.to_pybytes() == ones(0, other)
    assert not second.dropped


def test_a_copy_of_the_right_size_is_shared(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1 << 30)
    first = brought(cache.sparse(DIGEST, 5000, ones), 5000)
    second = cache.sparse(DIGEST, 5000, lambda *_: pytest.fail("fetched again"))
    assert brought(second, 5000).buffer.to_pybytes() == ones(0, 5000)
    assert not first.dropped

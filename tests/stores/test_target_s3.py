"""Labelling into a bucket of a real S3 server; skipped without s3fs and moto[s3,server]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_set import compared, contents

import softlabels as sl
from softlabels.errors import InputError, RemoteError
from softlabels.labelset.writer import check_writable
from softlabels.stores import asking, objects
from softlabels.stores.target import destination

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
pytestmark = [
    # Warnings of botocore and s3fs about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OUT = "s3://labels/some/set"


def in_bucket() -> dict[str, bytes]:
    """Every object of the set."""
    files = s3fs.S3FileSystem(use_listings_cache=False)
    start = OUT.removeprefix("s3://") + "/"
    found = files.find(start)
    return compared({path.removeprefix(start): files.cat_file(path) for path in found})


@pytest.mark.usefixtures("server")
def test_a_set_in_a_bucket_is_the_one_in_a_folder_byte_for_byte(
    pristine: Path, precompute: Callable[..., sl.LabelSet]
) -> None:
    labels = precompute(OUT)
    assert in_bucket() == contents(pristine)
    for mine, theirs in zip(labels[:], sl.LabelSet.open(pristine)[:], strict=True):
        assert torch.equal(mine.log_probs, theirs.log_probs)
    precompute(OUT)
    assert in_bucket() == contents(pristine)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "data/train-00000.parquet"]])
def test_a_run_that_lost_files_in_a_bucket_goes_on_to_the_same_set(
    pristine: Path, precompute: Callable[..., sl.LabelSet], lost: list[str]
) -> None:
    precompute(OUT)
    s3fs.S3FileSystem().rm([f"{OUT}/{name}" for name in lost])
    precompute(OUT)
    assert in_bucket() == contents(pristine)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("size", [4, 11 << 20])
def test_a_bucket_keeps_the_first_of_two_objects_also_in_parts(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # The least part that S3 takes, so that the larger object is put in three.
    put = s3fs.S3FileSystem.put_file

    def in_parts(self: Any, local: str, remote: str, **options: Any) -> None:
        put(self, local, remote, chunksize=5 << 20, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", in_parts)
    monkeypatch.setattr(objects, "_PIECE_BYTES", 1 << 20)
    target = destination(OUT)
    with target.workspace() as scratch:
        for letter, won in ((b"a", True), (b"b", False), (b"a", True)):
            (scratch / "new").write_bytes(letter * size)
            assert target.publish(scratch / "new", "data/one") is won
        with target.local("data/one", scratch) as file:
            assert file.read_bytes() == b"a" * size


@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="s3://nobody/set: there is no such bucket"):
        check_writable("s3://nobody/set")


def test_a_server_that_is_gone_ends_soon_and_shows_no_secret(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop()
    monkeypatch.setattr(asking, "TRIES", 1)
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.5)
    with pytest.raises(RemoteError, match=r"cannot be written after 1 try:") as error:
        check_writable(OUT)
    assert "hunter2" not in str(error.value)

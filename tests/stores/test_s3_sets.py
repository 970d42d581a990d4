"""Sets in a bucket, from a server of S3's protocol; skipped without s3fs and moto[s3,server]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import LabelSetError, RemoteError
from softlabels.stores import asking, fsspec_files

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
pytestmark = [
    # Warnings of botocore and s3fs about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def bucket(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Any]]:
    """A server with a set at s3://labels/tiny, and its file system."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "SOFTLABELS_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.01)
    monkeypatch.setattr(fsspec_files, "_SYSTEMS", {})
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.makedirs("labels", exist_ok=True)
    files.put(f"{pristine}/", "labels/tiny/", recursive=True)
    yield server, files
    server.stop()


@pytest.mark.usefixtures("bucket")
def test_a_set_in_a_bucket_is_read_as_the_local_one(pristine: Path) -> None:
    local, labels = sl.LabelSet.open(pristine), sl.LabelSet.open("s3://labels/tiny")
    labels.prefetch([0])
    for mine, theirs in zip(labels[:], local[:], strict=True):
        assert torch.equal(mine.ids, theirs.ids)
        assert torch.equal(mine.log_probs, theirs.log_probs)
    assert labels.index("s3") == local.index("s3")
    with pytest.raises(LabelSetError, match=r"s3://labels/none is no finished label set"):
        sl.LabelSet.open("s3://labels/none")


def test_a_bucket_that_is_gone_ends_soon_and_shows_no_secret(
    bucket: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, files = bucket
    labels = sl.LabelSet.open("s3://labels/tiny")
    files.rm(f"labels/tiny/{labels.receipts[0].path}")
    with pytest.raises(RemoteError, match=r"data/train-00000.parquet: there is no such file"):
        labels.take([0])
    server.stop()
    monkeypatch.setattr(asking, "TRIES", 2)
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.5)
    with pytest.raises(RemoteError, match=r"after 2 tries") as error:
        labels.take([len(labels) - 1])
    assert "hunter2" not in str(error.value)

"""Sets in a bucket, from a server of S3's protocol; skipped without s3fs and moto[s3,server]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import LabelSetError, RemoteError
from softlabels.stores import asking

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
pytestmark = [
    # Warnings of botocore and s3fs about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def bucket(pristine: Path, server: Any) -> tuple[Any, Any]:
    """A server with a set at s3://labels/tiny, and its file system."""
    files = s3fs.S3FileSystem()
    files.put(f"{pristine}/", "labels/tiny/", recursive=True)
    return server, files


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

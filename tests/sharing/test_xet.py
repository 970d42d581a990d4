"""push and pull through Xet storage, by the clients as people have them: still one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_server import Hub, hub
from hub_xet import XetHub

import softlabels as sl
from softlabels.errors import RemoteError
from softlabels.sharing.pull import pull
from softlabels.sharing.push import push
from softlabels.verifying.verify import verify

NAME = "me/labels"
# Imported, it writes a log where HF_HOME says.
pytestmark = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")


@pytest.fixture
def storage(tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[XetHub]:
    """In the place of the Hub without it; logs and caches of hf_xet are on this side of it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _xet

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    with hub(XetHub(tmp_path / "xet")) as found:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(server.url, found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        yield found


@pytest.fixture
def labels(tiny: Path) -> sl.LabelSet:
    return sl.LabelSet.open(tiny)


def test_one_commit_brings_the_set_and_its_large_files_went_by_xet(
    storage: XetHub, labels: sl.LabelSet
) -> None:
    push(labels, NAME)
    asked = [request for request in storage.requests if request.startswith("POST")]
    assert sum("/commit/" in request for request in asked) == 1
    assert not [request for request in asked if request.endswith("/objects/batch")]
    assert not storage.uploads, "nothing went the old way"
    files = storage.files(NAME)
    large = {hashlib.sha256(files[path]).hexdigest() for path in files if path.endswith("parquet")}
    assert large <= set(storage.sent())
    assert (
        storage.files(NAME)["data/train-00000.parquet"]
        == (labels.root / "data/train-00000.parquet").read_bytes()
    )


def test_what_xet_has_is_streamed_and_pulled(
    storage: XetHub, labels: sl.LabelSet, tmp_path: Path
) -> None:
    push(labels, NAME)
    remote = sl.LabelSet.open(f"hf://datasets/{NAME}")
    assert [r.ids.tolist() for r in remote[:]] == [r.ids.tolist() for r in labels[:]]
    pulled = pull(NAME, tmp_path / "pulled")
    assert not verify(pulled.labels.root).findings
    assert any("/xet-read-token/" in request for request in storage.requests)


def test_a_second_push_asks_the_storage_for_nothing(storage: XetHub, labels: sl.LabelSet) -> None:
    first = push(labels, NAME)
    asked = len(storage.requests)
    second = push(labels, NAME)
    assert (second.url, second.changed) == (first.url, 0)
    assert not [request for request in storage.requests[asked:] if "xet" in request]
    assert len(storage.repositories[NAME].history) == 2


def test_a_push_at_the_same_time_is_noticed_there_too(storage: XetHub, labels: sl.LabelSet) -> None:
    repository = storage.create(NAME)
    theirs = {"README.md": storage.keep(b"theirs")}
    storage.before_commit = lambda: repository.commit("main", theirs) and None
    with pytest.raises(RemoteError, match="Somebody else pushed"):
        push(labels, NAME)
    assert storage.files(NAME) == {"README.md": b"theirs"}


def test_storage_that_refuses_is_an_error_in_words_and_nothing_is_to_be_seen(
    storage: XetHub, labels: sl.LabelSet
) -> None:
    storage.refuse_storage = True
    with pytest.raises(
        RemoteError, match=r"storage of the Hub answers HTTP 403\..*HF_TOKEN.*run the same"
    ):
        push(labels, NAME)
    assert set(storage.files(NAME)) == {".gitattributes"}
    storage.refuse_storage = False
    push(labels, NAME)
    assert len(sl.LabelSet.open(f"hf://datasets/{NAME}")) == len(labels)

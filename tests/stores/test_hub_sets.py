"""Sets on the Hugging Face Hub: its cache, its revisions and its offline mode."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from file_server import FileServer, Handler, drops, says, serving

import softlabels as sl
from softlabels.errors import InputError, LabelSetError, RemoteError
from softlabels.stores import asking

Precompute = Callable[..., sl.LabelSet]
FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_secretsecretsecret"
URL = "hf://datasets/me/labels"


class HubServer(FileServer):
    """The few routes of the Hub that a reader of a public repository needs.

    Attributes:
        folders: of each commit.
        main: the commit that is the newest.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(folders[FIRST])
        self.url = self.url.removesuffix("/set")
        self.folders, self.main = folders, FIRST
        self.missing = {"X-Error-Code": "EntryNotFound"}

    def find(self, path: str) -> tuple[Path, dict[str, str]] | None:
        found = re.fullmatch(r"/datasets/me/labels/resolve/([^/]+)/([^?]+)", unquote(path))
        commit = found and {"main": self.main, "v1": FIRST}.get(found[1], found[1])
        if not found or commit not in self.folders:
            return None
        file = self.folders[commit] / found[2]
        etag = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        return file, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}


@pytest.fixture
def hub(
    pristine: Path,
    precompute: Precompute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[HubServer]:
    from huggingface_hub import constants

    precompute(tmp_path / "second", selection=sl.TopK(2))
    server = HubServer({FIRST: pristine, SECOND: tmp_path / "second"})
    # Made of the endpoint when the package was imported.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, server.url)
    )
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(asking, "BACKOFF_S", 0.01)
    with serving(server):
        yield server


def ids(labels: sl.LabelSet) -> list[list[list[int]]]:
    return [record.ids.tolist() for record in labels[:]]


def test_a_set_on_the_hub_is_read_at_the_commit_at_which_it_was_opened(
    hub: HubServer, pristine: Path, tmp_path: Path
) -> None:
    labels = sl.LabelSet.open(URL)
    assert labels.name == f"{URL}@{FIRST}"
    hub.main = SECOND
    again = pickle.loads(pickle.dumps(labels))
    first, second = (ids(sl.LabelSet.open(folder)) for folder in (pristine, tmp_path / "second"))
    assert first != second
    assert ids(labels) == ids(again) == first
    assert ids(sl.LabelSet.open(URL)) == second
    for revision in ("v1", FIRST):
        assert ids(sl.LabelSet.open(f"{URL}@{revision}")) == first
    hub.folders["3" * 40] = tmp_path
    assert ids(sl.LabelSet.open(f"{URL}@{'3' * 40}/second/")) == second
    with pytest.raises(LabelSetError, match=r"no finished label set.*no such file or revision"):
        sl.LabelSet.open(f"{URL}/elsewhere")


def test_offline_huggingface_hubs_cache_serves_the_small_files(
    hub: HubServer, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    labels = sl.LabelSet.open(URL)
    labels.take([0])
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    labels = sl.LabelSet.open(URL)
    assert torch.equal(labels[0].ids, sl.LabelSet.open(pristine)[0].ids)
    with pytest.raises(RemoteError, match=r"data/train-00001.parquet is not in the cache.*OFFLINE"):
        labels.take([-1])
    with pytest.raises(RemoteError, match=r"@v2/manifest.json is not in .*unset HF_HUB_OFFLINE"):
        sl.LabelSet.open(f"{URL}@v2")
    assert not hub.requests


def test_a_spoilt_file_in_huggingface_hubs_cache_is_fetched_again(
    hub: HubServer, pristine: Path
) -> None:
    plan = sl.LabelSet.open(URL).root / "plan.json"
    plan.resolve().write_bytes(plan.read_bytes().replace(b"table", b"tible"))
    assert sl.LabelSet.open(URL).plan == sl.LabelSet.open(pristine).plan
    manifest = plan.with_name("manifest.json")
    manifest.resolve().write_bytes(manifest.read_bytes()[:100])
    assert sl.LabelSet.open(URL).totals == sl.LabelSet.open(pristine).totals


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_says_where_the_token_comes_from_and_does_not_show_it(
    hub: HubServer, status: int
) -> None:
    labels = sl.LabelSet.open(URL)
    hub.fault = says(status)
    with pytest.raises(
        RemoteError, match=rf"train-00000.parquet: .*HTTP {status}.*HF_TOKEN"
    ) as error:
        labels.take([0])
    assert TOKEN not in str(error.value)
    assert len(hub.ranged) == 1, "a refusal is no accident"


def test_a_private_repository_says_so(hub: HubServer) -> None:
    hub.refusal = {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(RemoteError, match=r"no such repository, or it is not yours.*HF_TOKEN"):
        sl.LabelSet.open(URL)


def test_where_the_hub_sends_to_another_host_the_token_stays_and_the_signature_is_not_shown(
    hub: HubServer, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TRIES", 2)
    with serving(FileServer(pristine)) as store:

        def elsewhere(handler: Handler, data: bytes, start: int, stop: int) -> None:
            name = handler.path.rpartition("/data/")[2]
            handler.refuse(302, {"Location": f"{store.url}/data/{name}?signature=hunter2"})

        hub.fault = elsewhere
        labels = sl.LabelSet.open(URL)
        assert torch.equal(labels[0].ids, sl.LabelSet.open(pristine)[0].ids)
        assert hub.headers["authorization"] == f"Bearer {TOKEN}"
        assert "authorization" not in {name.lower() for name in store.headers}
        store.fault = drops
        with pytest.raises(RemoteError, match="train-00001") as error:
            labels.take([-1])
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["hf://datasets/one", "hf://me/labels", "hf://spaces/me/labels"])
def test_what_is_no_repository_of_data_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected hf://datasets/USER/NAME"):
        sl.LabelSet.open(url)

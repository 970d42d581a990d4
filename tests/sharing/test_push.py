"""push: one commit, nothing sent twice, nobody's work overwritten unseen."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub

import softlabels as sl
from softlabels.errors import CorruptShardError, InputError, LabelSetError, RemoteError
from softlabels.format import manifest
from softlabels.sharing.licences import Licences
from softlabels.sharing.push import push

Precompute = Callable[..., sl.LabelSet]
NAME = "me/labels"
# huggingface_hub's own, about how it calls httpx2 to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def labels(tiny: Path) -> sl.LabelSet:
    return sl.LabelSet.open(tiny)


def test_what_was_pushed_is_streamed_record_by_record(server: Hub, labels: sl.LabelSet) -> None:
    url = labels.push_to_hub(NAME)
    remote = sl.LabelSet.open(f"hf://datasets/{NAME}@main")
    assert remote.name == url
    assert [r.log_probs.tolist() for r in remote[:]] == [r.log_probs.tolist() for r in labels[:]]
    assert remote.get("s3").ids.tolist() == labels.get("s3").ids.tolist()


def test_one_commit_brings_the_whole_set(server: Hub, labels: sl.LabelSet) -> None:
    made = push(labels, NAME)
    repository = server.repositories[NAME]
    first, second = repository.history
    assert set(repository.commits[first]) == {".gitattributes"}
    assert f"@{second}" in made.url
    there = set(repository.commits[second])
    found = manifest.parse(server.files(NAME)["manifest.json"], where="")
    assert there == {
        ".gitattributes",
        "manifest.json",
        "plan.json",
        *found.files,
        *(receipt.path for receipt in labels.receipts),
    }
    assert {"README.md", "preview.parquet"} <= set(found.files)
    for path, digest in found.files.items():
        assert hashlib.sha256(server.files(NAME)[path]).hexdigest() == digest, path
    assert (labels.root / "README.md").read_bytes() != server.files(NAME)["README.md"]
    assert sl.LabelSet.open(labels.root).finished, "the set here is as it was"


def test_an_interrupted_push_shows_nothing_and_sends_nothing_twice(
    server: Hub, labels: sl.LabelSet
) -> None:
    server.refuse_upload = lambda sent: sent >= 2
    with pytest.raises(RemoteError, match=r"could not be sent: .*HTTP 403.*line is cut.*again"):
        push(labels, NAME)
    assert set(server.files(NAME)) == {".gitattributes"}
    sent = list(server.uploads)
    assert len(sent) == 2
    server.refuse_upload = lambda _: False
    push(labels, NAME)
    assert not set(sent) & set(server.uploads[2:])
    assert len(server.uploads) == len(set(server.uploads))
    assert len(sl.LabelSet.open(f"hf://datasets/{NAME}")) == len(labels)


def test_what_is_there_is_not_sent_again_and_makes_no_commit(
    server: Hub, labels: sl.LabelSet
) -> None:
    first = push(labels, NAME)
    uploads = list(server.uploads)
    second = push(labels, NAME)
    assert (second.changed, second.removed, second.url) == (0, 0, first.url)
    assert server.uploads == uploads
    assert len(server.repositories[NAME].history) == 2


def test_another_licence_sends_the_card_and_the_manifest_alone(
    server: Hub, labels: sl.LabelSet
) -> None:
    push(labels, NAME)
    uploads = list(server.uploads)
    made = push(labels, NAME, licences=Licences(labels="cc-by-4.0"))
    assert made.changed == 2
    assert server.uploads == uploads
    assert b"license: cc-by-4.0" in server.files(NAME)["README.md"]


def test_a_push_at_the_same_time_is_noticed_and_explained(server: Hub, labels: sl.LabelSet) -> None:
    repository = server.create(NAME)

    def somebody_else() -> None:
        repository.commit("main", {"README.md": server.keep(b"theirs")})

    server.before_commit = somebody_else
    with pytest.raises(RemoteError, match=r"HTTP 412.*Somebody else pushed.*nothing of this"):
        push(labels, NAME)
    assert server.files(NAME) == {"README.md": b"theirs"}


def test_a_smaller_set_takes_the_place_of_a_larger_one_in_the_same_commit(
    server: Hub, labels: sl.LabelSet, tmp_path: Path, precompute: Precompute, id_rows: list[Any]
) -> None:
    push(labels, NAME)
    smaller = precompute(tmp_path / "smaller", id_rows[:3])
    made = push(smaller, NAME)
    assert made.removed == 1
    assert "data/train-00001.parquet" not in server.files(NAME)
    assert len(server.repositories[NAME].history) == 3
    assert len(sl.LabelSet.open(f"hf://datasets/{NAME}")) == len(smaller)


def test_a_branch_is_made_and_main_stays_as_it_was(server: Hub, labels: sl.LabelSet) -> None:
    push(labels, NAME, revision="v2")
    assert set(server.files(NAME)) == {".gitattributes"}
    assert len(sl.LabelSet.open(f"hf://datasets/{NAME}@v2")) == len(labels)


def test_an_unfinished_set_is_refused(server: Hub, tiny: Path) -> None:
    (tiny / "manifest.json").unlink()
    with pytest.raises(LabelSetError, match=r"unfinished.*same `softlabels precompute`"):
        push(sl.LabelSet.open(tiny, unfinished=True), NAME)
    assert not server.requests


def test_a_set_that_is_not_here_is_refused(server: Hub, labels: sl.LabelSet) -> None:
    url = labels.push_to_hub(NAME)
    with pytest.raises(LabelSetError, match="pull it first"):
        push(sl.LabelSet.open(url), "me/other")


@pytest.mark.parametrize("file", ["data/train-00001.parquet", "keys.index"])
def test_a_damaged_file_is_not_published(server: Hub, labels: sl.LabelSet, file: str) -> None:
    data = bytearray((labels.root / file).read_bytes())
    data[len(data) // 2] ^= 1
    (labels.root / file).write_bytes(data)
    with pytest.raises(CorruptShardError, match=rf"{file}.*verify"):
        push(labels, NAME)
    assert not server.repositories or set(server.files(NAME)) == {".gitattributes"}


def test_a_repository_with_something_else_is_left_alone(server: Hub, labels: sl.LabelSet) -> None:
    repository = server.create(NAME)
    repository.commit("main", {"data/photos.parquet": server.keep(b"photos")})
    with pytest.raises(InputError, match=r'holds something else \("data/photos.parquet"\)'):
        push(labels, NAME)
    assert server.files(NAME) == {"data/photos.parquet": b"photos"}


def test_private_is_private_and_never_only_believed(server: Hub, labels: sl.LabelSet) -> None:
    push(labels, NAME, private=True)
    assert server.repositories[NAME].private
    server.create("me/public")
    with pytest.raises(InputError, match="is there and public"):
        push(labels, "me/public", private=True)


@pytest.mark.parametrize("name", ["labels", "me/labels/x", "../x", "me/la bels", "https://x/y"])
def test_what_is_no_repository_is_refused_before_anything_is_asked(
    server: Hub, labels: sl.LabelSet, name: str
) -> None:
    with pytest.raises(InputError, match="expected USER/NAME"):
        push(labels, name)
    assert not server.requests


def test_the_token_comes_from_the_environment_and_is_never_shown(
    server: Hub, labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create(NAME)
    monkeypatch.setenv("HF_TOKEN", wrong := "hf_wrongwrongwrong")
    with pytest.raises(RemoteError, match=r"HTTP 403.*HF_TOKEN in the environment") as error:
        push(labels, NAME)
    assert wrong not in str(error.value)
    assert TOKEN not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="set HF_TOKEN in the environment"):
        push(labels, NAME)


def test_where_nobody_answers_the_error_says_so(
    server: Hub, labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RemoteError, match="the Hub cannot be reached"):
        push(labels, NAME)


def test_rejects_probes_and_the_tokenizer_come_along(
    server: Hub, finished_set: Path, tmp_path: Path
) -> None:
    labels = sl.LabelSet.open(shutil.copytree(finished_set, tmp_path / "set"))
    push(labels, NAME)
    there = set(server.files(NAME))
    found = json.loads(server.files(NAME)["manifest.json"])["files"]
    assert any(path.startswith("tokenizer/") for path in there)
    assert set(found) <= there

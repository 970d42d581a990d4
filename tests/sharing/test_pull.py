"""pull: every byte held to the manifest, the manifest last, nothing of another set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

import softlabels as sl
from softlabels.errors import (
    CorruptShardError,
    InputError,
    LabelSetError,
    PlanMismatchError,
    RemoteError,
)
from softlabels.sharing import pull as pulling
from softlabels.sharing.licences import Licences
from softlabels.sharing.pull import pull
from softlabels.sharing.push import push
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]
NAME = "me/labels"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def pushed(server: Hub, tiny: Path) -> sl.LabelSet:
    labels = sl.LabelSet.open(tiny)
    push(labels, NAME)
    return labels


def files_below(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def test_what_comes_is_what_is_there_and_verifies(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    made = pull(NAME, tmp_path / "copy")
    there = server.files(NAME)
    there.pop(".gitattributes")
    assert files_below(tmp_path / "copy") == there
    assert made.files == len(there) - 1
    assert made.url == f"hf://datasets/{NAME}@{server.repositories[NAME].branches['main']}"
    assert not verify(tmp_path / "copy").findings
    assert [r.ids.tolist() for r in made.labels[:]] == [r.ids.tolist() for r in pushed[:]]


def test_a_cut_off_pull_is_visibly_unfinished_and_goes_on(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = pulling._fetch, []

    def cut(remote: Any, receipt: Any, file: Path) -> None:
        if fetched:
            raise RemoteError("the line is cut")
        fetch(remote, receipt, file)
        fetched.append(receipt.path)

    monkeypatch.setattr(pulling, "_WORKERS", 1)
    monkeypatch.setattr(pulling, "_fetch", cut)
    with pytest.raises(RemoteError, match="cut"):
        pull(NAME, tmp_path / "copy")
    with pytest.raises(LabelSetError, match="unfinished"):
        sl.LabelSet.open(tmp_path / "copy")
    monkeypatch.setattr(pulling, "_fetch", fetch)
    made = pull(NAME, tmp_path / "copy")
    assert (made.files, made.bytes) == (1, pushed.receipts[1].bytes)
    assert not verify(tmp_path / "copy").findings
    assert pull(NAME, tmp_path / "copy").files == 0


def test_large_shards_come_in_pieces(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "_PIECE_BYTES", 1000)
    pull(NAME, tmp_path / "copy")
    assert not verify(tmp_path / "copy").findings
    asked = [request for request in server.requests if "data/train-00000.parquet" in request]
    assert len(asked) == -(-pushed.receipts[0].bytes // 1000)


def test_one_revision_is_pulled_whatever_main_is_now(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path, precompute: Precompute
) -> None:
    first = server.repositories[NAME].branches["main"]
    push(precompute(tmp_path / "second", selection=sl.TopK(2)), NAME)
    made = pull(f"{NAME}@{first}", tmp_path / "copy")
    assert made.labels.plan == pushed.plan
    with pytest.raises(PlanMismatchError, match=r"made by another plan.*choose another folder"):
        pull(NAME, tmp_path / "copy")


def test_other_shards_of_the_same_plan_are_another_set(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    pull(NAME, tmp_path / "copy")
    found = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    found["files"]["shards.parquet"] = "0" * 64
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(PlanMismatchError, match="another label set of the same plan"):
        pull(NAME, tmp_path / "copy")


def test_a_newer_card_takes_the_place_of_the_older_one(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    pull(NAME, tmp_path / "copy")
    push(pushed, NAME, licences=Licences(labels="mit"))
    made = pull(NAME, tmp_path / "copy")
    assert made.files == 1
    assert pull(NAME, tmp_path / "copy").files == 0
    assert "license: mit" in (tmp_path / "copy" / "README.md").read_text()
    assert not verify(tmp_path / "copy").findings


def test_while_a_card_is_replaced_the_set_is_visibly_unfinished(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(NAME, tmp_path / "copy")
    push(pushed, NAME, licences=Licences(labels="mit"))

    def cut(*_: Any) -> list[int]:
        raise RemoteError("the line is cut")

    monkeypatch.setattr(pulling, "_shard", cut)
    with pytest.raises(RemoteError, match="cut"):
        pull(NAME, tmp_path / "copy")
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_a_shard_that_is_not_the_manifest_s_never_gets_its_name(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    tree = server.repositories[NAME].commits[server.repositories[NAME].branches["main"]]
    data = bytearray(server.blobs[tree["data/train-00001.parquet"]])
    data[100] ^= 1
    tree["data/train-00001.parquet"] = server.keep(bytes(data))
    with pytest.raises(CorruptShardError, match=r"data/train-00001.parquet: it is not the file"):
        pull(NAME, tmp_path / "copy")
    assert not (tmp_path / "copy" / "data" / "train-00001.parquet").exists()
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_a_set_that_is_being_made_here_is_left_alone(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    (copy / "receipts").mkdir(parents=True)
    (copy / "plan.json").write_bytes((pushed.root / "plan.json").read_bytes())
    with pytest.raises(PlanMismatchError, match="being made here"):
        pull(NAME, copy)


def test_a_folder_with_something_else_is_left_alone(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "thesis.tex").write_text("two years")
    with pytest.raises(InputError, match=r'holds something else \("thesis.tex"\)'):
        pull(NAME, tmp_path / "copy")
    assert files_below(tmp_path / "copy") == {"thesis.tex": b"two years"}


def test_another_shard_that_is_here_is_not_replaced(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    pull(NAME, copy)
    (copy / "data" / "train-00000.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"train-00000.parquet is there and is not.*remove it"):
        pull(NAME, copy)
    (copy / "data" / "train-00000.parquet").unlink()
    assert pull(NAME, copy).files == 1
    assert not verify(copy).findings


def test_what_is_not_there_is_said(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"no such repository.*HF_TOKEN"):
        pull("me/nothing", tmp_path / "copy")
    server.create("me/empty")
    with pytest.raises(LabelSetError, match="no finished label set"):
        pull("me/empty", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_hostile_manifest_writes_nothing_outside_the_folder(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path
) -> None:
    tree = server.repositories[NAME].commits[server.repositories[NAME].branches["main"]]
    found = json.loads(server.files(NAME)["manifest.json"])
    found["files"]["../escaped"] = found["files"]["README.md"]
    tree["manifest.json"] = server.keep(json.dumps(found).encode())
    with pytest.raises(LabelSetError, match="files"):
        pull(NAME, tmp_path / "copy")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["receipts/00000.json", "data/x.parquet", "probes/x.parquet"])
def test_a_file_that_would_pass_for_another_is_not_fetched(
    server: Hub, pushed: sl.LabelSet, tmp_path: Path, name: str
) -> None:
    listed(server, name)
    with pytest.raises(CorruptShardError, match=rf"manifest.json lists {name}"):
        pull(NAME, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_files_of_any_depth_come_along(server: Hub, pushed: sl.LabelSet, tmp_path: Path) -> None:
    listed(server, "notes/2026/x.txt")
    pull(NAME, tmp_path / "copy")
    assert (tmp_path / "copy/notes/2026/x.txt").read_bytes() == b"x"
    assert not verify(tmp_path / "copy").findings


def listed(server: Hub, name: str) -> None:
    """Put a file into the repository, and into the set's manifest."""
    found = json.loads(server.files(NAME)["manifest.json"])
    digest = found["files"][name] = server.keep(b"x")
    repository = server.repositories[NAME]
    before = repository.commits[repository.branches["main"]]
    manifest = server.keep(json.dumps(found).encode())
    repository.commit("main", {**before, name: digest, "manifest.json": manifest})

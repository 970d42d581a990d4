"""Labelling into an object store: the same set as in a folder, whatever fails on the way."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_store import FakeStore, store
from same_set import compared, contents

import softlabels as sl
from softlabels.cli.app import run as command
from softlabels.errors import CorruptShardError, LabelSetError, PlanMismatchError, RemoteError
from softlabels.format import shard_writing

__all__ = ["store"]  # a fixture
OUT = "fake://labels/set"
FIRST = "labels/set/data/train-00000.parquet"
Precompute = Callable[..., sl.LabelSet]


@pytest.fixture(scope="module")
def whole(pristine: Path) -> dict[str, bytes]:
    """Every file of the set in a folder."""
    return contents(pristine)


def in_store(store: type[FakeStore]) -> dict[str, bytes]:
    """Every object of the set."""
    return compared(store.contents("set"))


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL; what a process does at its end, it does."""


def killing(operation: str, part: str, done: bool) -> Callable[[str, str, bool], None]:
    def fault(what: str, path: str, is_done: bool) -> None:
        if what == operation and part in path and is_done == done:
            raise Killed

    return fault


def test_a_set_in_a_store_is_the_one_in_a_folder_byte_for_byte(
    store: type[FakeStore],
    precompute: Precompute,
    whole: dict[str, bytes],
    pristine: Path,
    tmp_path: Path,
) -> None:
    labels = precompute(OUT)
    assert in_store(store) == whole
    assert labels.name == OUT
    assert store.done("read", "data/") == []  # the keys were kept when the shards were put
    for mine, theirs in zip(labels[:], sl.LabelSet.open(pristine)[:], strict=True):
        assert torch.equal(mine.ids, theirs.ids)
        assert torch.equal(mine.log_probs, theirs.log_probs)
    assert list((tmp_path / "cache" / "unpublished").iterdir()) == []


def test_labelling_with_probes_tokenizer_and_rejects_is_the_same_in_both(
    store: type[FakeStore], teacher_dir: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for out in (OUT, tmp_path / "set"):
        sl.precompute(
            [*rows[1:6], {"id": "empty", "text": ""}], teacher_dir, out, selection=sl.TopK(4),
            key="id", max_length=32, unit_rows=2, probes=5, on_error="skip", progress=False,
        )  # fmt: skip
    local = contents(tmp_path / "set")
    assert in_store(store) == local
    assert {name.split("/")[0] for name in local} >= {"tokenizer", "probes", "rejects.parquet"}
    assert store.done("read", "probes/") == []


def test_the_same_command_again_puts_nothing(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes]
) -> None:
    precompute(OUT)
    store.asked.clear()
    precompute(OUT)
    assert [path for path in store.done("put", "") if "/.tmp/" not in path] == []
    assert in_store(store) == whole


KILLS = [
    ("put", "plan.json", True),
    ("put", "train-00000", False),
    ("put", "train-00000", True),
    ("put", "receipts/00000", False),
    ("put", "receipts/00001", True),
    ("put", "train-00001", True),
    ("put", "shards.parquet", False),
    ("put", "README.md", True),
    ("put", "manifest.json", False),
    ("put", "manifest.json", True),
    ("remove", "receipts/", True),
]


@pytest.mark.parametrize(("operation", "part", "done"), KILLS)
def test_a_run_that_ended_anywhere_goes_on_to_the_same_set(
    store: type[FakeStore],
    precompute: Precompute,
    whole: dict[str, bytes],
    operation: str,
    part: str,
    done: bool,
) -> None:
    store.fault = killing(operation, part, done)
    with pytest.raises(Killed):
        precompute(OUT)
    store.fault = None
    before = set(store.contents("set"))
    store.asked.clear()
    precompute(OUT)
    assert in_store(store) == whole
    for name in before & {"plan.json", "data/train-00000.parquet", "data/train-00001.parquet"}:
        assert store.done("put", name) == [], f"{name} was made twice"


def test_resuming_reads_of_a_shard_its_footer_and_keys_and_all_of_one_without_a_receipt(
    store: type[FakeStore],
    precompute: Precompute,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.fault = killing("put", "train-00001", done=True)
    with pytest.raises(Killed):
        precompute(OUT)
    store.fault = killing("put", "manifest.json", done=False)
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "of another machine"))
    store.sent.clear()
    with pytest.raises(Killed):
        precompute(OUT)
    assert 0 < store.sent[FIRST] < len(store.objects[FIRST])
    second = "labels/set/data/train-00001.parquet"
    assert store.sent[second] >= len(store.objects[second])
    store.fault = None
    precompute(OUT)
    assert in_store(store) == whole


def test_any_request_may_fail_once(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes]
) -> None:
    failed: set[tuple[str, str, bool]] = set()

    def flaky(operation: str, path: str, done: bool) -> None:
        name = path if "/.tmp/" not in path else "probe"
        if (operation, name, done) not in failed:
            failed.add((operation, name, done))
            raise ConnectionError("reset by peer")

    store.fault = flaky
    precompute(OUT)
    assert in_store(store) == whole
    assert len(failed) > 2 * len(whole)


@pytest.mark.parametrize("part", ["train-00001", "receipts/00001", "keys.index", "manifest.json"])
def test_a_put_that_always_fails_ends_the_run_and_what_is_finished_stays(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes], part: str
) -> None:
    def broken(operation: str, path: str, done: bool) -> None:
        if operation == "put" and part in path:
            raise ConnectionError("https://key:hunter2@a.server refused")

    store.fault = broken
    with pytest.raises(
        RemoteError, match=rf"{part}\S* cannot be written.*what is finished stays"
    ) as e:
        precompute(OUT)
    assert "hunter2" not in str(e.value)
    assert store.objects[FIRST] == whole["data/train-00000.parquet"]
    with pytest.raises(LabelSetError, match=f"{OUT} is no finished label set"):
        sl.LabelSet.open(OUT)
    store.fault = None
    precompute(OUT)
    assert in_store(store) == whole


def test_of_two_writers_of_a_unit_the_first_ones_shard_stays(
    store: type[FakeStore],
    precompute: Precompute,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 1)  # the same records in other bytes
    precompute("fake://labels/other")
    theirs = store.objects["labels/other/data/train-00000.parquet"]
    kept: list[bytes] = []

    def beaten(operation: str, path: str, done: bool) -> None:
        if operation == "put" and path == FIRST and not done:
            store.objects.setdefault(FIRST, theirs)
        if operation == "put" and "train-00001" in path and not done:
            kept.append(store.objects["labels/set/receipts/00000.json"])

    monkeypatch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 16_384)
    store.fault = beaten
    labels = precompute(OUT)
    assert store.objects[FIRST] == theirs
    assert labels.receipts[0].bytes == len(theirs)
    assert f'"bytes":{len(theirs)},'.encode() in kept[0]
    assert len(labels.get("s1", part=2).ids) == 3


def test_a_shard_that_is_lost_from_a_finished_set_is_labelled_again(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes]
) -> None:
    precompute(OUT)
    del store.objects[FIRST]
    precompute(OUT)
    assert in_store(store) == whole


def test_a_shard_that_was_replaced_is_told(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes]
) -> None:
    precompute(OUT)
    store.objects[FIRST] += b"more"
    with pytest.raises(
        CorruptShardError, match=rf"{OUT}/data/train-00000.parquet: it has \d+ byte"
    ):
        precompute(OUT)
    del store.objects[FIRST]
    precompute(OUT)
    assert in_store(store) == whole


def test_other_data_and_another_recipe_are_refused_by_the_sets_url(
    store: type[FakeStore], precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    precompute(OUT)
    with pytest.raises(
        PlanMismatchError, match=f"{OUT} was begun with another recipe: preparation.max_length"
    ):
        precompute(OUT, max_length=5)
    changed = [{**id_rows[0], "ids": [1, 2]}, *id_rows[1:]]
    with pytest.raises(PlanMismatchError, match=f'{OUT}: the data changed .*key "s0"'):
        precompute(OUT, changed)
    with pytest.raises(PlanMismatchError, match=f"{OUT}: the data ends after work unit 0"):
        precompute(OUT, id_rows[:3])


def test_ranks_share_a_store_and_what_is_done_so_far_can_be_read(
    store: type[FakeStore], precompute: Precompute, whole: dict[str, bytes], pristine: Path
) -> None:
    with pytest.raises(LabelSetError, match="no finished label set"):
        sl.LabelSet.open(OUT, unfinished=True)
    some = precompute(OUT, rank=1, world_size=2)
    assert not some.finished
    assert [receipt.unit for receipt in some.receipts] == [1]
    theirs = sl.LabelSet.open(pristine)
    assert torch.equal(some.get("s4").log_probs, theirs.get("s4").log_probs)
    folder = some.root
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "receipts"]
    del some
    gc.collect()
    assert not folder.exists()
    assert precompute(OUT, rank=0, world_size=2).finished
    assert in_store(store) == whole
    assert sl.LabelSet.open(OUT, unfinished=True).finished


def test_a_set_that_is_finished_while_it_is_opened_is_opened_finished(
    store: type[FakeStore], precompute: Precompute
) -> None:
    precompute(OUT)
    last = "labels/set/manifest.json"
    manifest = store.objects.pop(last)

    def finishing(operation: str, path: str, done: bool) -> None:
        if operation == "read" and path.endswith("plan.json"):
            store.objects[last] = manifest
            store.objects.pop("labels/set/receipts/00000.json", None)

    store.objects["labels/set/receipts/00000.json"] = b"{}"
    store.fault = finishing
    assert sl.LabelSet.open(OUT, unfinished=True).finished


def test_the_environments_secrets_are_nowhere_in_the_set(
    store: type[FakeStore], precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    precompute(OUT)
    assert not [name for name, data in store.objects.items() if b"hunter2" in data]
    assert not [name for name, data in store.contents("set").items() if b"labels/set" in data]


def test_the_command_line_takes_a_url(
    store: type[FakeStore],
    teacher_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a short text"}\n')
    code = command(
        [
            "precompute",
            "--teacher",
            str(teacher_dir),
            "--data",
            str(data),
            "--out",
            OUT,
            "--max-length",
            "32",
            "--quiet",
        ]
    )
    assert code == 0
    assert capsys.readouterr().out.startswith(f"{OUT}: 1 records of 1 samples")
    assert len(sl.LabelSet.open(OUT)) == 1

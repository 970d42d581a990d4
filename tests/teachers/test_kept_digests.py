"""Digests that were kept: hashed once a checkpoint, and never believed of another one."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import built
from checkpoints import into_hub_cache, save_adapter, write_gguf

from softlabels.teachers import causal_lm, checkpoint
from softlabels.teachers.identity import weights_digest


class Hashed:
    """Counts what is hashed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, module: torch.nn.Module) -> str:
        self.times += 1
        return weights_digest(module)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    counter = Hashed()
    monkeypatch.setattr(checkpoint, "weights_digest", counter)
    return counter


@pytest.fixture
def mine(tmp_path: Path, llama: Any) -> Path:
    llama.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def kept() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "softlabels" / "weights.json"


def test_a_checkpoint_is_hashed_once_and_its_digest_is_that_of_its_weights(
    mine: Path, llama: Any, hashed: Hashed
) -> None:
    found = {causal_lm(mine).identity.weights for _ in range(3)}
    assert found == {weights_digest(llama)}
    assert hashed.times == 1
    assert list(json.loads(kept().read_text()).values()) == [weights_digest(llama)]
    assert [file.name for file in kept().parent.iterdir()] == ["weights.json"]
    assert str(mine) not in kept().read_text()


def test_a_model_that_was_given_loaded_is_always_hashed(mine: Path, llama: Any) -> None:
    loaded = type(llama).from_pretrained(mine)
    causal_lm(mine).identity
    with torch.no_grad():
        loaded.lm_head.weight[0, 0] += 1
    assert causal_lm(loaded).identity.weights == weights_digest(loaded)


def other_weights(folder: Path) -> None:
    """Weights of the same size, written into the same file, which then gets its old time back."""
    file = folder / "model.safetensors"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino,
    )  # fmt: skip


def replaced(folder: Path) -> None:
    """Another file of the same size and time."""
    file = folder / "model.safetensors"
    data, before = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    (folder / "new").write_bytes(data)
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(folder / "new", file)


def fewer_layers(folder: Path) -> None:
    """The same weights, of which the config asks for fewer."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


@pytest.mark.parametrize("change", [other_weights, replaced, fewer_layers])
def test_a_checkpoint_that_changed_is_hashed_again(change: Any, mine: Path, hashed: Hashed) -> None:
    before = causal_lm(mine).identity.weights
    change(mine)
    teacher: Any = causal_lm(mine)
    assert teacher.identity.weights == weights_digest(teacher.model) != before
    assert hashed.times == 2


def test_another_dtype_or_task_is_another_digest(mine: Path, hashed: Hashed) -> None:
    from softlabels.teachers.tasks import TASKS

    found = {causal_lm(mine, dtype=dtype).identity.weights for dtype in ("float32", "bfloat16")}
    assert len(found) == 2
    device = torch.device("cpu")
    whole = checkpoint.Checkpoint(str(mine), checkpoint.Loading())
    assert whole.load(TASKS["causal_lm"], device)[1] in found
    assert hashed.times == 2


def test_a_file_that_changes_while_it_is_loaded_is_not_kept(
    mine: Path, hashed: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoint.Checkpoint._load

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        model = load(self, *arguments, **options)
        replaced(mine)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "_load", slow)
        before = causal_lm(mine).identity.weights
    assert not kept().exists()
    assert causal_lm(mine).identity.weights != before
    assert hashed.times == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a": 1}', b"[" * 100_000]
)
def test_a_damaged_cache_is_done_without_and_mended(
    damage: bytes, mine: Path, llama: Any, hashed: Hashed
) -> None:
    causal_lm(mine).identity
    kept().write_bytes(damage)
    assert causal_lm(mine).identity.weights == weights_digest(llama)
    assert causal_lm(mine).identity.weights == weights_digest(llama)
    assert hashed.times == 2


def test_an_entry_that_is_no_digest_is_not_believed(mine: Path, llama: Any) -> None:
    causal_lm(mine).identity
    (name,) = json.loads(kept().read_text())
    for wrong in (None, 5, "", "x" * 32, "ab" * 15, ["a"]):
        kept().write_text(json.dumps({name: wrong}))
        assert causal_lm(mine).identity.weights == weights_digest(llama)


def test_a_cache_that_cannot_be_written_is_done_without(
    mine: Path, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert causal_lm(mine).identity.weights == weights_digest(llama)


def test_a_relative_cache_home_is_ignored(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    causal_lm(mine).identity
    assert (tmp_path / "home/.cache/softlabels/weights.json").is_file()
    assert not (tmp_path / "here").exists()


def test_digests_of_others_stay_and_the_oldest_go(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.teachers import digests

    monkeypatch.setattr(digests, "_KEPT", 3)
    kept().parent.mkdir()
    kept().write_text(json.dumps({name: "0" * 32 for name in "abc"}))
    causal_lm(mine).identity
    found = list(json.loads(kept().read_text()))
    assert found[:2] == ["b", "c"]
    assert len(found) == 3
    assert stat.S_IMODE(kept().stat().st_mode) & 0o077 == 0


def test_a_snapshot_of_the_hub_is_known_by_its_blobs_whatever_their_time(
    mine: Path, llama: Any, hub: Path, hashed: Hashed
) -> None:
    snapshot = into_hub_cache(mine, hub)
    assert causal_lm("owner/model").identity.weights == weights_digest(llama)
    for blob in (snapshot.parents[1] / "blobs").iterdir():
        shutil.copy(blob, blob.with_suffix(".new"))
        os.replace(blob.with_suffix(".new"), blob)
        os.utime(blob, (1, 1))
    assert causal_lm("owner/model").identity.weights == weights_digest(llama)
    assert causal_lm(snapshot).identity.weights == weights_digest(llama)
    assert hashed.times == 1
    link = snapshot / "model.safetensors"
    data = bytearray(link.read_bytes())
    data[-1] ^= 1
    blob = link.resolve().with_name("f" * 64)
    blob.write_bytes(data)
    link.unlink()
    link.symlink_to(blob)
    assert causal_lm("owner/model").identity.weights != weights_digest(llama)
    assert hashed.times == 2


def test_adapters_and_ggufs_are_hashed_once_too_and_again_when_any_file_changes(
    mine: Path, tmp_path: Path, hashed: Hashed
) -> None:
    lora, gguf = tmp_path / "lora", tmp_path / "g" / "m.gguf"
    save_adapter(type(built("Llama")).from_pretrained(mine), lora)
    gguf.parent.mkdir()
    write_gguf(built("Llama"), gguf)
    first = [causal_lm(path).identity.weights for path in (lora, gguf)]
    assert [causal_lm(path).identity.weights for path in (lora, gguf)] == first
    assert hashed.times == 2
    replaced(mine)  # the adapter's base
    assert causal_lm(lora).identity.weights != first[0]
    save_adapter(type(built("Llama")).from_pretrained(mine), lora)
    assert causal_lm(lora).identity.weights != first[0]
    gguf.write_bytes(gguf.read_bytes())
    assert causal_lm(gguf).identity.weights == first[1]
    assert hashed.times == 5

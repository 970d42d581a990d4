"""A disk that fills, or a Ctrl-C, at any moment: a clear end, and the same command goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_set import contents
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError
from softlabels.stores import directory

Run = Callable[..., sl.LabelSet]


class FullDisk:
    """From the n-th fsync on there is no room: file systems that allocate late say so there."""

    def __init__(self, left: float) -> None:
        self.left, self.asked = left, 0

    def __call__(self, descriptor: int) -> None:
        self.asked += 1
        if self.asked > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_any_moment_leaves_a_set_that_goes_on(
    run: Run, tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = FullDisk(left=float("inf"))
    monkeypatch.setattr(os, "fsync", counting)
    whole = contents(run(out=tmp_path / "whole").root)
    # plan, two shards, two receipts, shard table, key index, card and manifest: each file and its
    # folder
    assert counting.asked == 18
    for left in range(counting.asked):
        out = tmp_path / f"full-{left}"
        monkeypatch.setattr(os, "fsync", FullDisk(left))
        with pytest.raises(InputError, match=r"the disk is full .* same command again to go on"):
            run(out=out)
        assert not (out / ".tmp").exists()
        monkeypatch.setattr(os, "fsync", lambda _: None)
        run(out=out)
        assert contents(out) == whole, f"after {left} writes"


@pytest.mark.parametrize("name", ["probe", "plan.json", "train-00000.parquet"])
def test_a_write_that_finds_no_room_is_told_in_words(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from contextlib import contextmanager

    workspace = directory.workspace

    @contextmanager
    def full(root: Path) -> Any:
        with workspace(root) as scratch:
            (scratch / name).symlink_to("/dev/full")  # every write to it is ENOSPC
            yield scratch

    teacher = TableTeacher()
    monkeypatch.setattr(directory, "workspace", full)
    with pytest.raises(InputError, match="the disk is full"):
        run(teacher=teacher)
    assert bool(teacher.batches) == (name == "train-00000.parquet")
    monkeypatch.setattr(directory, "workspace", workspace)
    left = {path for path in contents(tmp_path / "set") if path != "plan.json"}
    assert not left
    assert contents(run().root) == contents(run(out=tmp_path / "afresh").root)


def test_a_tokenizer_that_finds_no_room_leaves_no_half_of_it(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = sl.teachers.causal_lm(teacher_dir)
    kind = type(teacher.tokenizer)
    save = kind.save_pretrained

    def full(self: Any, folder: Path, *args: Any, **kwargs: Any) -> None:
        (Path(folder) / "tokenizer_config.json").write_text("{}")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def label(name: str) -> dict[str, bytes]:
        out = tmp_path / name
        few = rows[1:3]
        sl.precompute(few, teacher, out, selection=sl.TopK(2), max_length=64, progress=False)
        return contents(out)

    monkeypatch.setattr(kind, "save_pretrained", full)
    with pytest.raises(InputError, match="the disk is full"):
        label("set")
    assert set(contents(tmp_path / "set")) <= {"plan.json"}
    monkeypatch.setattr(kind, "save_pretrained", save)
    assert label("set") == label("afresh")


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_an_interrupted_run_leaves_whole_units_and_goes_on(
    run: Run, tmp_path: Path, batches: int
) -> None:
    def interrupt(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(teacher.batches) == batches:
            raise KeyboardInterrupt
        return logits

    out = tmp_path / "set"
    teacher = TableTeacher(wrong=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(teacher=teacher, batch_tokens=12)
    finished = ["data/train-00000.parquet", "receipts/00000.json"] if batches > 3 else []
    assert sorted(contents(out)) == sorted([*finished, "plan.json"])
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["data", "plan.json", *(["receipts"] if finished else [])]
    )
    again = TableTeacher()
    run(teacher=again, batch_tokens=None)
    assert len(again.batches) == (2 if finished else 5)
    assert contents(out) == contents(run(out=tmp_path / "afresh", batch_tokens=12).root)

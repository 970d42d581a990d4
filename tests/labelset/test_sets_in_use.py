"""Sets that are derived, opened, repaired and compared where something is not as it should be."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.cli.app import run
from softlabels.deriving.derive import derive
from softlabels.errors import InputError, TeacherError
from softlabels.format import layout, receipts
from softlabels.labelset.writer import LabelSetWriter
from softlabels.verifying.again import command
from softlabels.verifying.against import against
from softlabels.verifying.verify import repair, verify

Precompute = Callable[..., sl.LabelSet]


@pytest.mark.parametrize("taken", [{"fraction": 1 / 3, "seed": 5}, {"where": "-tail < 0"}])
def test_the_command_after_a_repair_finishes_the_set(
    tiny: Path, tmp_path: Path, taken: dict[str, Any]
) -> None:
    out = tmp_path / "derived"
    made = derive(tiny, out, progress=False, **taken)
    before = (out / layout.SHARDS).read_bytes()
    (out / made.receipts[0].path).write_bytes(b"")
    repair(out, verify(out))
    words, _ = command(made.plan, str(out))
    assert run([str(tiny) if w == "SOURCE" else w for w in shlex.split(words)[1:]]) == 0
    assert (out / layout.SHARDS).read_bytes() == before


def test_a_set_that_is_finished_while_it_is_opened_is_whole(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = LabelSetWriter.finish

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LabelSetWriter, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        precompute(tmp_path / "set")
    monkeypatch.setattr(LabelSetWriter, "finish", finish)
    unfinished = receipts.unfinished

    def other_job(root):
        precompute(root)
        return unfinished(root)

    monkeypatch.setattr(receipts, "unfinished", other_job)
    labels = sl.LabelSet.open(tmp_path / "set", unfinished=True)
    assert labels.finished
    assert len(labels) == 8


def test_a_relative_folder_may_look_like_a_url(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(precompute(Path("run:1"))) == 8


def test_logits_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    table = torch.randn(16, 16)

    def made(name, dtype):
        rows = [r | {"id": name + r["id"]} for r in id_rows]
        t = sl.teachers.from_callable(
            lambda ids: table[ids].to(dtype), name="t", version="1", classes=16
        )
        return precompute(tmp_path / name, rows=rows, teacher=t, codec="lossless")

    narrow, wide = made("narrow", torch.bfloat16), made("wide", torch.float32)
    with pytest.raises(InputError, match="first"):
        derive(narrow, tmp_path / "out", merge=[wide], progress=False)
    assert not (tmp_path / "out").exists()
    assert len(derive(wide, tmp_path / "out", merge=narrow, progress=False)) == 16


def test_a_folder_within_a_source_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="inside"):
        derive(tiny, tiny / "data" / "small", progress=False)
    assert not verify(tiny).findings


def test_a_teacher_that_gives_nan_or_other_classes_alone_is_not_the_same(tiny: Path) -> None:
    table = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 2
    labels = sl.LabelSet.open(tiny)

    def teacher(logits):
        return sl.teachers.from_callable(logits, name="t", version="1", classes=16)

    with pytest.raises(TeacherError, match="NaN"):
        against(labels, teacher(lambda ids: table[ids] * torch.nan))

    def elsewhere(ids):
        last = table[ids].argmin(-1, keepdim=True)
        return torch.full((*ids.shape, 16), -torch.inf).scatter(-1, last, 0.0)

    assert not against(labels, teacher(elsewhere)).same

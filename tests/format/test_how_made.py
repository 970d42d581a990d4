"""What a receipt says of how its shard was made: never of what the shard is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

import softlabels as sl
from softlabels.errors import LabelSetError
from softlabels.format import manifest
from softlabels.format.receipts import Receipts
from softlabels.labelset.writer import LabelSetWriter, begin

Precompute = Callable[..., sl.LabelSet]
ROWS = [{"text": "one two three"}, {"text": "four"}, {"text": "five six"}]


def label(teacher: Any, out: Path) -> sl.LabelSet:
    return sl.precompute(
        ROWS,
        teacher,
        out,
        selection=sl.TopK(3),
        max_length=64,
        unit_rows=2,
        codec="plain",
        progress=False,
    )


def test_receipts_say_how_long_a_unit_took_and_on_what(teacher_dir: Path, tmp_path: Path) -> None:
    labels = label(teacher_dir, tmp_path / "set")
    assert labels.receipts.accelerators() == ["cpu", "cpu"]
    seconds = labels.receipts.seconds()
    assert (seconds > 0).all()
    assert [receipt.seconds for receipt in labels.receipts] == seconds.tolist()


def test_a_receipt_rebuilt_from_its_shard_says_nothing_and_nothing_else_differs(
    teacher_dir: Path, tmp_path: Path
) -> None:
    whole = label(teacher_dir, tmp_path / "set")
    (tmp_path / "other").mkdir()
    for name in ("data", "plan.json", "tokenizer"):
        (tmp_path / "set" / name).rename(tmp_path / "other" / name)
    labels = label(teacher_dir, tmp_path / "other")
    assert np.isnan(labels.receipts.seconds()).all()
    assert labels.receipts.accelerators() == [None, None]
    how = {"seconds": None, "accelerator": None}
    assert [one.model_copy(update=how) for one in whole.receipts] == list(labels.receipts)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_seconds_that_are_none_are_refused(pristine: Path, seconds: float) -> None:
    (first, *_) = Receipts.parse((pristine / "shards.parquet").read_bytes(), where="")
    with pytest.raises(ValidationError, match="seconds"):
        manifest.Receipt.model_validate(first.model_dump() | {"seconds": seconds})
    if not np.isnan(seconds):  # in a column, that is what null is
        forged = Receipts.of([first.model_copy(update={"seconds": seconds})])
        with pytest.raises(LabelSetError, match="seconds"):
            forged.seconds()


def test_a_table_older_than_these_columns_says_nothing(pristine: Path, tmp_path: Path) -> None:
    table = pq.read_table(pristine / "shards.parquet").drop_columns(["seconds", "accelerator"])
    pq.write_table(table, tmp_path / "old.parquet")
    old = Receipts.parse((tmp_path / "old.parquet").read_bytes(), where="")
    assert np.isnan(old.seconds()).all()
    assert old.accelerators() == [None] * len(old)
    assert all(receipt.seconds is None for receipt in old)


def test_a_receipt_that_is_there_stays_when_a_slower_job_rebuilt_it(
    precompute: Precompute, tmp_path: Path
) -> None:
    """Two jobs that finish one set have to find the same receipts: both write the tables."""
    labels = precompute(tmp_path / "set")
    (first, *_) = labels.receipts
    (tmp_path / "set" / "manifest.json").unlink()
    with begin(tmp_path / "set", labels.plan, save_tokenizer=None) as writer:
        there = writer._keep(first.model_copy(update={"seconds": 5.0}))
        assert there.seconds == 5.0
        assert writer._keep(first.model_copy(update={"seconds": None})).seconds == 5.0
        found = writer.receipt(0)
    assert found is not None
    assert found.seconds == 5.0


def test_a_job_that_is_overtaken_while_it_finishes_leaves_the_other_ones_tables(
    precompute: Precompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    plan = precompute(out).plan
    (out / "manifest.json").unlink()
    settled = LabelSetWriter._settled

    def overtake(writer: LabelSetWriter, unit: int) -> manifest.Receipt:
        found = settled(writer, unit)
        if not whole:
            monkeypatch.setattr(LabelSetWriter, "_settled", settled)
            precompute(out)
            whole.update(shards=(out / "shards.parquet").read_bytes())
            whole.update(manifest=(out / "manifest.json").read_bytes())
        return found.model_copy(update={"seconds": 7.0})

    whole: dict[str, bytes] = {}
    monkeypatch.setattr(LabelSetWriter, "_settled", overtake)
    with begin(out, plan, save_tokenizer=None) as writer:
        writer.finish(2)
    assert (out / "shards.parquet").read_bytes() == whole["shards"]
    assert (out / "manifest.json").read_bytes() == whole["manifest"]
    labels = sl.LabelSet.open(out)
    assert torch.isfinite(labels[0].log_probs).all()

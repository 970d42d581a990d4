"""A codec that learns from a pilot: what it sees, and what a second run makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tables import TableTeacher

import softlabels as sl
from softlabels.codecs import Compact
from softlabels.precomputing import pilot as pilots
from softlabels.precomputing.pilot import fastest, find_batch_tokens
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]


def table_of(labels: sl.LabelSet) -> tuple[int, ...]:
    assert isinstance(labels.codec, Compact)
    return labels.codec.table.frequent


def test_a_compact_set_holds_what_a_plain_one_holds(
    tmp_path: Path, precompute: Precompute, pristine: Path
) -> None:
    compact = precompute(tmp_path / "set", codec="compact")
    plain = sl.LabelSet.open(pristine)
    assert verify(compact.root).findings == ()
    for ours, theirs in zip(compact[:], plain[:], strict=True):
        ours, theirs = ours.sorted(), theirs.sorted()
        assert torch.equal(ours.ids.sort(-1).values, theirs.ids.sort(-1).values)
        kl = sl.losses.kl_divergence(theirs.log_probs_at(1.0).new_zeros(len(ours), 16), ours)
        assert torch.isfinite(kl).all()
        assert (ours.log_probs_at(2.0).exp() - theirs.log_probs_at(2.0).exp()).abs().max() < 0.01
        assert (ours.logsumexp - theirs.logsumexp).abs().max() <= 2**-11 + 1e-5
    for batch in sl.loader(compact, batch_size=2, seed=0):
        assert batch["soft_labels"].mask.any()


def test_the_ids_of_the_pilot_come_first_in_the_table(
    tmp_path: Path, precompute: Precompute
) -> None:
    labels = precompute(tmp_path / "set", codec="compact")
    ids = np.concatenate([record.ids[record.mask].numpy().ravel() for record in labels[:]])
    counts = np.bincount(ids, minlength=16)
    # The pilot sees most of these six short samples, but not every window of the long one.
    assert set(table_of(labels)) <= set(np.flatnonzero(counts).tolist())
    assert counts[list(table_of(labels)[:4])].sum() > counts[list(table_of(labels)[-4:])].sum()


def test_a_second_run_takes_the_table_of_the_first_and_asks_the_teacher_nothing(
    tmp_path: Path, precompute: Precompute
) -> None:
    asked = 0
    weights = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))

    def teacher(ids: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return weights[ids]

    def run() -> sl.LabelSet:
        known = sl.teachers.from_callable(teacher, name="t", version="1", classes=16)
        return precompute(tmp_path / "set", teacher=known, codec="compact")

    first = run()
    assert asked
    asked = 0
    shard = first.root / "data" / "train-00001.parquet"
    before, data = table_of(first), shard.read_bytes()
    run()
    assert asked == 0
    shard.unlink()
    assert table_of(run()) == before
    assert shard.read_bytes() == data


def test_the_pilot_stumbles_over_no_sample(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    rows = [*id_rows, {"id": "void", "ids": []}]
    with pytest.raises(sl.errors.LabellingError, match="void"):
        precompute(tmp_path / "stops", rows, codec="compact")
    labels = precompute(tmp_path / "skips", rows, codec="compact", on_error="skip")
    assert labels.totals.rejects == 1
    assert table_of(labels)


def test_a_stream_is_read_once_so_its_table_is_empty(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    labels = precompute(tmp_path / "set", iter(id_rows), codec="compact")
    assert table_of(labels) == ()
    assert verify(labels.root).findings == ()


@pytest.mark.parametrize("names", [("compact", "plain"), ("plain", "compact")])
def test_another_codec_is_refused_in_a_line_and_before_a_pilot_runs(
    tmp_path: Path, precompute: Precompute, names: tuple[str, str]
) -> None:
    first, second = names
    precompute(tmp_path / "set", codec=first)

    def teacher(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the teacher was asked")

    known = sl.teachers.from_callable(teacher, name="table", version="1", classes=16)
    with pytest.raises(sl.errors.PlanMismatchError, match=rf'codec\.name was "{first}"') as caught:
        precompute(tmp_path / "set", teacher=known, codec=second)
    assert str(caught.value).count("codec.") == 1


def test_without_a_codec_a_second_run_keeps_the_first_one_s(
    tmp_path: Path, precompute: Precompute
) -> None:
    precompute(tmp_path / "old", codec="plain")
    assert precompute(tmp_path / "old", codec=None).plan.codec["name"] == "plain"
    assert precompute(tmp_path / "new", codec=None).plan.codec["name"] == "compact"


def test_tiny_means_eight_entries_where_no_selection_is_given(
    tmp_path: Path, precompute: Precompute
) -> None:
    labels = precompute(tmp_path / "set", codec="tiny", selection=None)
    assert (labels.plan.selection.k, labels.plan.codec["name"]) == (8, "compact")
    assert precompute(tmp_path / "three", codec="tiny").plan.selection.k == 3
    with pytest.raises(sl.errors.InputError, match=r"gives probabilities.*lossless"):
        precompute(tmp_path / "none", codec="sampled")


def test_a_run_begun_as_tiny_goes_on_without_being_told_again(
    tmp_path: Path, precompute: Precompute
) -> None:
    precompute(tmp_path / "set", codec="tiny", selection=None)
    again = precompute(tmp_path / "set", codec=None, selection=None)
    assert again.plan.selection.k == 8


def test_by_default_all_of_few_classes_are_kept(tmp_path: Path, precompute: Precompute) -> None:
    assert precompute(tmp_path / "set", codec=None, selection=None).plan.selection.k == 16


def test_a_stream_s_logits_are_kept_whatever_dtype_its_teacher_computes_in(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]]
) -> None:
    class Upcasts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(16, 16, dtype=torch.bfloat16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).float() * 1.1

    torch.manual_seed(0)
    module = Upcasts().eval()
    teacher = sl.teachers.from_callable(module, name="upcasts", version="1", classes=16)
    labels = precompute(tmp_path / "set", iter(id_rows), teacher=teacher, codec="lossless")
    records = labels.take([0])
    assert records.token_ids is not None
    logits = module(torch.from_numpy(records.token_ids)[None])[0]
    assert torch.equal(records.labels.logits, logits.gather(-1, records.labels.ids))


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 10, 2: 20, 4: 40, 8: 41, 16: 80}, 4),
        ({1: 10, 2: 20, 4: 40, 8: 80, 16: 160}, 16),
        ({1: 10, 2: 9, 4: 90, 8: 90, 16: 90}, 1),
        ({1: 10, 2: 20, 4: None, 8: 90, 16: 90}, 2),
        ({1: None, 2: 1, 4: 1, 8: 1, 16: 1}, 1),
    ],
)
def test_batches_grow_while_that_makes_them_faster_and_they_fit(
    rates: dict[int, float | None], best: int
) -> None:
    def rate(size: int) -> float:
        if (found := rates[size]) is None:
            raise torch.OutOfMemoryError("no")
        return found

    assert fastest(list(rates), rate) == best


def test_only_an_accelerator_is_tried(teacher_dir: Path) -> None:
    teacher: Any = sl.teachers.causal_lm(teacher_dir)
    assert find_batch_tokens(teacher, sl.TopK(4), length=64) == 8192
    assert "model" not in vars(teacher)  # not even loaded


def test_a_trial_runs_whole_batches_of_the_length_that_is_labelled() -> None:
    class Teacher:
        device, classes, positions = torch.device("meta"), 100, "every"

        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def logits(self, ids: Any, wanted: Any, *, padding: Any) -> Any:
            self.shapes.append(tuple(ids.shape))
            assert wanted[:, 0].all()
            assert bool(wanted.all()) == (self.positions == "every")
            assert not padding.any()
            yield torch.randn(int(wanted.sum()), 100)

    teacher: Any = Teacher()
    teacher.positions = "first"
    find_batch_tokens(teacher, sl.TopK(4), length=512)
    teacher = Teacher()
    found = find_batch_tokens(teacher, sl.TopK(4), length=512)
    assert found in {2048 << power for power in range(7)}
    assert teacher.shapes[:2] == [(4, 512)] * 2
    assert set(teacher.shapes) <= {(4 << power, 512) for power in range(7)}
    teacher.shapes.clear()
    find_batch_tokens(teacher, sl.TopK(4), length=3000)
    assert teacher.shapes[:3] == [(1, 3000), (1, 3000), (2, 3000)]


class Trying:
    """A teacher on a device that is tried, by a table; other jobs may run in the meantime."""

    def __new__(cls, seed: int = 0) -> Any:
        teacher: Any = TableTeacher(seed=seed)
        teacher.device = torch.device("meta")
        return teacher


def test_of_two_jobs_begun_together_the_second_takes_what_the_first_one_s_trial_found(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([24, 12])
    made: list[sl.LabelSet] = []

    def trial(sizes: Any, rate: Any) -> int:
        size = next(found)
        if size == 24:  # while this one tries, another begins, tries, publishes, and ends
            made.append(precompute(tmp_path / "set", teacher=Trying(), codec="compact"))
            for shard in (tmp_path / "set" / "data").iterdir():
                shard.unlink()
        return size

    monkeypatch.setattr(pilots, "fastest", trial)
    teacher = Trying()
    second = precompute(tmp_path / "set", teacher=teacher, codec="compact")
    assert second.plan == made[0].plan
    assert second.plan.batch_tokens == 12
    # A batch of the pilot, which came before, may be larger.
    assert max(ids.numel() for ids in teacher.batches[-3:]) <= 12
    assert verify(second.root).findings == ()


@pytest.mark.parametrize("changed", [{"batch_tokens": 24}, {"max_length": 5}, {"teacher": 1}])
def test_of_two_jobs_begun_together_a_second_that_was_asked_for_another_thing_is_refused(
    tmp_path: Path,
    precompute: Precompute,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
) -> None:
    from softlabels.precomputing import run as precompute_room

    writable = precompute_room.check_writable
    others = [{"teacher": Trying()}]

    def meanwhile(root: Path) -> None:
        if others:
            precompute(root, **others.pop())
        writable(root)

    monkeypatch.setattr(pilots, "fastest", lambda *_: 12)
    monkeypatch.setattr(precompute_room, "check_writable", meanwhile)
    teacher = Trying(seed=changed.pop("teacher", 0))
    with pytest.raises(sl.errors.PlanMismatchError, match=r"batch_tokens|max_length|weights"):
        precompute(tmp_path / "set", teacher=teacher, **changed)

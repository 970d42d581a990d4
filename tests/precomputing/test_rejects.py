"""Samples that cannot be labelled stop the run, or are counted and named in the rejects table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from same_set import contents
from tables import CLASSES, TableTeacher

import softlabels as sl
from softlabels.errors import LabellingError, TeacherError
from softlabels.verifying.verify import verify

Run = Callable[..., sl.LabelSet]

BAD = 15  # no row of these tests holds this token, unless its record is to fail


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Eight samples of which the fifth, r4, is bad in its second window."""
    samples = [{"id": f"r{i}", "ids": [i, i + 1, i + 2, 3][: 1 + i % 4]} for i in range(8)]
    samples[4]["ids"] = [1, 2, 3, 4, 5, 6, 7, BAD]
    return samples


def spoils(value: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def wrong(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        bad = input_ids == BAD
        logits[bad, 7] = value
        return logits

    return wrong


def raises(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if (input_ids == BAD).any():
        raise RuntimeError("no such token\x1b[2J")
    return logits


FAULTS: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "NaN": (spoils(torch.nan), "the teacher's logits are NaN or infinite"),
    "infinite": (spoils(torch.inf), "the teacher's logits are NaN or infinite"),
    "raised": (raises, "the teacher raised RuntimeError: no such token"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_fails_stops_the_run_with_its_key(
    run: Run, rows: list[dict[str, Any]], tmp_path: Path, fault: str
) -> None:
    wrong, words = FAULTS[fault]
    with pytest.raises(LabellingError) as caught:
        run(rows, teacher=TableTeacher(wrong=wrong))
    assert 'the sample with key "r4", part 1, cannot be labelled: ' + words in str(caught.value)
    assert 'on_error="skip"' in str(caught.value)
    assert str(caught.value).isprintable()
    # What was finished stays, and the same set comes out once the teacher is well again.
    assert [p.name for p in (tmp_path / "set" / "data").iterdir()] == ["train-00000.parquet"]
    run(rows)
    assert contents(tmp_path / "set") == contents(run(rows, out=tmp_path / "afresh").root)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_fails_is_skipped_noted_and_costs_no_other(
    run: Run, rows: list[dict[str, Any]], tmp_path: Path, fault: str
) -> None:
    wrong, words = FAULTS[fault]
    labels = run(rows, teacher=TableTeacher(wrong=wrong), on_error="skip")
    rejects = pq.read_table(labels.root / "rejects.parquet")
    assert rejects.schema.names == ["unit", "key", "part", "reason"]
    assert rejects.drop_columns("reason").to_pylist() == [{"unit": 1, "key": "r4", "part": 1}]
    assert rejects["reason"][0].as_py().startswith(words)
    manifest = json.loads((labels.root / "manifest.json").read_text())
    assert manifest["totals"]["rejects"] == labels.totals.rejects == 1
    assert manifest["totals"]["source_rows"] == 8
    assert "rejects.parquet" in manifest["files"]
    assert verify(labels.root).findings == ()
    assert labels.parts("r4") == [0]
    well = run(rows, out=tmp_path / "well")
    assert len(well) == len(labels) + 1
    for row in range(8):
        assert torch.equal(labels.get(f"r{row}").log_probs, well.get(f"r{row}").log_probs)


def test_classes_that_are_forbidden_are_no_fault(run: Run, rows: list[dict[str, Any]]) -> None:
    labels = run(rows, teacher=TableTeacher(wrong=spoils(-torch.inf)))
    assert labels.totals.rejects == 0
    assert 7 not in labels.get("r4", part=1).ids[1]


def test_empty_samples_are_named_or_noted(run: Run, id_rows: list[dict[str, Any]]) -> None:
    rows = [*id_rows[:4], {"id": "none", "ids": None}, {"id": "empty", "ids": []}]
    with pytest.raises(LabellingError, match=r'key "none", part 0.*empty: it has no tokens'):
        run(rows)
    labels = run(rows, on_error="skip")
    found = pq.read_table(labels.root / "rejects.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in found] == [
        ("none", "empty: it has no tokens"),
        ("empty", "empty: it has no tokens"),
    ]


def test_ids_that_the_teacher_does_not_have_are_named(run: Run) -> None:
    rows = [{"id": "a", "ids": [1, 2]}, {"id": "b", "ids": [1, 16]}]
    with pytest.raises(LabellingError, match=r'key "b".*token id 16 is outside'):
        run(rows)


def test_a_set_in_which_everything_was_rejected_is_finished_and_holds_nothing(run: Run) -> None:
    labels = run([{"id": f"e{i}", "ids": [] if i else [16]} for i in range(4)], on_error="skip")
    assert (len(labels), labels.totals.rejects, labels.totals.shards) == (0, 4, 2)
    assert verify(labels.root).findings == ()


def test_a_batch_that_fails_though_each_of_its_records_works_is_an_error(
    run: Run, id_rows: list[dict[str, Any]]
) -> None:
    def wrong(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(input_ids) > 1:
            raise ValueError("one at a time")
        return logits

    with pytest.raises(LabellingError, match="one at a time, for a batch"):
        run(teacher=TableTeacher(wrong=wrong), on_error="skip")


class Misshapen(TableTeacher):
    """Answers each batch with what `shape` makes of the right logits, (rows, V)."""

    def __init__(self, shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.shape = shape

    def logits(self, *args: Any, **kwargs: Any) -> Any:
        yield from map(self.shape, super().logits(*args, **kwargs))


SHAPES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "a row too few": (lambda x: x[1:], "rows of logits for"),
    "a row too many": (lambda x: torch.cat([x, x[:1]]), "expected at most"),
    "no rows": (lambda x: x[:0], "gave 0 rows of logits"),
    "a class too few": (lambda x: x[:, 1:], f"of {CLASSES} classes"),
    "a class too many": (lambda x: torch.cat([x, x[:, :1]], 1), f"of {CLASSES} classes"),
    "a batch dimension": (lambda x: x[None], "gave logits of shape"),
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_a_wrong_shape_are_the_teachers_fault_and_never_skipped(
    run: Run, tmp_path: Path, shape: str, on_error: str
) -> None:
    make, words = SHAPES[shape]
    with pytest.raises(TeacherError, match=words):
        run(teacher=Misshapen(make), on_error=on_error)
    assert not list((tmp_path / "set" / "data").iterdir())


def test_a_callable_of_a_wrong_shape_says_what_was_expected(run: Run) -> None:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, 9), name="nine", version="1", classes=CLASSES
    )
    with pytest.raises(TeacherError, match=r"'nine' returned .* expected logits of shape"):
        run(teacher=teacher)


LONG = {
    # on_long: records, positions, rejects, truncated of six samples, one of 15 tokens
    "window": (8, 40, 0, 0),
    "truncate": (6, 31, 0, 1),
    "reject": (5, 25, 1, 0),
}


@pytest.mark.parametrize("on_long", LONG)
def test_long_samples_are_counted(run: Run, on_long: str) -> None:
    labels = run(on_long=on_long)
    totals = labels.totals
    found = (totals.records, totals.positions, totals.rejects, totals.truncated)
    assert found == LONG[on_long]
    assert totals == verify_totals(labels)
    if on_long == "reject":
        [row] = pq.read_table(labels.root / "rejects.parquet").to_pylist()
        assert (row["key"], row["reason"]) == ("s1", "15 tokens, more than max_length 6")
        assert row["unit"] == 0


def verify_totals(labels: sl.LabelSet) -> Any:
    report = verify(labels.root)
    assert report.findings == ()
    assert (report.records, report.positions) == (labels.totals.records, labels.totals.positions)
    return labels.totals


def test_a_long_sample_can_stop_the_run(run: Run) -> None:
    with pytest.raises(LabellingError, match=r'key "s1".*15 tokens, more than max_length 6'):
        run(on_long="raise")
    assert run(on_long="raise", on_error="skip").totals.rejects == 1


def test_integer_keys_are_kept_as_integers_in_the_rejects_table(run: Run) -> None:
    rows = [{"id": 7, "ids": [1]}, {"id": -3, "ids": []}]
    labels = run(rows, on_error="skip")
    rejects = pq.read_table(labels.root / "rejects.parquet")
    assert rejects.schema.field("key").type == pa.int64()
    assert rejects["key"].to_pylist() == [-3]


def test_rejects_are_noted_again_after_a_resume(run: Run, rows: list[dict[str, Any]]) -> None:
    teacher = TableTeacher(wrong=raises)
    labels = run(rows, teacher=teacher, on_error="skip")
    before = contents(labels.root)
    (labels.root / "data" / "train-00002.parquet").unlink()
    run(rows, teacher=TableTeacher(wrong=raises), on_error="skip")
    assert contents(labels.root) == before

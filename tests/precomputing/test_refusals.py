"""The same command goes on; another recipe is refused, named, and changes nothing on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_set import contents
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError, PlanMismatchError
from softlabels.precomputing import pilot as pilots
from softlabels.precomputing import settle as rooms

Run = Callable[..., sl.LabelSet]


@pytest.fixture(params=["finished", "begun"])
def started(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Path:
    """A set of two units: finished, or stopped after the first."""

    def stop(input_ids: Any, logits: Any) -> Any:
        if len(stopping.batches) > 3:
            raise KeyboardInterrupt
        return logits

    if request.param == "finished":
        run()
    else:
        stopping = TableTeacher(wrong=stop)
        with pytest.raises(KeyboardInterrupt):
            run(teacher=stopping, batch_tokens=12)
        assert [p.name for p in (tmp_path / "set" / "data").iterdir()] == ["train-00000.parquet"]
    return tmp_path / "set"


def refused(started: Path, run: Run, *args: Any, **options: Any) -> str:
    """What the refusal says; nothing on disk may have changed."""
    before = contents(started)
    if not (started / "manifest.json").exists():
        options.setdefault("batch_tokens", 12)
    teacher = options.setdefault("teacher", TableTeacher())
    with pytest.raises(PlanMismatchError) as caught:
        run(*args, **options)
    assert contents(started) == before
    assert not teacher.batches
    return str(caught.value)


SETTINGS = {
    "selection": (sl.TopK(4), "selection.k was 3, is now 4"),
    "max_length": (7, "preparation.max_length was 6, is now 7"),
    "overlap": (2, "preparation.overlap was 0, is now 2"),
    "on_long": ("truncate", 'preparation.on_long was "window", is now "truncate"'),
    "temperatures": ((1.0,), "temperatures was [1.0, 2.0], is now [1.0]"),
    "store_inputs": (False, "store_inputs was true, is now false"),
    "limit": (5, "data.limit was null, is now 5"),
    "key": (None, 'data.key was "id", is now null'),
    "unit_rows": (2, "unit_rows was 3, is now 2"),
    "batch_tokens": (99, "batch_tokens was"),
    "column": ("more", "data.columns was"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_setting_is_refused_by_name(
    started: Path, run: Run, id_rows: list[dict[str, Any]], name: str
) -> None:
    value, words = SETTINGS[name]
    rows = [{**row, "more": row["ids"]} for row in id_rows]
    assert words in refused(started, run, rows, **{name: value})


def test_a_teacher_with_other_weights_is_refused(started: Path, run: Run) -> None:
    assert "teacher.weights was" in refused(started, run, teacher=TableTeacher(seed=1))


def test_a_retrained_model_of_the_same_name_is_refused(
    tmp_path: Path, finished_set: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    import shutil

    import torch

    out = Path(shutil.copytree(finished_set, tmp_path / "set"))
    before = contents(out)
    retrained = copy.deepcopy(model)
    with torch.no_grad():
        retrained.model.norm.weight[0] += 1e-3
    teacher = sl.teachers.causal_lm(retrained, tokenizer=tokenizer)
    with pytest.raises(PlanMismatchError, match=r"teacher\.weights was"):
        sl.precompute(
            rows, teacher, out, selection=sl.TopK(16), key="id", max_length=64, progress=False
        )
    assert contents(out) == before


def changed(rows: list[dict[str, Any]], index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**row, **fields} if i == index else row for i, row in enumerate(rows)]


def test_a_changed_sample_is_refused_by_key(
    started: Path, run: Run, id_rows: list[dict[str, Any]]
) -> None:
    words = refused(started, run, changed(id_rows, 1, ids=[1, 2, 3]))
    assert 'the sample with key "s1" has input digest' in words
    assert "data/train-00000.parquet" in words


def test_a_changed_key_or_order_is_refused(
    started: Path, run: Run, id_rows: list[dict[str, Any]]
) -> None:
    swapped = [id_rows[1], id_rows[0], *id_rows[2:]]
    assert "another order" in refused(started, run, swapped)
    assert "other keys" in refused(started, run, changed(id_rows, 2, id="s9"))


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_shortened_data_is_refused(
    tmp_path: Path, run: Run, id_rows: list[dict[str, Any]], kept: int
) -> None:
    run()
    words = refused(tmp_path / "set", run, id_rows[:kept])
    assert "became shorter" in words if kept == 3 else f"now {kept % 3}" in words


@pytest.mark.parametrize("more", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [4, 6])
@pytest.mark.parametrize("stream", [False, True])
def test_lengthened_data_is_refused(
    tmp_path: Path, run: Run, id_rows: list[dict[str, Any]], more: int, first: int, stream: bool
) -> None:
    rows = [*id_rows, *({"id": f"t{i}", "ids": [i, 1]} for i in range(4))]
    run(rows[:first])
    longer = rows[: first + more]
    words = refused(tmp_path / "set", run, iter(longer) if stream else longer)
    assert "became longer" in words if first == 6 else "unit of 1 rows, now" in words


def test_what_is_only_a_name_may_change(
    started: Path, run: Run, id_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    import datasets

    data = datasets.Dataset.from_list([{**row, "unused": 1} for row in id_rows])
    batch_tokens = None if (started / "manifest.json").exists() else 12
    assert run(data, batch_tokens=batch_tokens).finished
    afresh = run(out=tmp_path / "afresh", batch_tokens=batch_tokens).root
    assert contents(started / "data") == contents(afresh / "data")


def test_unit_rows_and_batch_tokens_are_the_plans_when_not_given(
    started: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "DEFAULT_UNIT_ROWS", 1)
    monkeypatch.setattr(pilots, "DEFAULT_BATCH_TOKENS", 1)
    plan = (started / "plan.json").read_bytes()
    labels = run(unit_rows=None, batch_tokens=None)
    assert labels.finished
    assert labels.plan.unit_rows == 3
    assert (started / "plan.json").read_bytes() == plan


def test_a_finished_set_is_left_alone_and_its_teacher_does_not_run(
    run: Run, tmp_path: Path
) -> None:
    run()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    teacher = TableTeacher()
    assert run(teacher=teacher).finished
    assert not teacher.batches
    # Of the folder itself the time changes: a workspace is made in it and removed.
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


def test_a_plan_that_cannot_be_read_is_an_error_that_names_it(run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / "set" / "plan.json").write_text("{")
    teacher = TableTeacher()
    with pytest.raises(sl.errors.UnsupportedFormatError, match=r"plan\.json"):
        run(teacher=teacher)
    assert not teacher.loaded


def test_a_unit_of_another_plan_is_not_taken(run: Run, tmp_path: Path) -> None:
    run()
    run(out=tmp_path / "other", selection=sl.TopK(4))
    shard = tmp_path / "set" / "data" / "train-00000.parquet"
    shard.write_bytes((tmp_path / "other" / "data" / "train-00000.parquet").read_bytes())
    with pytest.raises(sl.errors.CorruptShardError, match="train-00000"):
        run()


def test_unknown_choices_are_refused_before_anything_is_read(run: Run) -> None:
    for options in ({"unit_rows": 0}, {"batch_tokens": -1}, {"on_error": "ignore"}):
        with pytest.raises(InputError, match=next(iter(options))):
            run(iter(()), **options)

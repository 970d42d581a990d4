"""Arrays from rows to batches: labelled, seen in views, joined and made again bit for bit."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl
from softlabels.errors import (
    InputError,
    JoinError,
    LabellingError,
    PlanMismatchError,
    VocabularyMismatchError,
)

CLASSES = 5
Row = dict[str, Any]


def images(count: int = 12) -> list[Row]:
    rng = np.random.default_rng(0)
    shape = (6, 6)
    return [
        {
            "id": f"s{i}",
            "image": rng.integers(0, 256, shape).astype(np.float32) / 256,
            "label": i % CLASSES,
            "place": i,
        }
        for i in range(count)
    ]


def linear(width: int = 36) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(width, CLASSES))


def teacher(**options: Any) -> Any:
    return sl.teachers.from_callable(linear(), classes=CLASSES, takes="arrays", **options)


def draw(rng: np.random.Generator, sample: np.ndarray) -> Row:
    return {"shift": int(rng.integers(-2, 3)), "share": float(rng.uniform(0.3, 0.9))}


def shifted(sample: np.ndarray, params: Row) -> np.ndarray:
    return np.roll(sample, params["shift"], 1) * np.float32(params["share"])


def mixed(sample: np.ndarray, params: Row, other: np.ndarray) -> np.ndarray:
    share = np.float32(params["share"])
    return share * sample + (1 - share) * other


SHIFTS = sl.Views(shifted, draw, count=3, seed=7)
MIXES = sl.Views(mixed, draw, count=2, seed=7, partner=True, clean=True)


def label(out: Path, rows: Any, by: Any = None, **options: Any) -> sl.LabelSet:
    settings = {"column": "image", "key": "id", "codec": "plain", "unit_rows": 5} | options
    return sl.precompute(rows, teacher() if by is None else by, out, **settings)


def belief(batch: Row, model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        log_probs: torch.Tensor = torch.log_softmax(model(batch["inputs"]), -1)
    return log_probs


def test_a_batch_has_the_arrays_and_what_the_teacher_said_of_each(tmp_path: Path) -> None:
    rows = images()
    labels = label(tmp_path / "a", rows, label="label")
    assert (labels.plan.preparation.kind, labels.plan.store_inputs) == ("array", False)
    batches = list(sl.loader(labels, rows, batch_size=5, shuffle=False))
    assert [key for batch in batches for key in batch["key"]] == [row["id"] for row in rows]
    for batch in batches:
        y = batch["soft_labels"]
        assert y.shape == (len(batch["key"]),)
        assert y.mask is not None
        assert bool(y.mask.all())
        expected = belief(batch, linear())
        torch.testing.assert_close(expected.gather(-1, y.ids), y.log_probs)
        hard = expected.gather(-1, batch["label"][:, None])[:, 0]
        torch.testing.assert_close(hard, y.hard_log_probs)
        chosen = [rows[place]["image"] for place in batch["place"].tolist()]
        assert torch.equal(batch["inputs"], torch.from_numpy(np.stack(chosen)))
        loss = sl.losses.kl_divergence(expected, y)
        assert loss.shape == y.shape
        assert float(loss.max()) < 1e-6


@pytest.mark.parametrize("views", [SHIFTS, MIXES], ids=["one sample", "with a partner"])
def test_stored_views_come_back_bit_for_bit_whatever_the_order(
    views: sl.Views, tmp_path: Path
) -> None:
    rows = images()
    labels = label(tmp_path / "a", rows, views=views)
    other = label(tmp_path / "b", rows[::-1], views=views, unit_rows=3, batch_tokens=40)
    assert labels.plan.requires == ("views",)
    assert len(labels) == len(other) == len(rows) * views.count
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for batch in sl.loader(labels, rows[5:] + rows[:5], batch_size=7, seed=1, views=views):
        y, expected = batch["soft_labels"], belief(batch, linear())
        torch.testing.assert_close(expected.gather(-1, y.ids), y.log_probs)
        for key, view, array in zip(
            batch["key"], batch["view"].tolist(), batch["inputs"], strict=True
        ):
            seen[key, view] = array
    assert len(seen) == len(labels)
    for batch in sl.loader(other, rows, batch_size=2, views=views):
        for key, view, array in zip(
            batch["key"], batch["view"].tolist(), batch["inputs"], strict=True
        ):
            assert torch.equal(seen[key, view], array)


def test_a_view_is_made_of_the_parameters_that_are_stored(tmp_path: Path) -> None:
    rows = images(4)
    labels = label(tmp_path / "a", rows, views=MIXES)
    table = labels.columns(["key", "view", "view_params"]).to_pylist()
    images_of = {row["id"]: row["image"] for row in rows}
    batch = next(iter(sl.loader(labels, rows, batch_size=8, shuffle=False, views=MIXES)))
    for record, array in zip(table, batch["inputs"].numpy(), strict=True):
        told = record["view_params"]
        expected = images_of[record["key"]]
        if record["view"]:
            params = json.loads(told)
            assert params["partner"] != record["key"]
            expected = mixed(expected, params, images_of[params["partner"]])
        else:
            assert told is None
        np.testing.assert_array_equal(array, expected)


def test_seeds_stand_for_parameters_and_make_the_same_views(tmp_path: Path) -> None:
    rows, seeds = images(6), sl.Views(shifted, draw, count=3, seed=7, keep="seeds")
    label(tmp_path / "params", rows, views=SHIFTS)
    label(tmp_path / "seeds", rows, views=seeds)
    made = []
    for name, views in (("params", SHIFTS), ("seeds", seeds)):
        labels = sl.LabelSet.open(tmp_path / name)
        batch = next(iter(sl.loader(labels, rows, batch_size=18, shuffle=False, views=views)))
        made.append(batch["inputs"])
        told = [json.loads(t) for t in labels.columns(["view_params"])["view_params"].to_pylist()]
        assert set(told[0]) == ({"shift", "share"} if name == "params" else {"seed"})
    assert torch.equal(*made)


def test_one_view_an_epoch_in_turn(tmp_path: Path) -> None:
    rows = images(6)
    labels = label(tmp_path / "a", rows, views=SHIFTS)
    loader = sl.loader(labels, rows, batch_size=4, seed=0, parts="cycle", views=SHIFTS)
    for epoch in range(4):
        loader.set_epoch(epoch)
        views = [view for batch in loader for view in batch["view"].tolist()]
        assert views == [epoch % 3] * len(rows)


def changed(sample: np.ndarray, params: Row) -> np.ndarray:
    return np.roll(sample, params["shift"], 0) * np.float32(params["share"])


def test_a_view_that_comes_out_otherwise_is_refused_and_what_differs_is_named(
    tmp_path: Path,
) -> None:
    rows = images(6)
    stored = sl.Views(shifted, draw, count=2, libraries=("pyarrow",))
    labels = label(tmp_path / "a", rows, views=stored)
    now = sl.Views(changed, draw, count=2, name="shifted", libraries=("xxhash",))
    loader = sl.loader(labels, rows, views=now)
    with pytest.raises(
        JoinError, match=r"view 0.*pyarrow was .* is not named, xxhash was not named"
    ):
        list(loader)
    with pytest.raises(InputError, match="pass what makes them"):
        sl.loader(labels, rows)
    with pytest.raises(InputError, match="whose name is 'shifted', these have 'changed'"):
        sl.loader(labels, rows, views=sl.Views(changed, draw, count=2))
    plain = label(tmp_path / "b", rows)
    with pytest.raises(InputError, match="has no views"):
        sl.loader(plain, rows, views=stored)


def test_a_changed_array_is_refused_by_its_key(tmp_path: Path) -> None:
    rows = images(6)
    labels = label(tmp_path / "a", rows)
    rows[2]["image"] = rows[2]["image"] + 1
    for verify in ("always", "never"):
        with pytest.raises(JoinError, match='key "s2"'):
            list(sl.loader(labels, rows, verify_inputs=verify))


def test_a_changed_label_is_refused_and_a_changed_view_begins_no_set(tmp_path: Path) -> None:
    rows = images(6)
    labels = label(tmp_path / "a", rows, label="label", views=SHIFTS)
    with pytest.raises(PlanMismatchError, match=r"views\.count was 3, is now 2"):
        label(tmp_path / "a", rows, label="label", views=sl.Views(shifted, draw, count=2, seed=7))
    rows[0]["label"] = 4
    with pytest.raises(JoinError, match='key "s0"'):
        list(sl.loader(labels, rows, views=SHIFTS))


def frames(row: int, count: int) -> np.ndarray:
    return np.random.default_rng(row).random((count, 4), np.float32)


def test_every_index_of_the_first_axis_may_have_a_label_and_shorter_ones_are_padded(
    tmp_path: Path,
) -> None:
    rows = [{"id": i, "image": frames(i, 2 + i % 3)} for i in range(7)]
    torch.manual_seed(0)
    model = torch.nn.Linear(4, CLASSES)
    by = sl.teachers.from_callable(model, classes=CLASSES, takes="arrays", positions="every")
    labels = label(tmp_path / "a", rows, by)
    assert labels.totals.positions == sum(len(row["image"]) for row in rows)
    for batch in sl.loader(labels, rows, batch_size=3, seed=0):
        y = batch["soft_labels"]
        assert y.mask is not None
        assert torch.equal(y.mask, torch.arange(y.shape[1]) < batch["lengths"][:, None])
        expected = belief(batch, model).gather(-1, y.ids)
        torch.testing.assert_close(expected[y.mask], y.log_probs[y.mask])
        assert torch.equal(batch["inputs"][~y.mask], torch.zeros_like(batch["inputs"][~y.mask]))


def test_a_batch_of_arrays_of_two_sizes_says_which(tmp_path: Path) -> None:
    rows = [{"id": 0, "image": frames(0, 4)}, {"id": 1, "image": frames(1, 4)[:, :3]}]
    means = torch.nn.AdaptiveAvgPool2d((1, CLASSES))
    by = sl.teachers.from_callable(
        lambda arrays: means(arrays)[:, 0],
        name="means",
        version="1",
        classes=CLASSES,
        takes="arrays",
    )
    labels = label(tmp_path / "a", rows, by)
    assert [len(b["key"]) for b in sl.loader(labels, rows, batch_size=1)] == [1, 1]
    with pytest.raises(InputError, match=r'shape \(4, 3\).*key "0" of float32.*batch_size=1'):
        list(sl.loader(labels, rows, batch_size=2, shuffle=False))


def raising(sample: np.ndarray, params: Row) -> np.ndarray:
    if sample[0, 0] == 0:
        raise ValueError("black")
    return sample


def test_a_sample_without_an_array_or_view_is_a_reject_with_all_its_views(tmp_path: Path) -> None:
    rows = images(6)
    rows[1]["image"] = None
    rows[3]["image"] = np.zeros((6, 6), np.float32)
    views = sl.Views(raising, draw, count=2)
    with pytest.raises(LabellingError, match=r'key "s1".*empty'):
        label(tmp_path / "a", rows, views=views)
    labels = label(tmp_path / "b", rows, views=views, on_error="skip")
    assert labels.rejected == {"s1", "s3"}
    assert len(labels) == 8
    loader = sl.loader(labels, rows, views=views, batch_size=4)
    assert sorted({key for batch in loader for key in batch["key"]}) == ["s0", "s2", "s4", "s5"]


def test_rows_without_labels_come_as_they_are_for_their_hard_labels(tmp_path: Path) -> None:
    rows = images(8)
    labels = label(tmp_path / "a", rows[:5], label="label", views=SHIFTS)
    loader = sl.loader(
        labels, rows, batch_size=4, on_missing="hard-label", views=SHIFTS, parts="one"
    )
    alone = {}
    for batch in loader:
        y = batch["soft_labels"]
        for place, key in enumerate(batch["key"]):
            if not bool(y.mask[place]):
                alone[key] = batch["inputs"][place]
    assert sorted(alone) == ["s5", "s6", "s7"]
    assert torch.equal(alone["s6"], torch.from_numpy(rows[6]["image"]))


def test_a_rank_without_a_batch_gets_an_array_without_labels(tmp_path: Path) -> None:
    rows = images(4)
    labels = label(tmp_path / "a", rows)
    options = {"batch_size": 3, "shuffle": False, "world_size": 2}
    (filler,) = sl.loader(labels, rows[:3], rank=1, on_missing="skip", **options)
    assert filler["key"] == [None]
    assert filler["inputs"].shape == (1, 6, 6)
    assert not bool(filler["soft_labels"].mask.any())


def test_rows_of_a_file_and_two_workers_make_the_same_set(
    tmp_path: Path,
) -> None:
    import pyarrow.parquet as pq

    from softlabels.inputs.rows import to_table

    rows = images(9)
    pq.write_table(to_table(rows), tmp_path / "data.parquet")
    one = label(tmp_path / "a", rows, views=SHIFTS)
    two = label(tmp_path / "b", str(tmp_path / "data.parquet"), views=SHIFTS, workers=2)
    assert one.identities.equals(two.identities)
    for mine, theirs in zip(one[:], two[:], strict=True):
        assert torch.equal(mine.ids, theirs.ids)
    loaded = sl.loader(two, str(tmp_path / "data.parquet"), batch_size=9, views=SHIFTS)
    assert sum(len(batch["key"]) for batch in loaded) == 27
    assert os.path.exists(tmp_path / "b" / "manifest.json")


def test_views_go_to_another_process(tmp_path: Path) -> None:
    back = pickle.loads(pickle.dumps(MIXES))
    assert back.identity == MIXES.identity


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({"count": 0}, "at least 1"),
        ({"keep": "nothing"}, "'params' or 'seeds'"),
        ({"draw": None}, "are functions"),
        ({"libraries": ("no-such-package",)}, "not installed"),
    ],
)
def test_views_that_cannot_be_are_refused(views: Row, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sl.Views(**({"augment": shifted, "draw": draw, "count": 1} | views))


def far(rng: np.random.Generator, sample: np.ndarray) -> Any:
    return {"shift": np.int64(1), "share": 1.0}


def endless(rng: np.random.Generator, sample: np.ndarray) -> Any:
    return {"numbers": [0.5] * 20_000}


def worded(sample: np.ndarray, params: Row) -> Any:
    return ["no", "array"]


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (sl.Views(shifted, far, count=1), "cannot be stored"),
        (sl.Views(shifted, endless, count=1), "keep='seeds'"),
        (sl.Views(worded, draw, count=1), "has to give an array of numbers"),
    ],
)
def test_a_view_that_cannot_be_stored_or_made_says_why(
    views: sl.Views, words: str, tmp_path: Path
) -> None:
    with pytest.raises(LabellingError, match=words):
        label(tmp_path / "a", images(2), views=views)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store_inputs": True}, "no arrays"),
        ({"views": shifted}, "expected softlabels.Views"),
        ({"column": "id"}, "the teacher takes arrays"),
        ({"label": "image"}, "a class's number or its name"),
        ({"label": "nothing"}, "no column"),
    ],
)
def test_what_does_not_go_with_arrays_is_refused_at_once(
    options: Row, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        label(tmp_path / "a", images(2), **options)


def test_labels_by_name_and_labels_that_are_none(tmp_path: Path) -> None:
    rows = [row | {"label": None if i == 1 else f"c{i}"} for i, row in enumerate(images(4))]
    named = teacher(class_names=[f"c{i}" for i in range(CLASSES)])
    labels = label(tmp_path / "a", rows, named, label="label")
    assert labels.plan.class_names == ("c0", "c1", "c2", "c3", "c4")
    hard = torch.cat([y.hard_log_probs for y in labels[:]])
    assert hard.isnan().tolist() == [False, True, False, False]
    with pytest.raises(InputError, match=r"names of classes.*class_names="):
        label(tmp_path / "b", rows, label="label")
    with pytest.raises(InputError, match='label "c9"'):
        label(tmp_path / "c", [rows[0] | {"label": "c9"}], named, label="label")
    with pytest.raises(InputError, match=r"label 5.*0 … 4"):
        label(tmp_path / "d", [rows[0] | {"label": 5}], label="label")


def test_classes_come_with_the_students_own_numbers(tmp_path: Path) -> None:
    rows, names = images(6), [f"c{i}" for i in range(CLASSES)]
    labels = label(tmp_path / "a", rows, teacher(class_names=names))
    mine = ["c3", "c0", "c4", "c1", "c2"]
    batch = next(iter(sl.loader(labels, rows, batch_size=6, class_names=mine)))
    y, expected = batch["soft_labels"], belief(batch, linear())
    own = torch.stack([expected[:, int(name[1:])] for name in mine], -1)
    torch.testing.assert_close(own.gather(-1, y.ids), y.log_probs)
    other = label(tmp_path / "b", rows, teacher(class_names=mine))
    with pytest.raises(VocabularyMismatchError, match=r'class 0 is "c3", in the first one "c0"'):
        sl.loader([labels, other], rows)
    both = next(iter(sl.loader([labels, other], rows, batch_size=6, class_names=mine)))
    one, two = both["soft_labels"]
    torch.testing.assert_close(own.gather(-1, one.ids), one.log_probs)
    # The same network, whose outputs have other names.
    torch.testing.assert_close(expected.gather(-1, two.ids), two.log_probs)
    for wrong, words in (
        (mine[:4], 'the student has no class "c2"'),
        ([*mine, "owl"], 'the set has no class "owl"'),
        ([*mine, "c3"], "not all different"),
    ):
        with pytest.raises(VocabularyMismatchError, match=words):
            sl.loader(labels, rows, class_names=wrong)
    with pytest.raises(InputError, match="does not name its classes"):
        sl.loader(label(tmp_path / "d", rows), rows, class_names=mine)


def test_units_of_large_arrays_have_fewer_rows(tmp_path: Path) -> None:
    large = [{"id": i, "image": np.zeros((600, 600), np.float32)} for i in range(3)]
    by = sl.teachers.from_callable(
        lambda arrays: arrays[:, 0, :CLASSES], name="corner", version="1", classes=CLASSES,
        takes="arrays",
    )  # fmt: skip
    labels = label(tmp_path / "a", large, by, unit_rows=None)
    assert labels.plan.unit_rows == 256
    views = sl.Views(shifted, draw, count=4)
    seen = label(tmp_path / "b", large, by, unit_rows=None, views=views)
    assert seen.plan.unit_rows == (1 << 30) // (8 * 600 * 600 * 4) == 93


def overwriting(sample: np.ndarray, params: Row, other: np.ndarray) -> np.ndarray:
    sample += other
    other[:] = 0
    return sample


def test_what_augment_writes_into_its_arguments_reaches_no_other_view(tmp_path: Path) -> None:
    rows = images()
    before = [row["image"].copy() for row in rows]
    views = sl.Views(overwriting, draw, count=3, partner=True, clean=True)
    labels = label(tmp_path / "a", rows, views=views)
    seen = [
        batch["inputs"]
        for batch in sl.loader(labels, rows, batch_size=5, seed=0, views=views, parts="all")
    ]
    assert sum(map(len, seen)) == 36
    assert all(np.array_equal(row["image"], b) for row, b in zip(rows, before, strict=True))


def random(sample: np.ndarray, params: Row) -> np.ndarray:
    return sample + np.random.default_rng().random(sample.shape).astype(sample.dtype)


def test_an_augment_that_draws_by_itself_is_refused_before_the_teacher_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="draw everything in draw"):
        label(tmp_path / "a", images(), views=sl.Views(random, draw, count=2))
    with pytest.raises(InputError, match="draw everything in draw"):
        label(tmp_path / "b", images(), views=sl.Views(random, draw, count=2), on_error="skip")

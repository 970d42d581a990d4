"""Rows without labels and labels without rows: refused, left out or trained on, and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from delivered import contents

import softlabels as sl
from softlabels.errors import InputError, JoinError
from softlabels.loading.join import JoinReport

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]

FORMS: dict[str, Callable[[Samples], Any]] = {
    "list": lambda samples: samples,
    "stream": lambda samples: datasets.Dataset.from_list(samples).to_iterable_dataset(),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Callable[[Samples], Any]:
    return FORMS[request.param]


@pytest.fixture
def fewer(tmp_path: Path, precompute: Precompute, samples: Samples) -> sl.LabelSet:
    """Labels of all samples but s1, which has three windows, and s4."""
    kept = [s for s in samples if s["id"] not in ("s1", "s4")]
    return precompute(tmp_path / "set", kept, overlap=1)


def test_a_row_without_labels_is_an_error_that_names_it(
    fewer: sl.LabelSet, samples: Samples, form: Callable[[Samples], Any]
) -> None:
    with pytest.raises(JoinError, match=r'key "s1" \(row 1.*no labels.*hard-label'):
        list(sl.loader(fewer, form(samples)))


def test_rows_without_labels_are_skipped_counted_and_reported(
    fewer: sl.LabelSet,
    samples: Samples,
    form: Callable[[Samples], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    loader = sl.loader(fewer, form(samples), on_missing="skip", batch_size=3)
    with caplog.at_level(logging.WARNING, "softlabels"):
        assert contents(loader) == contents(sl.loader(fewer))
    assert loader.report == JoinReport(len(fewer), 2, "s1")
    if form is FORMS["stream"]:
        assert "2 rows of the data have no labels, the first has key" in caplog.text


def test_labels_without_rows_are_left_out_and_reported(
    labels: sl.LabelSet,
    samples: Samples,
    form: Callable[[Samples], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    some = [s for s in samples if s["id"] not in ("s1", "s4")]
    lost = len(labels.parts("s1")) + len(labels.parts("s4"))
    with caplog.at_level(logging.WARNING, "softlabels"):
        loader = sl.loader(labels, form(some), batch_size=3)
        found = contents(loader)
    assert {key for key, _ in found} == {s["id"] for s in some}
    assert loader.report == JoinReport(len(labels) - lost, 0, None, lost, "s1")
    assert f"{lost} records have labels but no row" in caplog.text


@pytest.mark.parametrize("key", ["id", None])
@pytest.mark.parametrize("store_inputs", [True, False])
def test_rows_without_labels_come_for_their_hard_labels(
    samples: Samples,
    tmp_path: Path,
    precompute: Precompute,
    form: Callable[[Samples], Any],
    key: str | None,
    store_inputs: bool,
) -> None:
    whole = precompute(tmp_path / "whole", samples, key=key)
    part = precompute(tmp_path / "part", samples[:6], key=key, store_inputs=store_inputs)
    loader = sl.loader(part, form(samples), on_missing="hard-label", batch_size=4)
    expected, found = contents(sl.loader(whole)), contents(loader)
    assert found.keys() == expected.keys()
    known = {s["id"] if key else i for i, s in enumerate(samples[:6])}
    for name, (tokens, ids, log_probs, mask, following) in expected.items():
        assert (found[name][0], found[name][4]) == (tokens, following)
        if name[0] in known:
            assert found[name][1:4] == (ids, log_probs, mask)
        else:
            assert not any(found[name][3])
    assert loader.report is not None
    assert loader.report.missing == 4
    for batch in loader:
        y = batch["soft_labels"]
        logits = torch.zeros(*y.shape, 16)
        loss = sl.losses.kl_divergence(logits, y)
        assert bool((loss[~y.mask] == 0).all())
        assert batch["note"] == [
            f"n{str(k).removeprefix('s')}" for k in batch["key"]
        ]  # rows beside their own


def test_rows_that_labelling_rejected_are_known_and_no_error(
    samples: Samples,
    tmp_path: Path,
    precompute: Precompute,
    form: Callable[[Samples], Any],
) -> None:
    rows = [*samples[:4], {**samples[4], "ids": [3, 99]}, {**samples[5], "ids": []}, *samples[6:]]
    labels = precompute(tmp_path / "set", rows, on_error="skip")
    loader = sl.loader(labels, form(rows), batch_size=3)
    assert contents(loader) == contents(sl.loader(labels))
    assert loader.report == JoinReport(len(labels), rejected=2)
    with pytest.raises(JoinError, match='"new"'):
        list(sl.loader(labels, form([*rows, {**samples[0], "id": "new"}])))


def test_shuffled_rows_without_labels_are_spread_among_the_others(
    samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    part = precompute(tmp_path / "set", samples[:5])
    loader = sl.loader(part, samples, on_missing="hard-label", batch_size=1, seed=0)
    orders = [[bool(b["soft_labels"].mask.any()) for b in loader] for _ in range(20)]
    assert len({tuple(order) for order in orders}) > 10


def test_rows_that_nobody_can_tokenise_are_no_records(
    samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    part = precompute(tmp_path / "set", samples[:5])
    rows = [*samples[:5], {**samples[5], "ids": []}]
    loader = sl.loader(part, rows, on_missing="hard-label", batch_size=100)
    assert contents(loader).keys() == contents(sl.loader(part)).keys()
    alone = sl.loader(part, rows, on_missing="hard-label", batch_size=len(part))
    with pytest.raises(InputError, match=r'"s5".*on_missing'):
        list(alone)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_rejects_without_a_token_are_in_no_batch(
    samples: Samples,
    tmp_path: Path,
    precompute: Precompute,
    form: Callable[[Samples], Any],
    seed: int | None,
) -> None:
    empty = [{**samples[0], "id": f"e{i}", "ids": []} for i in range(4)]
    labels = precompute(tmp_path / "set", [*samples[:4], *empty], on_error="skip")
    rows = [samples[8], *samples[:3], *empty, *samples[3:6]]
    stream = form is FORMS["stream"]

    def made(rank: int, world_size: int) -> sl.Loader:
        chosen = {"on_missing": "hard-label", "batch_size": 2, "seed": None if stream else seed}
        return sl.loader(labels, form(rows), rank=rank, world_size=world_size, **chosen)

    alone = [batch["key"] for batch in made(0, 1)]
    assert {key for keys in alone for key in keys} == {"s8", *(f"s{i}" for i in range(6))}
    for world_size in (2, 3):
        steps = zip(*(made(rank, world_size) for rank in range(world_size)), strict=True)
        found = [batch["key"] for step in steps for batch in step]
        assert [keys for keys in found if keys != [None]] == alone
    if not stream:
        assert len(made(0, 1)) == len(alone)
    report = made(0, 1).report
    assert stream or (report is not None and report.rejected == 4)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_spare_rank_has_a_token_whatever_row_comes_first(
    fewer: sl.LabelSet, samples: Samples, form: Callable[[Samples], Any], world_size: int
) -> None:
    rows = [{**samples[0], "id": "e", "ids": []}, samples[4], *samples[:4]]
    loaders = [
        sl.loader(
            fewer,
            form(rows),
            on_missing="hard-label",
            batch_size=100,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    (first, *spare) = (list(loader) for loader in loaders)
    assert len(first) == 1
    for batches in spare:
        assert [batch["key"] for batch in batches] == [[None]]
        assert not batches[0]["soft_labels"].mask.any()


def test_options_are_checked(labels: sl.LabelSet, samples: Samples) -> None:
    for options in ({"on_missing": "ignore"}, {"verify_inputs": True}):
        with pytest.raises(InputError, match=r"ignore|True"):
            sl.loader(labels, samples, **options)


@pytest.mark.parametrize(
    ("verify", "caught"), [("always", [0, 1, 2]), ("first-epoch", [0]), ("never", [])]
)
def test_rows_are_held_to_their_digests_in_the_epochs_asked_for(
    labels: sl.LabelSet, samples: Samples, verify: Any, caught: list[int]
) -> None:
    changed = [s | {"ids": [(i + 1) % 16 for i in s["ids"]]} for s in samples]
    found = []
    for epoch in range(3):
        data = list(samples) if epoch else changed
        loader = sl.loader(labels, data, batch_size=2, verify_inputs=verify)
        for later in range(epoch):
            loader.set_epoch(later)
            list(loader)
        data[:] = changed
        loader.set_epoch(epoch)
        try:
            list(loader)
        except JoinError:
            found.append(epoch)
    assert found == caught

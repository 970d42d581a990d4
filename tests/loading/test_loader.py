"""The loader: batches hold the labels, and every saved state goes on exactly where it was."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl
from softlabels.errors import CorruptShardError, InputError, VocabularyMismatchError
from softlabels.format.shard import Shard
from softlabels.labelset import held as in_memory

Precompute = Callable[..., sl.LabelSet]
Batch = dict[str, Any]
TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def seen(batches: Any) -> list[tuple[str, int]]:
    """(key, part) of every record, in order."""
    return [p for b in batches for p in zip(b["key"], b["part"].tolist(), strict=True)]


def number(labels: sl.LabelSet, batch: Batch, row: int) -> int:
    return labels.index(batch["key"][row], part=int(batch["part"][row]))


def check_record(batch: Batch, row: int, labels: sl.LabelSet, samples: list[Any]) -> None:
    """A row of a batch against the labels by key and the sample they were made from."""
    at = number(labels, batch, row)
    expected, soft = labels[at], batch["soft_labels"]
    identity = labels.identities.slice(at, 1).to_pylist()[0]
    sample = next(s["ids"] for s in samples if s["id"] == identity["key"])
    length, width = len(expected), batch["input_ids"].shape[1]
    stop = identity["source_start"] + length
    assert batch["input_ids"][row, :length].tolist() == sample[identity["source_start"] : stop]
    assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (width - length)
    assert bool((batch["input_ids"][row, length:] == 9).all())
    assert int(batch["next_ids"][row]) == (sample[stop] if stop < len(sample) else -100)
    assert expected.mask is not None
    assert soft.mask[row].tolist() == expected.mask.tolist() + [False] * (width - length)
    assert soft.temperatures == expected.temperatures
    for name in TENSORS:
        assert bits(getattr(soft, name)[row, :length]) == bits(getattr(expected, name))


def check_padding(soft: sl.SoftLabels) -> None:
    """Masked positions are finite in every formula."""
    assert soft.mask is not None
    outside = soft[~soft.mask]
    fills = {"ids": 0, "log_probs": 0, "logsumexp": 0, "log_tails": -torch.inf}
    for name, value in fills.items():
        assert bool((getattr(outside, name) == value).all())
    assert outside.hard_log_probs is not None
    assert bool(outside.hard_log_probs.isnan().all())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_batch_holds_the_labels_of_its_tokens_bit_for_bit(
    labels: sl.LabelSet, samples: list[dict[str, Any]], batch_size: int, seed: int | None
) -> None:
    loader = sl.loader(labels, batch_size=batch_size, seed=seed, pad_id=9)
    batches = list(loader)
    for batch in batches:
        assert batch["input_ids"].dtype == batch["next_ids"].dtype == torch.int64
        assert batch["input_ids"].shape == batch["soft_labels"].shape
        assert int(batch["attention_mask"].sum(1).max()) == batch["input_ids"].shape[1]
        for row in range(len(batch["key"])):
            check_record(batch, row, labels, samples)
        check_padding(batch["soft_labels"])
    assert len(batches) == len(loader) == -(-len(labels) // batch_size)
    pairs = [(i["key"], i["part"]) for i in labels.identities.to_pylist()]
    assert sorted(seen(batches)) == sorted(pairs)
    assert (seen(batches) == pairs) == (seed is None)


def test_a_batch_is_its_own_and_leaves_the_set_as_it_is(labels: sl.LabelSet) -> None:
    def contents() -> list[bytes]:
        return [bits(getattr(r, name)) for r in labels for name in TENSORS]

    before = contents()
    for batch in sl.loader(labels, batch_size=2):
        batch["input_ids"].fill_(7)
        batch["soft_labels"].map(lambda tensor: tensor.zero_())
    assert contents() == before


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("other_size", [4, 1, 7])
def test_a_state_of_every_step_demands_the_same_remainder(
    labels: sl.LabelSet, seed: int | None, drop_last: bool, other_size: int
) -> None:
    def fresh(size: int = 4) -> sl.Loader:
        return sl.loader(labels, batch_size=size, seed=seed, drop_last=drop_last)

    loader, epochs, states = fresh(), [], []
    for epoch in range(3):
        states.append((epoch, 0, loader.state_dict()))
        batches = []
        for batch in loader:
            batches.append(batch)
            states.append((epoch, len(batches), loader.state_dict()))
        epochs.append(batches)
    kept = len(seen(epochs[0]))
    epochs.append(list(loader))
    # With its last batch an epoch is over: what follows is the next one.
    states = [(e + 1, 0, s) if n == len(epochs[e]) else (e, n, s) for e, n, s in states]
    for epoch, step, state in states:
        resumed = fresh(other_size)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        rest = seen(resumed)
        if not drop_last:
            assert rest == seen(epochs[epoch][step:])
        elif other_size == 4:
            assert rest == seen(epochs[epoch][step:])
            assert len(rest) == kept - 4 * step
        following = seen(resumed)
        if epoch < 3 and (other_size == 4 or not drop_last):
            assert following == seen(epochs[epoch + 1])
        if other_size == 4:
            resumed.load_state_dict(state)
            again = list(resumed)
            assert [bits(b["soft_labels"].log_probs) for b in again] == [
                bits(b["soft_labels"].log_probs) for b in epochs[epoch][step:]
            ]


def test_an_epoch_left_early_begins_again(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=2, seed=0)
    whole = seen(sl.loader(labels, batch_size=2, seed=0))
    next(iter(loader))
    assert seen(loader) == whole


def test_a_place_that_was_restored_is_gone_to_once(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=2, seed=0)
    whole = seen(loader)
    loader.set_epoch(0)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    assert seen(next(iter(loader)) for _ in range(1)) == whole[2:4]
    assert seen(loader) == whole


@pytest.mark.parametrize("held", [0, 2, 3, 100])
def test_a_shuffled_epoch_reads_each_row_group_once_whatever_fits_in_memory(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16] * 4} for i in range(24)]
    labels = precompute(tmp_path / "set", rows, unit_rows=4)
    one = int(labels._held._encoded_bytes()[0])
    monkeypatch.setattr(in_memory, "_CACHE_BYTES", held * one * 8 // 7 + 8)
    was_read: list[tuple[str, int]] = []
    read = Shard.table

    def spy(shard: Shard, row_group: int, codec: Any, names: Any) -> Any:
        was_read.append((shard.name, row_group))
        return read(shard, row_group, codec, names)

    monkeypatch.setattr(Shard, "table", spy)
    labels = sl.LabelSet.open(labels.root)
    assert labels.groups_in_memory == max(1, held)
    assert len(seen(sl.loader(labels, batch_size=5, seed=0))) == 24
    assert len(was_read) == len(set(was_read)) == 6


def test_epochs_differ_and_can_be_chosen(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=3, seed=0)
    first, second, third = (seen(loader) for _ in range(3))
    assert first != second != third != first
    loader.set_epoch(1)
    assert seen(loader) == second
    assert seen(loader) == third
    stored = sl.loader(labels, batch_size=3)
    assert seen(stored) == seen(stored)


def test_a_state_of_another_loader_is_refused(
    labels: sl.LabelSet, tmp_path: Path, precompute: Precompute, samples: list[dict[str, Any]]
) -> None:
    state = sl.loader(labels, seed=0).state_dict()
    others = [
        sl.loader(labels, seed=1),
        sl.loader(labels),
        sl.loader(labels, seed=0, records=range(5)),
        sl.loader(precompute(tmp_path / "a", samples), seed=0),
        sl.loader(precompute(tmp_path / "b", samples, overlap=1, selection=sl.TopK(2)), seed=0),
    ]
    for other in others:
        with pytest.raises(InputError, match="another loader"):
            other.load_state_dict(state)
    same = sl.loader(sl.LabelSet.open(labels.root), seed=0, records=range(len(labels)))
    same.load_state_dict(state)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 1},
        {"seen": -1},
        {"seen": 1000},
        {"seen": 1.5},
        {"seen": None},
        {"epoch": -1},
        {"epoch": "1"},
        {"epoch": True},
        {"order": ""},
    ],
)
def test_a_state_that_no_loader_made_is_refused_and_changes_nothing(
    labels: sl.LabelSet, changed: dict[str, Any]
) -> None:
    loader = sl.loader(labels, batch_size=2, seed=0)
    batches = iter(loader)
    next(batches)
    before = loader.state_dict()
    with pytest.raises(InputError, match=r"state|integer"):
        loader.load_state_dict(before | changed)
    assert loader.state_dict() == before


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.tensor])
def test_only_chosen_records_come(labels: sl.LabelSet, kind: Any) -> None:
    everything = seen(sl.loader(labels))
    loader = sl.loader(labels, records=kind([7, 0, 3]), batch_size=2)
    assert seen(loader) == [everything[i] for i in (0, 3, 7)]
    assert len(loader) == 2
    shuffled = sl.loader(labels, records=kind([7, 0, 3]), batch_size=2, seed=0)
    orders = {tuple(seen(shuffled)) for _ in range(30)}
    assert orders == set(itertools.permutations([everything[i] for i in (0, 3, 7)]))


@pytest.mark.parametrize(
    "records", [[0, 0], [-1], [1000], [0.5, 1.5], [True, False], ["0"], [[0, 1]]]
)
def test_records_that_are_no_different_numbers_are_refused(
    labels: sl.LabelSet, records: Any
) -> None:
    with pytest.raises(InputError, match=f"from 0 to {len(labels) - 1}"):
        sl.loader(labels, records=records)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"records": []},
        {"seed": -1},
        {"seed": 0.5},
        {"seed": True},
        {"columns": ["weight"]},
        {"batch_size": 1000, "drop_last": True},
    ],
)
def test_options_that_cannot_be_are_refused_at_once(
    labels: sl.LabelSet, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"batch_size|record|seed|columns"):
        sl.loader(labels, **options)
    with pytest.raises(InputError, match="epoch"):
        sl.loader(labels).set_epoch(-1)


def test_a_set_without_records_is_refused(tmp_path: Path, precompute: Precompute) -> None:
    rows = [{"id": "a", "ids": [99]}]
    labels = precompute(tmp_path / "set", rows, on_error="skip")
    for options in ({}, {"data": rows, "on_missing": "skip"}):
        with pytest.raises(InputError, match="0 records"):
            sl.loader(labels, **options)


def test_another_tokenizer_is_refused(finished_set: Path, tokenizer: Any) -> None:
    labels = sl.LabelSet.open(finished_set)
    sl.loader(labels, tokenizer=tokenizer)
    student = pickle.loads(pickle.dumps(tokenizer))
    student.add_tokens(["<new>"])
    with pytest.raises(VocabularyMismatchError, match="513 tokens, the teacher's has 512"):
        sl.loader(labels, tokenizer=student)


def test_a_set_that_lacks_the_inputs_its_plan_promises_is_refused(
    tmp_path: Path, precompute: Precompute
) -> None:
    bare = precompute(tmp_path / "set", store_inputs=False)
    bare.plan = bare.plan.model_copy(update={"store_inputs": True})
    with pytest.raises(CorruptShardError, match=r'"s0" has no token ids'):
        next(iter(sl.loader(bare)))

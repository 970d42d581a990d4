"""Streams: labels follow the rows as they come, and what comes is what random access gives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from delivered import contents
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import DuplicateKeyError, InputError, JoinError
from softlabels.labelset.reader import LabelSet
from softlabels.loading.walk import Walk

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]
Pair = tuple[str, int]


class Rows(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream as PyTorch has it; its ids are tensors."""

    def __init__(self, rows: Samples) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row | {"ids": torch.tensor(row["ids"])} for row in self.rows)


STREAMS: dict[str, Callable[[Samples], Any]] = {
    "datasets": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "torch": Rows,
    "iterator": iter,
}


def pairs(batches: Any) -> list[Pair]:
    return [p for b in batches for p in zip(b["key"], b["part"].tolist(), strict=True)]


def in_order(labels: sl.LabelSet, rows: Samples) -> list[Pair]:
    return [(row["id"], part) for row in rows for part in labels.parts(row["id"])]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_stream_gives_what_random_access_gives_in_its_own_order(
    labels: sl.LabelSet, samples: Samples, kind: str, seed: int | None, batch_size: int
) -> None:
    rows = [samples[i] for i in np.random.default_rng(seed).permutation(10)] if seed else samples
    batches = list(sl.loader(labels, STREAMS[kind](rows), batch_size=batch_size))
    assert pairs(batches) == in_order(labels, rows)
    assert contents(batches) == contents(sl.loader(labels, samples))
    assert all(b["note"] == [f"n{key[1:]}" for key in b["key"]] for b in batches)


@given(st.permutations(range(10)), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_walking_along_finds_what_the_index_finds(
    labels: sl.LabelSet, samples: Samples, order: list[int], size: int
) -> None:
    keys = pa.array([samples[i]["id"] for i in order])
    walk = Walk(labels)
    for start in range(0, len(keys), size):
        some = keys.slice(start, size)
        places, records = walk.match(some)
        expected = labels.match(some)
        assert places.tolist() == expected[0].tolist()
        assert records.tolist() == expected[1].tolist()
    assert walk.unseen().tolist() == []
    assert walk.count == len(labels)


def test_in_the_set_s_own_order_the_index_is_not_opened(
    labels: sl.LabelSet, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the index was asked")

    monkeypatch.setattr(LabelSet, "match", never)
    assert pairs(sl.loader(labels, Rows(samples), batch_size=3)) == in_order(labels, samples)
    with pytest.raises(AssertionError, match="index"):
        list(sl.loader(labels, Rows(samples[::-1]), batch_size=3))


@pytest.mark.parametrize("options", [{}, {"row_length": 14}, {"by_length": True}])
def test_a_state_of_every_step_goes_on_where_it_was(
    labels: sl.LabelSet, samples: Samples, options: dict[str, Any]
) -> None:
    rows = [samples[i] for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    loader = sl.loader(labels, Rows(rows), batch_size=2, **options)
    whole, states = [], [loader.state_dict()]
    for batch in loader:
        whole.append(pairs([batch]))
        states.append(loader.state_dict())
    assert len(whole) > 2
    assert states.pop()["epoch"] == 1
    for step, state in enumerate(states):
        resumed = sl.loader(labels, Rows(rows), batch_size=2, **options)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert [pairs([b]) for b in resumed] == whole[step:]
        assert [pairs([b]) for b in resumed] == whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_stream(labels: sl.LabelSet, samples: Samples, world_size: int) -> None:
    alone = [pairs([b]) for b in sl.loader(labels, Rows(samples), batch_size=2)]
    loaders = [
        sl.loader(labels, Rows(samples), batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = list(itertools.chain(*zip(*loaders, strict=True)))
    assert [pairs([b]) for b in steps if b["key"] != [None]] == alone
    assert len(steps) == -(-len(alone) // world_size) * world_size


def test_packed_rows_of_a_stream_hold_every_record(labels: sl.LabelSet, samples: Samples) -> None:
    packed = list(sl.loader(labels, Rows(samples), batch_size=2, row_length=14))
    assert sorted(pairs(packed)) == sorted(in_order(labels, samples))
    rows = sum(len(batch["input_ids"]) for batch in packed)
    assert rows < len(labels)


def test_a_changed_row_is_an_error(labels: sl.LabelSet, samples: Samples) -> None:
    rows = [s | {"ids": [*s["ids"][:-1], 3 - s["ids"][-1] % 2]} for s in samples]
    with pytest.raises(JoinError, match=r'"s0".*row 0 .*input digest'):
        next(iter(sl.loader(labels, Rows(rows))))


@pytest.mark.parametrize("places", [(0, 0), (0, 9), (3, 7)])
def test_a_key_that_comes_twice_is_an_error(
    labels: sl.LabelSet, samples: Samples, places: tuple[int, int]
) -> None:
    first, second = places
    rows = [*samples[: second + 1], samples[first], *samples[second + 1 :]]
    with pytest.raises(DuplicateKeyError, match=f'"s{first}" comes twice'):
        list(sl.loader(labels, Rows(rows), batch_size=2))


def test_a_stream_that_is_used_up_is_an_error_and_not_an_empty_epoch(
    labels: sl.LabelSet, samples: Samples
) -> None:
    loader = sl.loader(labels, iter(samples), batch_size=3)
    assert pairs(loader) == in_order(labels, samples)
    with pytest.raises(InputError, match="iterated over once"):
        list(loader)


def test_a_stream_of_datasets_is_told_the_epoch(labels: sl.LabelSet, samples: Samples) -> None:
    stream = datasets.Dataset.from_list(samples).to_iterable_dataset(num_shards=2)
    loader = sl.loader(labels, stream.shuffle(seed=3, buffer_size=10), batch_size=3)
    epochs = [pairs(loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(epoch) == sorted(in_order(labels, samples)) for epoch in epochs)
    loader.set_epoch(1)
    assert pairs(loader) == epochs[1]


def test_files_of_webdataset_are_streams_and_tables(
    tmp_path: Path, precompute: Precompute, tokenizer: Any
) -> None:
    import io
    import tarfile

    texts = {f"doc{i}": f"The text of document {i}." for i in range(6)}
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for key, text in texts.items():
            member = tarfile.TarInfo(f"{key}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    table = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    teacher = sl.teachers.from_callable(
        lambda ids: table[ids], name="table", version="1", classes=512, tokenizer=tokenizer
    )
    data = str(tmp_path / "data.tar")
    labels = precompute(tmp_path / "set", data, key="__key__", column="txt", teacher=teacher)
    assert {key for key, _ in contents(sl.loader(labels, data, seed=0))} == set(texts)


def test_what_needs_to_know_the_rows_is_refused(labels: sl.LabelSet, samples: Samples) -> None:
    for options in ({"seed": 0}, {"shuffle": True}, {"records": [0]}, {"parts": "one"}):
        with pytest.raises(InputError, match="stream"):
            sl.loader(labels, Rows(samples), **options)
    with pytest.raises(TypeError, match="stream"):
        len(sl.loader(labels, Rows(samples)))


@pytest.mark.parametrize("kind", [Rows, iter])
def test_a_column_that_comes_late_is_an_error_unless_columns_were_chosen(
    tmp_path: Path, precompute: Precompute, kind: Callable[[Samples], Any]
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 1]} for i in range(100)]
    labels = precompute(tmp_path / "set", rows, unit_rows=50)
    late = [row | ({"late": i} if i >= 70 else {}) for i, row in enumerate(rows)]
    with pytest.raises(InputError, match=r'rows 64 to 99 .* column "late".*first rows lack'):
        list(sl.loader(labels, kind(late)))
    assert len(pairs(sl.loader(labels, kind(late), columns=[]))) == 100
    late[0]["late"] = None
    given = [value for b in sl.loader(labels, kind(late)) for value in list(b["late"])]
    assert given == [None] * 70 + list(range(70, 100))


def test_a_column_that_changes_its_type_is_an_error_that_says_where(
    tmp_path: Path, precompute: Precompute
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 1], "w": i if i < 64 else "x"} for i in range(100)]
    bare = [{name: row[name] for name in ("id", "ids")} for row in rows]
    labels = precompute(tmp_path / "set", bare, unit_rows=50)
    for size in (5, 32, 100):
        with pytest.raises(InputError, match=r"rows \d+ to \d+ of the stream differ.*columns="):
            list(sl.loader(labels, Rows(rows), batch_size=size))


@pytest.mark.parametrize("options", [{}, {"batch_size": 1000, "drop_last": True}])
def test_a_stream_that_gives_no_batch_is_an_error(
    labels: sl.LabelSet, samples: Samples, options: dict[str, Any]
) -> None:
    rows = samples if options else [row | {"id": f"x{i}"} for i, row in enumerate(samples)]
    loader = sl.loader(labels, Rows(rows), on_missing="skip", **options)
    with pytest.raises(InputError, match=r"there are \d+ records to load"):
        list(loader)

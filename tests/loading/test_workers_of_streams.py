"""Worker processes over streams: every row once, or an error; epochs left early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import softlabels as sl
from softlabels.errors import InputError

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]
# More rows than are read at once, and more bytes than a file's buffer holds.
COUNT, BYTES = 300, 200
# Python 3.12 warns of any fork in a process with threads; Arrow has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def rows() -> Samples:
    return [
        {"id": f"s{i}", "ids": [i % 16, i // 16 % 16], "note": "x" * BYTES} for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory, precompute: Precompute, rows: Samples
) -> sl.LabelSet:
    return precompute(tmp_path_factory.mktemp("many") / "set", rows, unit_rows=100)


class Lines:
    """Rows of a file that is opened when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open() as lines:
            yield from map(json.loads, lines)


class Shared(IterableDataset[dict[str, Any]]):
    """What torch's documentation shows: each worker has a share of the rows."""

    def __init__(self, rows: Samples) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(self.rows[first::step])


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_are_forked_read_a_file_each_from_its_beginning(
    many: sl.LabelSet, rows: Samples, tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loader = sl.loader(many, Lines(path), batch_size=40)
    through = DataLoader(
        loader, batch_size=None, num_workers=workers, multiprocessing_context="fork"
    )
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert keys(through) == [row["id"] for row in rows]


def test_workers_share_a_stream_of_datasets_without_loss(many: sl.LabelSet, rows: Samples) -> None:
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
    loader = sl.loader(many, stream, batch_size=40)
    assert keys(DataLoader(loader, batch_size=None, num_workers=2)) == [r["id"] for r in rows]


def test_a_stream_that_may_be_shared_out_among_workers_is_refused(
    many: sl.LabelSet, rows: Samples
) -> None:
    for data in (Shared(rows), iter(rows)):
        loader = sl.loader(many, data, batch_size=40, on_missing="skip")
        with pytest.raises(InputError, match=r"num_workers=0"):
            list(DataLoader(loader, batch_size=None, num_workers=2))
    one = DataLoader(sl.loader(many, Shared(rows), batch_size=40), batch_size=None, num_workers=1)
    assert keys(one) == [row["id"] for row in rows]
    with pytest.raises(InputError, match=r"num_workers=0"):
        list(DataLoader(sl.loader(many, iter(rows)), batch_size=None, num_workers=1))


def persistent(labels: sl.LabelSet) -> tuple[sl.Loader, Any]:
    loader = sl.loader(labels, batch_size=1, seed=0)
    return loader, DataLoader(loader, batch_size=None, num_workers=2, persistent_workers=True)


def test_workers_that_stay_know_the_epochs_that_end(labels: sl.LabelSet) -> None:
    alone = sl.loader(labels, batch_size=1, seed=0)
    _, through = persistent(labels)
    for _ in range(3):
        assert keys(through) == keys(alone)


def test_workers_that_stay_after_an_epoch_was_left_early_are_refused(labels: sl.LabelSet) -> None:
    _, through = persistent(labels)
    next(iter(through))
    with pytest.raises(InputError, match="persistent_workers=False"):
        list(through)
    assert torch.utils.data.get_worker_info() is None

"""Batches made ahead: in order, errors at their turn, and nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import softlabels as sl
from softlabels.loading.ahead import made_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_items_come_in_order_whatever_is_done_first(threads: int, ahead: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return -item

    found = list(made_ahead(iter(range(20)), slow_at_first, threads=threads, ahead=ahead))
    assert found == [(item, -item) for item in range(20)]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_at_its_item_s_turn(threads: int) -> None:
    def fails(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    made = made_ahead(iter(range(9)), fails, threads=threads, ahead=4)
    assert [next(made)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(made)


def test_no_more_is_made_than_was_asked_for() -> None:
    taken = []

    def work() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    made = made_ahead(work(), abs, threads=2, ahead=4)
    next(made)
    assert len(taken) == 5
    next(made)
    assert len(taken) == 6


def test_an_epoch_left_early_leaves_no_thread(labels: sl.LabelSet) -> None:
    def ours() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("softlabels-loader")]

    loader = sl.loader(labels, batch_size=1, threads=3, prefetch=4)
    batches = iter(loader)
    next(batches)
    assert ours()
    del batches
    stop = time.monotonic() + 10
    while ours() and time.monotonic() < stop:
        time.sleep(0.01)
    assert not ours()


@pytest.mark.parametrize("options", [{"seed": 1}, {"by_length": True}, {"row_length": 20}])
def test_threads_change_nothing(
    labels: sl.LabelSet, samples: list[Any], options: dict[str, Any]
) -> None:
    def contents(threads: int) -> list[Any]:
        loader = sl.loader(labels, samples, batch_size=2, threads=threads, **options)
        return [
            (b["key"], b["input_ids"].tolist(), b["soft_labels"].log_probs.tolist(), b["note"])
            for _ in range(2)
            for b in loader
        ]

    assert contents(0) == contents(1) == contents(4)

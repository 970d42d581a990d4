"""The order of records: each once, resumable at every place, and evenly shuffled."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels.loading import order as order_module
from softlabels.loading.order import MIXED_BLOCKS, Order, permuted

seeds = st.none() | st.integers(0, 2**70)
epochs = st.integers(0, 1000)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Up to 150 blocks, so that there are several windows."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=150))
    bounds = np.cumsum([0, *sizes])
    return Order(bounds, draw(seeds), draw(st.sampled_from([MIXED_BLOCKS, 1, 3])))


def even(blocks: int, items: int, seed: int | None, mixed: int = MIXED_BLOCKS) -> Order:
    return Order(np.arange(0, blocks * items + 1, items), seed, mixed)


def numbers(order: Order, epoch: int, *, skip: int = 0) -> list[int]:
    return [item for window in order.windows(epoch, skip=skip) for item in window.tolist()]


@given(orders(), epochs)
@settings(deadline=None, max_examples=100)
def test_every_record_comes_exactly_once(order: Order, epoch: int) -> None:
    expected = list(range(int(order.bounds[-1])))
    found = numbers(order, epoch)
    assert sorted(found) == expected
    assert len(order) == len(expected)
    if order.seed is None:
        assert found == expected


@given(orders(), epochs, st.data())
@settings(deadline=None, max_examples=100)
def test_to_skip_is_to_drop_the_beginning(order: Order, epoch: int, data: st.DataObject) -> None:
    skip = data.draw(st.integers(0, len(order) + 1))
    again = Order(order.bounds.copy(), order.seed, order.mixed)
    assert numbers(again, epoch, skip=skip) == numbers(order, epoch)[skip:]


def test_windows_that_are_skipped_leave_no_empty_one() -> None:
    found = [window.tolist() for window in even(3, 2, None).windows(0, skip=2)]
    assert found == [[2, 3], [4, 5]]


@given(st.integers(0, 2**70), epochs)
@example(0, 0)
@settings(deadline=None, max_examples=30)
def test_other_epochs_and_other_seeds_are_other_orders(seed: int, epoch: int) -> None:
    one = numbers(even(4, 10, seed), epoch)
    assert numbers(even(4, 10, seed), epoch) == one
    assert numbers(even(4, 10, seed), epoch + 1) != one
    assert numbers(even(4, 10, seed + 1), epoch) != one
    assert numbers(even(4, 10, seed + 2**32), epoch) != one


def test_without_a_seed_every_epoch_is_in_stored_order() -> None:
    order = even(40, 3, None)
    for epoch in range(3):
        assert numbers(order, epoch) == list(range(120))


def test_an_order_is_the_same_for_ever() -> None:
    assert numbers(even(3, 4, 0), 0) == [1, 11, 2, 6, 4, 3, 8, 7, 9, 10, 5, 0]
    assert numbers(even(3, 4, 7), 2) == [8, 10, 9, 4, 5, 7, 3, 6, 0, 1, 2, 11]
    two_windows = [0, 11, 19, 10, 6, 14, 15, 2, 9, 17, 18, 13, 4, 1, 8, 3, 12, 7, 16, 5]
    assert numbers(even(20, 1, 1, 16), 0) == two_windows


def test_places_of_a_permutation_are_the_same_for_ever() -> None:
    first = np.arange(6)
    assert permuted(first, 64, 3, 1).tolist() == [27, 50, 49, 26, 22, 34]
    assert permuted(first, 65, 3, 1).tolist() == [1, 7, 44, 24, 28, 57]
    assert permuted(first, 5000, 3, 1).tolist() == [1428, 1812, 3770, 4723, 1167, 4127]


def test_from_four_million_blocks_on_no_permutation_is_held() -> None:
    # A run that resumes must find the blocks in the same order: the limit is part of it.
    at_once, in_parts = even(1 << 22, 1, 5), even((1 << 22) + 1, 1, 5)
    first = np.arange(MIXED_BLOCKS)
    blocks = next(iter(at_once._blocks(0)))
    assert np.array_equal(blocks, order_module.permutation(1 << 22, 5, 0)[:MIXED_BLOCKS])
    blocks = next(iter(in_parts._blocks(0)))
    assert np.array_equal(blocks, permuted(first, (1 << 22) + 1, 5, 0))


def chi_square(counts: list[int], cells: int) -> float:
    expected = sum(counts) / cells
    empty = (cells - len(counts)) * expected
    return sum((count - expected) ** 2 / expected for count in counts) + empty


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, 1), (4, 1), (2, 2)])
def test_every_permutation_is_equally_likely(shape: tuple[int, int]) -> None:
    groups, rows = shape
    order = even(groups, rows, 0)
    cells = len(list(itertools.permutations(range(groups * rows))))
    counts = Counter(tuple(numbers(order, epoch)) for epoch in range(100 * cells))
    # Mean cells − 1, standard deviation √(2 (cells − 1)): six of them is once in a billion runs.
    assert chi_square(list(counts.values()), cells) < cells - 1 + 6 * (2 * (cells - 1)) ** 0.5


def test_up_to_so_many_blocks_any_item_stands_anywhere_equally_often() -> None:
    order = even(16, 2, 3, mixed=16)
    size, epochs = len(order), 3000
    seen = np.zeros((size, size), np.int64)
    for epoch in range(epochs):
        seen[np.arange(size), numbers(order, epoch)] += 1
    freedom = (size - 1) ** 2
    statistic = chi_square(seen.ravel().tolist(), size * size)
    assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("mixed", [16, 5, 1])
def test_no_more_groups_than_are_mixed_are_open_at_a_time(mixed: int) -> None:
    order = even(50, 4, 0, mixed)
    found, size = np.asarray(numbers(order, 0)) // 4, 4 * mixed
    windows = [set(found[start : start + size].tolist()) for start in range(0, 200, size)]
    assert [len(window) for window in windows] == [
        min(mixed, 50 - start) for start in range(0, 50, mixed)
    ]
    assert set.union(*windows) == set(range(50))


def test_a_shuffle_is_as_even_as_its_blocks_allow() -> None:
    blocks, items, batch = 1024, 32, 8
    order = even(blocks, items, 5)
    come = np.asarray(numbers(order, 0))
    place = np.argsort(come)
    # Of n blocks in random order a rank correlation is 1 / √n off 0, by one standard deviation.
    assert abs(np.corrcoef(np.arange(len(come)), place)[0, 1]) < 6 / blocks**0.5
    rows = np.sort(come.reshape(-1, batch) // items, axis=1)
    distinct = (np.diff(rows, axis=1) > 0).sum(1).mean() + 1
    # Drawn from 64 blocks, each of 8 is new with a chance of 1 − 1/64 for every one before it.
    expected = MIXED_BLOCKS * (1 - (1 - 1 / MIXED_BLOCKS) ** batch)
    assert abs(distinct - expected) < 0.1
    assert distinct > 7.5


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_places_of_a_permutation_are_found_apart_from_the_others(size: int) -> None:
    whole = permuted(np.arange(size), size, 5, 1)
    assert sorted(whole) == list(range(size))
    assert [int(permuted(np.asarray([i]), size, 5, 1)[0]) for i in range(size)] == whole.tolist()


def test_places_of_a_permutation_are_uniform_and_those_of_other_epochs_apart() -> None:
    size, epochs = 64, 2000
    found = np.stack([permuted(np.arange(size), size, 0, epoch) for epoch in range(epochs)])
    counts = np.stack([np.bincount(column, minlength=size) for column in found.T])
    expected = epochs / size
    # A χ² of 63 · 63 degrees of freedom, whose standard deviation is √(2 · 3969).
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 63 * 63) < 5 * np.sqrt(2 * 63 * 63)
    pairs = np.abs(np.diff(found[:, :2], axis=1)).mean()
    assert abs(pairs - (size + 1) / 3) < 2


def test_more_blocks_than_are_permuted_at_once_come_each_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_module, "_PERMUTED_AT_ONCE", 100)
    order = Order(np.arange(301) * 2, seed=3)
    windows = list(order.windows(0))
    assert [len(window) for window in windows] == [2 * MIXED_BLOCKS] * 4 + [2 * (300 - 256)]
    assert sorted(np.concatenate(windows)) == list(range(600))
    assert np.concatenate(list(order.windows(1))).tolist() != np.concatenate(windows).tolist()

"""Arrangements: every item once, rows that fit, and any place gone on from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.loading.batches import (
    ARRANGED_BATCHES,
    Arrangement,
    AsTheyCome,
    Batch,
    ByLength,
    Int64s,
    Packed,
    Place,
    arranged,
    regroup,
)

many_lengths = st.lists(st.integers(1, 40), max_size=700).map(lambda x: np.asarray(x, np.int64))


@st.composite
def arrangements(draw: st.DrawFn) -> Arrangement:
    size, seed = draw(st.integers(1, 5)), draw(st.none() | st.integers(0, 9))
    length = draw(st.integers(40, 50))
    kinds = [AsTheyCome(size), ByLength(size, seed), Packed(size, length, 20.0, seed)]
    return draw(st.sampled_from(kinds))


def delivered(
    arrangement: Arrangement, lengths: Int64s, place: Place
) -> Iterator[tuple[Batch, Place]]:
    """Batches of the items 0 … n − 1 in their order."""
    items = np.arange(place.seen, len(lengths))
    chunks = ((c, lengths[c]) for c in regroup(iter([items]), arrangement.chunk))
    for chunk, batch, after in arranged(chunks, arrangement, 3, place):
        yield Batch(chunk[batch.items], batch.rows), after


@given(arrangements(), many_lengths)
@settings(deadline=None, max_examples=100)
def test_every_item_comes_once_in_rows_that_fit(arrangement: Arrangement, lengths: Int64s) -> None:
    batches = [batch for batch, _ in delivered(arrangement, lengths, Place())]
    items = [item for batch in batches for item in batch.items.tolist()]
    assert sorted(items) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= arrangement.batch_size for batch in batches)
    if isinstance(arrangement, Packed):
        for batch in batches:
            assert batch.rows is not None
            assert (
                np.add.reduceat(lengths[batch.items], batch.rows[:-1]) <= arrangement.length
            ).all()
            assert (np.diff(batch.rows) > 0).all()
            assert batch.rows[-1] == len(batch.items)
    elif isinstance(arrangement, AsTheyCome):
        assert items == list(range(len(lengths)))


@given(arrangements(), many_lengths)
@settings(deadline=None, max_examples=50)
def test_from_every_place_the_same_batches_follow(
    arrangement: Arrangement, lengths: Int64s
) -> None:
    whole = list(delivered(arrangement, lengths, Place()))
    for step in range(0, len(whole), max(1, len(whole) // 20)):
        rest = list(delivered(arrangement, lengths, whole[step][1]))
        assert [p for _, p in rest] == [p for _, p in whole[step + 1 :]]
        for (found, _), (expected, _) in zip(rest, whole[step + 1 :], strict=True):
            assert found.items.tolist() == expected.items.tolist()


def test_by_length_pads_a_tenth_of_what_random_batches_pad() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 8 * ARRANGED_BATCHES)

    def padding(arrangement: Arrangement) -> int:
        batches = [batch for batch, _ in delivered(arrangement, lengths, Place())]
        return sum(int((lengths[b.items].max() - lengths[b.items]).sum()) for b in batches)

    assert padding(ByLength(8, 0)) < padding(AsTheyCome(8)) / 10


def test_rows_are_almost_full() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 20_000)
    arrangement = Packed(8, 512, float(lengths.mean()), 0)
    rows = sum(len(batch) for batch, _ in delivered(arrangement, lengths, Place()))
    assert lengths.sum() / (rows * 512) > 0.98


@pytest.mark.parametrize("kind", [lambda s: ByLength(2, s), lambda s: Packed(2, 50, 20.0, s)])
def test_other_seeds_and_other_chunks_are_other_orders(kind: object) -> None:
    lengths = np.arange(100) % 40 + 1

    def order(seed: int | None, *place: int) -> list[list[int]]:
        return [batch.items.tolist() for batch in kind(seed)(lengths, *place)]  # type: ignore[operator]

    assert order(0, 0, 0) == order(0, 0, 0)
    found = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 128), order(None, 0, 0)]
    assert all(found[i] != found[j] for i in range(5) for j in range(i))
    assert sorted(item for items in found[0] for item in items) == list(range(100))

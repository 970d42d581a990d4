"""Where a loader is: who moves it, and which states it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.errors import InputError

Precompute = Callable[..., sl.LabelSet]


def seen(batches: Any) -> list[tuple[str, int]]:
    """(key, part) of every record, in order."""
    return [p for b in batches for p in zip(b["key"], b["part"].tolist(), strict=True)]


def moved_by_set_epoch(loader: sl.Loader) -> None:
    loader.set_epoch(5)


def moved_by_a_state(loader: sl.Loader) -> None:
    loader.load_state_dict(loader.state_dict() | {"epoch": 5, "seen": 4})


def moved_by_another_iterator(loader: sl.Loader) -> None:
    next(iter(loader))


@pytest.mark.parametrize("move", [moved_by_set_epoch, moved_by_a_state, moved_by_another_iterator])
@pytest.mark.parametrize("threads", [0, 2])
def test_an_older_iterator_goes_on_and_moves_nothing(
    labels: sl.LabelSet, move: Callable[[sl.Loader], None], threads: int
) -> None:
    whole = seen(sl.loader(labels, batch_size=2, seed=0))
    loader = sl.loader(labels, batch_size=2, seed=0, threads=threads)
    older = iter(loader)
    found = [next(older)]
    move(loader)
    state = loader.state_dict()
    for batch in older:
        found.append(batch)
        assert loader.state_dict() == state
    assert loader.state_dict() == state
    assert seen(found) == whole


def test_of_two_iterators_the_one_begun_last_says_where_the_loader_is(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=2, seed=0)
    older, newer = iter(loader), iter(loader)
    next(older)
    next(newer)
    assert len(list(older)) + 1 == len(loader)
    assert (loader.epoch, loader.state_dict()["seen"]) == (0, 2)
    next(newer)
    assert loader.state_dict()["seen"] == 4
    assert len(list(newer)) + 2 == len(loader)
    assert loader.epoch == 1


@pytest.mark.parametrize("options", [{"row_length": 7}, {"by_length": True}])
def test_a_state_of_records_cut_to_another_length_is_refused(
    labels: sl.LabelSet, samples: list[Any], options: dict[str, Any]
) -> None:
    for data in (None, Rows(samples)):
        state = sl.loader(labels, data, max_length=6, **options).state_dict()
        for length in (2, 6):
            other = sl.loader(labels, data, max_length=length, **options)
            if length == 6:
                other.load_state_dict(state)
                continue
            with pytest.raises(InputError, match="another loader"):
                other.load_state_dict(state)


class Rows:
    """A stream that begins again."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_a_state_of_another_seed_is_refused_where_parts_or_teachers_are_drawn_by_it(
    labels: sl.LabelSet, tmp_path: Path, precompute: Precompute, samples: list[Any]
) -> None:
    two = [labels, precompute(tmp_path / "set", samples, overlap=1, selection=sl.TopK(2))]
    for sets, options in ((labels, {"parts": "one"}), (two, {"fuse": "choice"})):

        def made(seed: int, sets: Any = sets, options: Any = options) -> sl.Loader:
            return sl.loader(sets, shuffle=False, seed=seed, **options)

        made(0).load_state_dict(made(0).state_dict())
        with pytest.raises(InputError, match="another loader"):
            made(1).load_state_dict(made(0).state_dict())

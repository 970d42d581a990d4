"""Steps: where a loop is, however it takes its batches."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import DataLoader

import softlabels as sl
from softlabels.errors import InputError
from softlabels.integrations import Steps, to_tensors

Pair = tuple[str, int]


def steps(labels: sl.LabelSet, **options: Any) -> Steps:
    return Steps(sl.loader(labels, batch_size=3, seed=0, **options))


def pairs(batches: Any) -> list[list[Pair]]:
    return [list(zip(b["key"], b["part"].tolist(), strict=True)) for b in batches]


def epochs(labels: sl.LabelSet, count: int = 3) -> list[list[list[Pair]]]:
    loader = sl.loader(labels, batch_size=3, seed=0)
    return [pairs(loader) for _ in range(count)]


def test_they_are_the_loaders_batches_and_the_last_is_known(labels: sl.LabelSet) -> None:
    some = steps(labels)
    for expected in epochs(labels):
        found, last = [], []
        for batch in some:
            found.append(batch)
            last.append(some.last)
        assert pairs(found) == expected
        assert last == [False] * (len(expected) - 1) + [True]
        assert len(some) == len(expected)


def test_their_length_is_that_of_the_epoch_that_is_iterated_over(labels: sl.LabelSet) -> None:
    options: dict[str, Any] = {"batch_size": 1, "seed": 0, "row_length": 7, "parts": "one"}
    loader, lengths = sl.loader(labels, **options), []
    for _ in range(6):
        lengths.append(len(loader))
        list(loader)
    assert len(set(lengths)) > 1
    some = Steps(sl.loader(labels, **options))
    for epoch, expected in enumerate(lengths):
        assert len(some) == expected
        batches = iter(some) if epoch % 2 else islice(some, expected)
        assert [len(some) for _ in batches] == [expected] * expected
        del batches


def test_older_iterators_go_on_and_save_no_state(labels: sl.LabelSet) -> None:
    some, whole = steps(labels), epochs(labels)[0]
    begun = some.state_dict()
    older = iter(some)
    found = [next(older)]
    some.load_state_dict(begun)
    for batch in older:
        found.append(batch)
        assert (some.state_dict(), some.last) == (begun, False)
    assert pairs(found) == whole
    older = iter(some)
    next(older)
    newer = iter(some)
    assert pairs([next(newer)]) == whole[1:2]
    state = some.state_dict()
    del older
    assert some.state_dict() == state
    assert pairs(newer) == whole[2:]


def test_a_loop_that_counts_batches_comes_to_the_next_epoch(labels: sl.LabelSet) -> None:
    some = steps(labels)
    for expected in epochs(labels):
        assert pairs(islice(some, len(some))) == expected


def test_an_epoch_left_early_goes_on(labels: sl.LabelSet) -> None:
    some, expected = steps(labels), epochs(labels, 2)
    found = pairs(islice(some, 2)) + pairs(islice(some, 1)) + pairs(some)
    assert found == expected[0]
    assert pairs(some) == expected[1]


@pytest.mark.parametrize("threads", [0, 2])
def test_every_state_resumes_exactly(labels: sl.LabelSet, threads: int) -> None:
    expected = [batch for epoch in epochs(labels) for batch in epoch]
    some = steps(labels, threads=threads)
    states = [some.state_dict()]
    for _ in range(2):
        for _ in some:
            states.append(json.loads(json.dumps(some.state_dict())))
    for taken, state in enumerate(states):
        other = steps(labels, threads=threads)
        other.load_state_dict(state)
        assert other.state_dict() == state
        found: list[list[Pair]] = []
        while len(found) < len(expected) - taken:
            found += pairs(other)
        assert found == expected[taken:]


def test_a_loaders_own_state_at_an_epochs_end_begins_the_next(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=3, seed=0)
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    state = loader.state_dict()
    other = steps(labels)
    other.load_state_dict(state)
    assert pairs(other) == epochs(labels, 2)[1]


def test_a_dataloader_takes_them_as_they_are(labels: sl.LabelSet) -> None:
    some = steps(labels)
    through = DataLoader(some, batch_size=None)
    for expected in epochs(labels):
        assert pairs(islice(through, len(through))) == expected


def test_what_is_handed_out_may_be_changed(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=3)
    assert all("soft_ids" in tensors for tensors in Steps(loader, to_tensors))


def test_a_mix_resumes_at_every_step_too(labels: sl.LabelSet) -> None:
    def mixed() -> Steps:
        parts = [sl.loader(labels, batch_size=size, seed=0) for size in (2, 5)]
        return Steps(sl.mix(parts, stop="shortest"))

    expected, plain = [], sl.mix([sl.loader(labels, batch_size=s, seed=0) for s in (2, 5)],
                                 stop="shortest")  # fmt: skip
    for _ in range(2):
        expected += pairs(plain)
    some = mixed()
    states = [some.state_dict()]
    for _ in some:
        states.append(json.loads(json.dumps(some.state_dict())))
    for taken, state in enumerate(states):
        other = mixed()
        other.load_state_dict(state)
        found: list[list[Pair]] = []
        while len(found) < len(expected) - taken:
            found += pairs(other)
        assert found == expected[taken:]
    with pytest.raises(TypeError, match="when its epoch has ended"):
        len(some)
    with pytest.raises(InputError, match="rank 0 of 1, this process is rank 1 of 2"):
        some.check_ranks(1, 2)


# Python 3.12 warns of any fork in a process with threads; Arrow has some.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_worker_processes_and_other_ranks_are_refused(labels: sl.LabelSet) -> None:
    with pytest.raises(InputError, match="num_workers=0"):
        list(DataLoader(steps(labels), batch_size=None, num_workers=1))
    with pytest.raises(InputError, match="rank 1 of 2, this process is rank 0 of 2"):
        steps(labels, rank=1, world_size=2).check_ranks(0, 2)
    with pytest.raises(InputError, match="a list was given"):
        Steps([])  # type: ignore[arg-type]

"""Mixes: batches of several loaders in exact proportions, gone on from at every step."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from torch.utils.data import DataLoader

import softlabels as sl
from softlabels.errors import InputError


def loaders(labels: sl.LabelSet, **options: Any) -> dict[str, sl.Loader]:
    return {
        "a": sl.loader(labels, batch_size=2, seed=0, **options),
        "b": sl.loader(labels, batch_size=1, seed=1, records=range(6), **options),
    }


def told(batch: Any) -> tuple[Any, ...]:
    return (batch["source"], *batch["key"], *batch["part"].tolist())


def test_each_loader_gives_its_share_at_every_step(labels: sl.LabelSet) -> None:
    mixed = sl.mix(loaders(labels), weights=[3, 1])
    sources = [batch["source"] for batch in mixed]
    for steps in range(1, len(sources) + 1):
        counts = Counter(sources[:steps])
        assert abs(counts["a"] - 0.75 * steps) <= 1
        assert abs(counts["b"] - 0.25 * steps) <= 1


@pytest.mark.parametrize("stop", ["shortest", "longest"])
def test_an_epoch_ends_with_the_shortest_or_the_longest(labels: sl.LabelSet, stop: Any) -> None:
    parts = loaders(labels)
    lengths = {name: len(loader) for name, loader in parts.items()}
    mixed = sl.mix(parts, stop=stop)
    epochs = []
    for _ in range(2):
        epochs.append([told(batch) for batch in mixed])
        counts = Counter(source for source, *_ in epochs[-1])
        long = max(lengths, key=lengths.__getitem__)
        end = long if stop == "longest" else min(lengths, key=lengths.__getitem__)
        assert counts[end] == lengths[end]
        assert abs(counts["a"] - counts["b"]) <= 1
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("stop", ["shortest", "longest"])
def test_a_state_of_every_step_goes_on_where_it_was(labels: sl.LabelSet, stop: Any) -> None:
    mixed = sl.mix(loaders(labels), weights=[1, 2], stop=stop)
    for _ in range(2):
        whole, states = [], [mixed.state_dict()]
        for batch in mixed:
            whole.append(told(batch))
            states.append(mixed.state_dict())
        # With its last batch an epoch is over.
        assert states.pop()["taken"] == [0, 0]
        following = None
        for step, state in enumerate(states):
            again = sl.mix(loaders(labels), weights=[1, 2], stop=stop)
            again.load_state_dict(json.loads(json.dumps(state)))
            assert again.state_dict() == state
            assert [told(batch) for batch in again] == whole[step:]
            then = [told(batch) for batch in again]
            assert following in (None, then)
            following = then


def test_a_list_of_loaders_has_numbers_for_names(labels: sl.LabelSet) -> None:
    mixed = sl.mix(list(loaders(labels).values()))
    assert {batch["source"] for batch in mixed} == {"0", "1"}
    assert len(list(DataLoader(mixed, batch_size=None))) == len(list(mixed))


def test_what_cannot_be_mixed_is_refused(labels: sl.LabelSet) -> None:
    parts = loaders(labels)
    for options in ({"weights": [1]}, {"weights": [-1, 2]}, {"weights": [0, 1]}, {"stop": "never"}):
        with pytest.raises(InputError, match=r"weight|stop"):
            sl.mix(parts, **options)
    with pytest.raises(InputError, match="at least one"):
        sl.mix([])
    with pytest.raises(InputError, match="another mix"):
        sl.mix(parts).load_state_dict(sl.mix([parts["a"]]).state_dict())
    with pytest.raises(InputError, match="num_workers=0"):
        list(DataLoader(sl.mix(parts), batch_size=None, num_workers=1))


def test_a_loader_that_is_given_twice_is_refused(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=2)
    for twice in ([loader, loader], {"a": loader, "b": loader}):
        with pytest.raises(InputError, match="given twice"):
            sl.mix(twice)


def test_a_column_that_is_called_source_is_refused(labels: sl.LabelSet, samples: list[Any]) -> None:
    rows = [row | {"source": "web"} for row in samples]
    with pytest.raises(InputError, match=r"'a' has a column 'source'.*columns="):
        next(iter(sl.mix({"a": sl.loader(labels, rows)})))
    chosen = sl.mix({"a": sl.loader(labels, rows, columns=["note"])})
    assert {batch["source"] for batch in chosen} == {"a"}


@pytest.mark.parametrize(
    "changed", [{"taken": None}, {"taken": [0]}, {"ended": [0]}, {"ended": ["0", "0"]}]
)
def test_a_state_that_no_mix_made_is_refused_and_changes_nothing(
    labels: sl.LabelSet, changed: dict[str, Any]
) -> None:
    mixed = sl.mix(loaders(labels))
    next(iter(mixed))
    before = mixed.state_dict()
    with pytest.raises(InputError, match=r"another mix|integer"):
        mixed.load_state_dict(before | changed)
    assert mixed.state_dict() == before


def test_an_older_iterator_of_a_mix_is_refused(labels: sl.LabelSet) -> None:
    mixed = sl.mix(loaders(labels))
    older = iter(mixed)
    next(older)
    state = mixed.state_dict()
    newer = iter(mixed)
    next(newer)
    with pytest.raises(InputError, match="iterate over it anew"):
        next(older)
    next(newer)
    mixed.load_state_dict(state)
    with pytest.raises(InputError, match="iterate over it anew"):
        next(newer)
    assert mixed.state_dict() == state

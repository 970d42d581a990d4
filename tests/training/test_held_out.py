"""What is held out: whole samples, the same ones of every set of the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabels as sl
from softlabels.errors import InputError, JoinError, VocabularyMismatchError
from softlabels.training import DataRecipe
from softlabels.training.split import Split, split


def keys(labels: sl.LabelSet, records: Any) -> list[str]:
    known = labels.identities["key"].to_pylist()
    return [known[n] for n in records]


def sides(labels: sl.LabelSet, found: Split) -> tuple[set[str], set[str]]:
    assert found.training is not None
    assert found.held_out is not None
    held = found.held_out
    return set(keys(labels, found.training)), set(keys(held.labels, held.records))


@pytest.mark.parametrize(
    "recipe", [DataRecipe(), DataRecipe(held_out=0.3), DataRecipe(held_out_every=5)]
)
def test_whole_samples_are_held_out_and_every_record_is_on_one_side(
    labels: sl.LabelSet, recipe: DataRecipe
) -> None:
    assert len(labels) > 30  # windows
    found = split(labels, None, recipe, seed=0)
    training, held = sides(labels, found)
    assert not training & held
    assert found.held_out is not None
    numbers = [*found.training.tolist(), *found.held_out.records.tolist()]  # type: ignore[union-attr]
    assert sorted(numbers) == list(range(len(labels)))
    share = 1 / 5 if recipe.held_out_every else recipe.held_out or 0.1
    assert len(held) == round(share * 30)


def test_every_nth_sample_is_counted_in_the_sets_order(labels: sl.LabelSet) -> None:
    found = split(labels, None, DataRecipe(held_out_every=10), seed=0)
    assert sides(labels, found)[1] == {"s9", "s19", "s29"}


def test_the_share_depends_on_keys_and_seed_alone(
    labels: sl.LabelSet, precompute: Any, id_samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = precompute(tmp_path / "other", id_samples[::-1], max_length=20)
    recipe = DataRecipe(held_out=0.3)
    held = [sides(s, split(s, None, recipe, seed=1))[1] for s in (labels, other)]
    assert held[0] == held[1]
    assert held[0] != sides(labels, split(labels, None, recipe, seed=2))[1]


def test_nothing_is_held_out_where_nothing_is_asked_for(labels: sl.LabelSet) -> None:
    assert split(labels, None, DataRecipe(held_out=0), seed=0) == Split(None, None)


def test_a_split_that_leaves_nothing_is_refused(labels: sl.LabelSet) -> None:
    with pytest.raises(InputError, match="0 would be held out"):
        split(labels, None, DataRecipe(held_out_every=31), seed=0)
    with pytest.raises(InputError, match="would be held out"):
        split(labels, None, DataRecipe(held_out=0.99), seed=0)


def test_another_set_of_other_samples_is_held_out_whole(
    labels: sl.LabelSet, precompute: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(9)
    # Keys that the training set has too: they are other samples all the same.
    rows = [{"id": f"s{i}", "ids": rng.integers(0, 16, 25).tolist()} for i in range(4)]
    other = precompute(tmp_path / "other", rows)
    found = split(labels, None, DataRecipe(), seed=0, other=(other, None))
    assert found.training is None
    assert found.held_out is not None
    assert found.held_out.records is None
    assert len(found.held_out) == len(other)


def test_a_sample_on_both_sides_is_refused_unless_a_split_is_asked_for(
    labels: sl.LabelSet, precompute: Any, id_samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = precompute(tmp_path / "other", id_samples, max_length=20)
    with pytest.raises(InputError, match=r'30 samples that are trained on.*"s0"'):
        split(labels, None, DataRecipe(), seed=0, other=(other, None))
    found = split(labels, None, DataRecipe(held_out=0.3), seed=0, other=(other, None))
    training, held = sides(labels, found)
    assert len(held) == 9
    assert not training & held
    assert found.held_out is not None
    assert found.held_out.labels is other


def test_a_held_out_sample_that_the_other_set_lacks_is_named(
    labels: sl.LabelSet, precompute: Any, id_samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = precompute(tmp_path / "other", id_samples[:9], max_length=20)
    with pytest.raises(JoinError, match=r'key "s9" and 2 other'):
        split(labels, None, DataRecipe(held_out_every=10), seed=0, other=(other, None))


def test_a_set_of_other_classes_is_not_held_out(labels: sl.LabelSet, finished_set: Path) -> None:
    other = sl.LabelSet.open(finished_set)
    with pytest.raises(VocabularyMismatchError, match=r"16 classes.* 512"):
        split(labels, None, DataRecipe(), seed=0, other=(other, None))

"""The figure of a run, and what is said where it cannot be drawn."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import softlabels as sl
from softlabels.errors import InputError
from softlabels.training import LossRecipe, TrainRecipe, train
from softlabels.training.journal import Journal
from softlabels.training.plot import plot


def test_a_run_is_drawn_with_or_without_held_out_records(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, tmp_path: Path
) -> None:
    train(labels, recipe=replace(recipe, loss=LossRecipe(hard_weight=0.3)), out=out)
    assert plot(out) == out / "metrics.png"
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")
    both = plot(out, tmp_path / "both.svg").read_bytes()
    assert b'id="axes_2"' in both  # agreement beside the loss
    alone = replace(recipe, data=replace(recipe.data, held_out=0), steps=2)
    result = train(labels, recipe=alone, out=tmp_path / "alone")
    assert (result.before, result.after) == (None, None)
    one = plot(tmp_path / "alone", tmp_path / "one.svg").read_bytes()
    assert b'id="axes_1"' in one
    assert b'id="axes_2"' not in one


def test_a_figure_of_nothing_or_without_matplotlib_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no metrics"):
        plot(tmp_path)
    Journal(tmp_path, {}).close()
    with pytest.raises(InputError, match="no metrics"):
        plot(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'softlabels\[plot\]'"):
        plot(tmp_path)

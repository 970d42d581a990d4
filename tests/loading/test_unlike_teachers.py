"""Label sets that do not go together are refused when the loader is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError
from softlabels.loading.fuse import alike

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]


def test_what_is_no_label_set_is_refused_in_words(labels: sl.LabelSet) -> None:
    for wrong in ([], {}, None, "labels/docs", labels.root, ["labels/docs"], [labels, None]):
        with pytest.raises(InputError, match=r"LabelSet\.open"):
            sl.loader(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fuse", [None, "mixture", "choice"])
def test_teachers_of_the_next_and_of_the_same_token_are_refused(
    labels: sl.LabelSet, samples: Samples, tmp_path: Path, precompute: Precompute, fuse: Any
) -> None:
    same = sl.teachers.from_callable(
        lambda ids: torch.eye(16)[ids], name="same", version="1", classes=16
    )
    same.alignment = "same"
    other = precompute(tmp_path / "set", samples, teacher=same, overlap=1)
    with pytest.raises(InputError, match=r"'next' token.*'same' one"):
        sl.loader([labels, other], fuse=fuse)


def test_sampled_labels_are_chosen_from_among_their_like_alone(
    labels: sl.LabelSet, samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    options: dict[str, Any] = {"codec": "sampled", "temperatures": None, "overlap": 1}
    drawn = [
        precompute(tmp_path / f"drawn{i}", samples, selection=sl.Sampled(4, seed=i), **options)
        for i in range(2)
    ]
    for some in ([drawn[0], labels], [labels, drawn[0]]):
        with pytest.raises(InputError, match=r"drawn0 is sampled, .*set is not.*leave out fuse="):
            sl.loader(some, fuse="choice")
        apart = next(iter(sl.loader(some)))["soft_labels"]
        assert [y.sampled for y in apart] == [one in drawn for one in some]
        with pytest.raises(InputError, match="keep the teachers apart"):
            alike([y[0] for y in apart])
    with pytest.raises(InputError, match="no probabilities to mix"):
        sl.loader(drawn, fuse="mixture")
    assert all(b["soft_labels"].sampled for b in sl.loader(drawn, fuse="choice"))

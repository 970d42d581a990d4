"""What two sets differ in, against dense distributions and by planted differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError
from softlabels.looking.difference import difference


def test_a_set_does_not_differ_from_itself_or_from_one_made_again(
    counted: sl.LabelSet, knowing: Any, tmp_path: Path
) -> None:
    for other in (counted, knowing(tmp_path / "again", probes=40)):
        found = difference(counted, other)
        assert not found.any
        assert found.provenance == ()
        assert (found.records.common, found.values.same) == (8, 192)
        assert (found.values.mean_kl, found.values.max_kl) == (0, 0)
        assert found.values.first_guess == 1


def merged_kl(a: sl.SoftLabels, b: sl.SoftLabels) -> torch.Tensor:
    """Over the classes that both keep and one rest, position by position."""
    out = []
    for t in range(len(a)):
        p, q = ({int(i): float(v) for i, v in zip(y.ids[t], y.log_probs[t].exp(), strict=True)}
                for y in (a, b))  # fmt: skip
        common = sorted(p.keys() & q.keys())
        left = torch.tensor([*(p[i] for i in common), 1 - sum(p[i] for i in common)])
        right = torch.tensor([*(q[i] for i in common), 1 - sum(q[i] for i in common)])
        out.append(float((left * (left / right).log()).sum()))
    return torch.tensor(out)


def test_the_kl_is_over_common_classes_and_one_rest(
    counted: sl.LabelSet, knowing: Any, tmp_path: Path
) -> None:
    other = knowing(tmp_path / "other", ahead=2, selection=sl.TopK(4))
    found = difference(counted, other)
    each = [merged_kl(counted[n], other[n]) for n in range(8)]
    kl = torch.cat(each)
    assert found.values.mean_kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.values.max_kl == pytest.approx(float(kl.max()), rel=1e-3)
    worst = found.values.worst
    assert worst is not None
    at = each[int(str(worst["key"])[1:])][worst["position"]]
    assert float(at) == pytest.approx(float(kl.max()), rel=1e-3)
    assert found.values.same == 0
    assert {field.name for field in found.provenance} >= {"selection.k", "teacher.revision"}


def test_another_codec_is_another_recipe_and_nearly_the_same_values(
    counted: sl.LabelSet, tmp_path: Path
) -> None:
    packed = sl.derive(counted, tmp_path / "packed", codec="compact", progress=False)
    found = difference(counted, packed)
    assert found.values.mean_kl is not None
    assert 0 < found.values.mean_kl < 1e-3
    names = {field.name for field in found.provenance}
    assert {"codec.name", "derived_from"} <= names
    assert all(len(str(field.b)) < 500 for field in found.provenance)


def test_records_are_joined_by_identity_and_every_difference_is_counted(
    knowing: Any, precompute: Any, tmp_path: Path
) -> None:
    rows = [{"id": f"r{n}", "ids": [n, n + 1, n + 2]} for n in range(6)]
    changed = [dict(row) for row in reversed(rows[1:])]
    changed[0]["ids"] = [9, 9, 9]  # of r5
    changed.append({"id": "new", "ids": [1]})
    a, b = precompute(tmp_path / "a", rows), precompute(tmp_path / "b", changed)
    found = difference(a, b).records
    assert (found.common, found.only_a, found.only_b) == (5, 1, 1)
    assert (found.other_inputs, found.other_tokens) == (1, 1)
    assert found.examples["only_a"] == ["r0"]
    assert found.examples["only_b"] == ["new"]
    assert found.examples["other_tokens"] == ["r5"]
    assert difference(a, b).values.positions == 4 * 3


def test_other_labelled_positions_are_counted_and_not_compared_as_values(
    precompute: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = precompute(tmp_path / "set", [{"id": "a", "ids": list(range(9))}], overlap=2)
    b, take = sl.LabelSet.open(a.root), a.take

    def one_place_back(numbers: Any) -> Any:
        found = take(numbers)
        wanted = found.wanted.copy()
        wanted[6:] = np.roll(wanted[6:], -1)  # of the second window, whose first two are context
        return replace(found, wanted=wanted)

    monkeypatch.setattr(b, "take", one_place_back)
    found = difference(a, b)
    assert found.any
    assert (found.records.common, found.records.other_positions) == (2, 1)
    assert found.records.examples["other_positions"] == ["a"]
    assert (found.values.positions, found.values.same) == (6, 6)


def test_keys_of_two_kinds_are_refused(pristine: Path, precompute: Any, tmp_path: Path) -> None:
    numbered = precompute(tmp_path / "set", [{"id": 1, "ids": [1, 2]}])
    with pytest.raises(InputError, match="no record of one can be found in the other"):
        difference(sl.LabelSet.open(pristine), numbered)


def test_sampled_sets_have_no_kl(knowing: Any, tmp_path: Path) -> None:
    options = {"selection": sl.Sampled(6), "codec": None, "temperatures": None}
    a, b = knowing(tmp_path / "a", **options), knowing(tmp_path / "b", ahead=2, **options)
    found = difference(a, b)
    assert found.any
    assert (found.values.mean_kl, found.values.worst) == (None, None)
    assert found.values.positions == 192

"""`softlabels diff`: in words, as JSON, and by its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import softlabels as sl


def test_equal_sets_exit_0_and_say_so(softlabels: Any, pristine: Path, tiny: Path) -> None:
    done = softlabels("diff", pristine, tiny)
    assert (done.code, done.err) == (0, "")
    assert done.out == "no difference: 8 records, 40 positions\n"
    assert softlabels("diff", pristine, tiny, "--json").json["differ"] is False


def test_a_derived_set_differs_in_recipe_and_values(
    softlabels: Any, pristine: Path, tmp_path: Path
) -> None:
    sl.derive(pristine, tmp_path / "few", k=2, progress=False)
    done = softlabels("diff", pristine, tmp_path / "few")
    assert (done.code, done.err) == (1, "")
    for words in ("selection.k", "8 in both", "0 of 40 positions are the same", "KL(A ‖ B)"):
        assert words in done.out
    found = softlabels("diff", pristine, tmp_path / "few", "--json")
    assert found.code == 1
    assert found.json["values"]["positions"] == 40
    (k,) = [field for field in found.json["provenance"] if field["name"] == "selection.k"]
    assert (k["a"], k["b"]) == (3, 2)


def test_records_of_one_alone_are_named_with_their_controls_escaped(
    softlabels: Any, pristine: Path, precompute: Any, tmp_path: Path
) -> None:
    precompute(tmp_path / "set", [{"id": "\x1b[2J[red]x", "ids": [1, 2]}])
    done = softlabels("diff", pristine, tmp_path / "set")
    assert done.code == 1
    assert "8 only in A: s0, s1, s1, s1, s2 …" in done.out
    assert "1 only in B: \\u001b[2J[red]x" in done.out
    assert "no position is labelled in both" in done.out
    assert all(c.isprintable() or c == "\n" for c in done.out)


def test_a_set_that_is_none_is_a_wrong_call(softlabels: Any, pristine: Path) -> None:
    done = softlabels("diff", pristine, pristine / "data")
    assert (done.code, done.out) == (2, "")
    assert "not a label set" in done.err

"""Labels one position off are found, whichever way they are off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.looking.alignment import Alignment, AlignmentCheck


def checked(labels: sl.LabelSet, change: Any = lambda found: found) -> Alignment | None:
    check = AlignmentCheck()
    for records in labels.groups():
        check.add(replace(records, labels=change(records.labels)), labels.plan)
    return check.found()


@pytest.mark.parametrize(
    ("ahead", "verdict"), [(1, "aligned"), (0, "token before"), (2, "token after")]
)
def test_the_shift_that_fits_the_tokens_best_is_the_verdict(
    knowing: Any, tmp_path: Path, ahead: int, verdict: str
) -> None:
    found = checked(knowing(tmp_path / "set", ahead=ahead))
    assert found is not None
    assert found.verdict == verdict
    assert found.words
    assert max(found.log_probs) == found.log_probs[ahead]
    assert max(found.kept) == found.kept[ahead]
    assert max(found.first) == found.first[ahead] > 0.7
    assert found.hard_agrees == 1.0


def test_hard_labels_of_other_tokens_are_found(counted: sl.LabelSet) -> None:
    def other(labels: sl.SoftLabels) -> sl.SoftLabels:
        assert labels.hard_log_probs is not None
        return replace(labels, hard_log_probs=labels.hard_log_probs.roll(7))

    found = checked(counted, other)
    assert found is not None
    assert found.verdict == "hard labels differ"
    assert found.hard_agrees is not None
    assert found.hard_agrees < 0.99


def test_a_teacher_that_knows_nothing_gives_no_verdict(pristine: Path) -> None:
    found = checked(sl.LabelSet.open(pristine))
    assert found is not None
    assert found.verdict == "cannot tell"


def test_without_tokens_nothing_is_checked(knowing: Any, tmp_path: Path) -> None:
    assert checked(knowing(tmp_path / "set", store_inputs=False)) is None


def test_a_label_is_never_held_to_a_token_of_another_record(counted: sl.LabelSet) -> None:
    found = checked(counted)
    assert found is not None
    # Of 24 tokens the last two have no token after the next one.
    assert found.positions == counted.totals.positions - 2 * len(counted)

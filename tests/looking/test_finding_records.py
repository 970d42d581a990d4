"""Which record is meant, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.errors import InputError
from softlabels.looking.record import find


def test_a_finished_set_without_records_says_that_all_were_rejected(
    tmp_path: Path, precompute: Any
) -> None:
    labels: sl.LabelSet = precompute(tmp_path / "set", [{"id": "a", "ids": [99]}], on_error="skip")
    with pytest.raises(InputError, match=r"holds no records; of its samples, 1 were rejected"):
        find(labels, None, None, 0)

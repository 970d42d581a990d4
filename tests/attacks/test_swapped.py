"""Shards of one set in the place of another's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from forge import FIRST, refusals, reseal

import softlabels as sl
from softlabels.errors import CorruptShardError
from softlabels.verifying.verify import verify


def test_a_shard_of_another_set_is_not_read(tiny: Path, precompute: Any, tmp_path: Path) -> None:
    other = precompute(tmp_path / "other", temperatures=(1.0, 3.0))
    shutil.copy(other.root / FIRST, tiny / FIRST)
    with pytest.raises(CorruptShardError, match=FIRST):
        sl.LabelSet.open(tiny)[0]


def test_resealed_in_its_place_it_is_found_by_the_plan_in_its_footer(
    tiny: Path, precompute: Any, tmp_path: Path
) -> None:
    other = precompute(tmp_path / "other", temperatures=(1.0, 3.0))
    shutil.copy(other.root / FIRST, tiny / FIRST)
    reseal(tiny)
    found = verify(tiny).findings
    assert [(one.file, "another plan" in one.problem) for one in found] == [(FIRST, True)]


def test_resealed_with_another_codec_it_is_refused_when_it_is_read(
    tiny: Path, packed: Path
) -> None:
    shutil.copy(packed / FIRST, tiny / FIRST)
    reseal(tiny)
    with pytest.raises(CorruptShardError, match="column ids"):
        sl.LabelSet.open(tiny)[0]


def test_two_shards_of_a_set_that_changed_places_are_found(tiny: Path) -> None:
    names = [tiny / "data" / f"train-0000{n}.parquet" for n in (0, 1)]
    first, second = (name.read_bytes() for name in names)
    names[0].write_bytes(second)
    names[1].write_bytes(first)
    reseal(tiny)
    assert sum("work unit" in words for words in refusals(tiny)) == 2

"""The key index of large sets: sorted in parts, byte for byte what is sorted at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabels.format import keys
from softlabels.format.keys import KeyIndex, write_index


@pytest.fixture(params=[1, 2, 9, 1 << 20])
def _sorted_in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_SORTED_RECORDS", request.param)
    # Fewer, and more, than the first keys to come.
    monkeypatch.setattr(keys, "_HELD_RECORDS", 4 if request.param == 2 else 7)


@pytest.mark.usefixtures("_sorted_in_parts")
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_an_index_sorted_in_parts_is_the_one_sorted_at_once(tmp_path: Path, count: int) -> None:
    # Neighbours with one key, as windows of a sample are, and a key that comes back.
    repeated = [key for key in range(count // 4) for _ in range(3)]
    numbers = [*repeated, *range(count - len(repeated))]
    for values in (pa.array(numbers, pa.int64()), pa.array(map(str, numbers), pa.string())):
        cuts = range(6, count, 3)
        parts = [pa.chunked_array([values[:2], values[2:6]]), *(values[i : i + 3] for i in cuts)]
        file = tmp_path / "keys.index"
        write_index(file, iter(parts), records=count, scratch=tmp_path)
        assert file.read_bytes() == KeyIndex.build(parts).to_bytes()
        assert os.listdir(tmp_path) == ["keys.index"]


@pytest.mark.usefixtures("_sorted_in_parts")
@pytest.mark.parametrize("records", [0, 19, 21])
def test_keys_that_are_more_or_fewer_than_the_records_are_refused(
    tmp_path: Path, records: int
) -> None:
    given = [pa.array(np.arange(20))]
    with pytest.raises(ValueError, match=rf"keys\.index: 20 keys came, of {records} records"):
        write_index(tmp_path / "keys.index", given, records=records, scratch=tmp_path)
    assert os.listdir(tmp_path) == []


def test_no_more_files_are_open_than_a_process_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_SORTED_RECORDS", 1)
    opened = []
    temporary = keys.tempfile.TemporaryFile
    monkeypatch.setattr(
        keys.tempfile, "TemporaryFile", lambda **how: (opened.append(how), temporary(**how))[1]
    )
    values = pa.array(np.arange(3000))
    write_index(tmp_path / "keys.index", [values], records=3000, scratch=tmp_path)
    assert len(opened) == 512
    assert (tmp_path / "keys.index").read_bytes() == KeyIndex.build([values]).to_bytes()

"""Links out of the set, to devices, and in circles: nothing but the set's own bytes is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from forge import FIRST, refusals

import softlabels as sl
from softlabels.errors import CorruptShardError

SECRET = b"token=hf_1234567890\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize(
    "name", [FIRST, "shards.parquet", "keys.index", "tokenizer/tokenizer.json"]
)
def test_a_link_to_another_file_is_refused_and_says_nothing_of_it(
    finished_set: Path, tmp_path: Path, secret: Path, name: str
) -> None:
    root = Path(shutil.copytree(finished_set, tmp_path / "set"))
    (root / name).unlink()
    (root / name).symlink_to(secret)
    found = refusals(root)
    assert found
    assert not any("hf_" in words for words in found)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_a_link_to_a_device_is_refused_without_reading_it(tiny: Path, device: str) -> None:
    for name in (FIRST, "shards.parquet", "manifest.json"):
        data = (tiny / name).read_bytes()
        (tiny / name).unlink()
        (tiny / name).symlink_to(device)
        assert refusals(tiny), name
        (tiny / name).unlink()
        (tiny / name).write_bytes(data)


def test_a_link_to_the_same_bytes_is_what_caches_do_and_is_read(tiny: Path, tmp_path: Path) -> None:
    os.rename(tiny / FIRST, tmp_path / "blob")
    (tiny / FIRST).symlink_to(tmp_path / "blob")
    assert refusals(tiny) == []


def test_a_folder_that_is_a_link_to_another_set_is_refused(tiny: Path, packed: Path) -> None:
    shutil.rmtree(tiny / "data")
    (tiny / "data").symlink_to(packed / "data")
    with pytest.raises(CorruptShardError):
        sl.LabelSet.open(tiny)[0]

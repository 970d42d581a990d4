"""Large packed columns are read where they lie, the same as Parquet reads them, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import CorruptShardError
from softlabels.format.mapped import Mapped, values_in_place
from softlabels.labelset import held as in_memory
from tests.conftest import Precompute

BLOBS = st.lists(st.binary(min_size=13, max_size=3000), min_size=1, max_size=40)


def written(path: Path, values: list[bytes | None], **options: Any) -> Path:
    kind = pa.field("packed", pa.binary(), nullable=None in values)
    table = pa.table([pa.array(values, pa.binary())], schema=pa.schema([kind]))
    settings: dict[str, Any] = {
        "compression": "NONE",
        "use_dictionary": False,
        "write_statistics": False,
    }
    pq.write_table(table, path, **{**settings, **options})
    return path


def in_place(path: Path) -> pa.Array | None:
    metadata = pq.read_metadata(path)
    return values_in_place(Mapped(path).buffer, metadata.row_group(0).column(0))


@given(blobs=BLOBS, page=st.integers(100, 5000), options=st.booleans())
@settings(max_examples=40, deadline=None)
def test_values_are_those_that_parquet_reads(
    tmp_path_factory: pytest.TempPathFactory, blobs: list[bytes], page: int, options: bool
) -> None:
    many = blobs * (1 + (1 << 16) // sum(map(len, blobs)))
    path = written(
        tmp_path_factory.mktemp("x") / "x.parquet",
        list(many),
        data_page_size=page,
        write_page_checksum=options,
        use_content_defined_chunking=options,
    )
    found = in_place(path)
    assert found is not None
    found.validate(full=True)
    assert found.to_pylist() == many
    assert pa.concat_arrays([found.slice(2), found.slice(0, 2)]).to_pylist() == many[2:] + many[:2]


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([b"x" * 100] * 10, {}),
        ([b"x" * 12, *[b"y" * 100] * 1000], {}),
        ([None, *[b"y" * 100] * 1000], {}),
        ([os.urandom(100) for _ in range(1000)], {"compression": "ZSTD"}),
        ([b"%100d" % (i % 7) for i in range(90_000)], {"use_dictionary": True}),
        ([b"x" * 100] * 1000, {"column_encoding": "DELTA_BYTE_ARRAY"}),
        ([b"x" * 100] * 1000, {"data_page_version": "2.0"}),
        ([b"x" * 100] * 1000, {"write_statistics": True}),
    ],
    ids=[
        "small",
        "a short value",
        "nulls",
        "zstd",
        "dictionary",
        "another encoding",
        "version 2",
        "statistics",
    ],
)
def test_what_is_not_plain_values_is_left_to_parquet(
    tmp_path: Path, values: list[bytes | None], options: dict[str, Any]
) -> None:
    assert in_place(written(tmp_path / "x.parquet", values, **options)) is None


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), head=st.booleans())
@settings(max_examples=200, deadline=None)
def test_damaged_pages_are_left_to_parquet_or_give_values_within_the_file(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int, head: bool
) -> None:
    path = written(tmp_path_factory.mktemp("x") / "x.parquet", [b"x" * 1000] * 100)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    at = chunk.data_page_offset + int(place * (40 if head else chunk.total_compressed_size))
    data[at] ^= byte
    found = values_in_place(pa.py_buffer(bytes(data)), chunk)
    if found is not None:
        found.validate(full=True)
        assert len(found) == 100


@pytest.fixture
def large(tmp_path: Path, precompute: Precompute) -> sl.LabelSet:
    """Row groups of more than 64 KiB, each of two records."""
    ids = np.random.default_rng(0).integers(0, 16, (12, 9000)).tolist()
    rows = [{"id": f"s{i}", "ids": row} for i, row in enumerate(ids)]
    settings: dict[str, Any] = {"unit_rows": 4, "max_length": 9000, "codec": "compact"}
    return precompute(tmp_path / "set", rows, selection=sl.TopK(8), **settings)


def test_a_set_s_frames_stay_in_its_files_and_no_file_stays_open(large: sl.LabelSet) -> None:
    labels = sl.LabelSet.open(large.root)
    before = pa.total_allocated_bytes()
    held = [labels._held.encoded(group) for group in range(len(labels.row_groups))]
    assert all(one.mapped is not None for one in held)
    frames = sum(one.held.nbytes for one in held)
    assert frames > 1 << 18
    assert pa.total_allocated_bytes() - before < frames // 2
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        assert not [fd for fd in descriptors.iterdir() if "train-" in os.path.realpath(fd)]


def test_a_file_cut_in_place_after_its_rows_were_read_is_an_error_and_not_a_bus_error(
    large: sl.LabelSet,
) -> None:
    labels = sl.LabelSet.open(large.root)
    first = labels.take([0]).labels.log_probs.numpy().tobytes()
    path = labels.root / labels.receipts[0].path
    whole = path.read_bytes()
    os.truncate(path, 100)
    for read in (lambda: labels.take([0]), lambda: labels[0], lambda: labels.take([11, 0])):
        with pytest.raises(CorruptShardError, match=r"train-00000\.parquet: it was cut to 100 of"):
            read()
    path.write_bytes(whole)
    assert labels.take([0]).labels.log_probs.numpy().tobytes() == first


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_removed_or_replaced_is_still_read_as_it_was(large: sl.LabelSet, how: str) -> None:
    labels = sl.LabelSet.open(large.root)
    first = labels.take([0]).labels.log_probs.numpy().tobytes()
    path = labels.root / labels.receipts[0].path
    path.unlink()
    if how == "replaced":
        path.write_bytes(b"shorter")
    assert labels.take([0]).labels.log_probs.numpy().tobytes() == first


def test_a_byte_changed_in_place_after_its_rows_were_checked_is_named(large: sl.LabelSet) -> None:
    labels = sl.LabelSet.open(large.root)
    labels.take([0])
    path = labels.root / labels.receipts[0].path
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(b"\xaa\x55" * 500)
    with pytest.raises(CorruptShardError, match=r"train-00000\.parquet: row group 0: a frame"):
        labels.take([0, 1, 2, 3])


def test_of_small_row_groups_no_mapping_stays(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 3]} for i in range(12)]
    made = precompute(tmp_path / "set", rows, unit_rows=1, codec="compact")
    monkeypatch.setattr(in_memory, "_OPEN_SHARDS", 2)
    labels = sl.LabelSet.open(made.root)
    labels.take(range(12))
    maps = Path("/proc/self/maps")
    assert all(held.mapped is None for held in labels._held._cache.values())
    if maps.is_file():
        found = [line for line in maps.read_text().splitlines() if str(made.root / "data") in line]
        assert len(found) <= 2 + len(made._held._shards)

"""The shard table of large sets: read by column or receipt, each part held to its digest."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import CorruptShardError, LabelSetError
from softlabels.format import manifest, receipts
from softlabels.format.digested import DigestedTable, Footer
from softlabels.format.groups import RowGroup, RowGroups
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.receipts import Receipts
from softlabels.stores.store import Folder

COLUMNS = 3


def receipt(unit: int, *groups: int, **fields: Any) -> Receipt:
    """A receipt of a shard with so many records in each row group; its digests tell which it is."""
    rows = sum(groups)
    hashed = [f"{unit:08x}{group:04x}" for group in range(len(groups))]
    made: dict[str, Any] = {
        "path": f"data/train-{unit:05d}.parquet",
        "unit": unit,
        "rows": rows,
        "positions": 3 * rows,
        "entries": 12 * rows,
        "source_rows": rows + unit % 2,
        "bytes": 1000 + unit,
        "sha256": f"{unit:064x}",
        "footer_bytes": 100,
        "footer_sha256": f"{unit + 1:064x}",
        "group_rows": groups,
        "chunk_digests": [[f"{start}{c:04x}" for c in range(COLUMNS)] for start in hashed],
        "input_digest": f"{unit:032x}",
        "rejects": unit % 2,
    }
    return Receipt.model_validate(made | fields)


MANY = [
    receipt(0, 4, 4, 1),
    receipt(1),
    receipt(2, 5),
    receipt(3, 2, 0, 2, probes=2, probes_sha256="f" * 64),
    receipt(4, 1, truncated=1),
]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_GROUP_SHARDS", 2)


@pytest.fixture
def table(tmp_path: Path, small_groups: None) -> tuple[Path, Footer]:
    path = tmp_path / "shards.parquet"
    footer = manifest.write_shard_table(path, iter(MANY))
    assert os.listdir(tmp_path) == ["shards.parquet"]
    return path, Footer(footer.bytes, footer.sha256)


def opened(table: tuple[Path, Footer]) -> Receipts:
    return Receipts(DigestedTable(table[0], where="table", footer=table[1]))


def everything(found: Receipts) -> list[Any]:
    """All that can be asked of receipts."""
    numbers = [found.numbers(name).tolist() for name in ("unit", "bytes", "rejects", "probes")]
    rows, counts = found.groups()
    return [*found, *numbers, found.texts("sha256"), rows.tolist(), counts.tolist(), found.totals]


def test_receipts_of_a_table_are_those_that_it_was_made_of(table: tuple[Path, Footer]) -> None:
    found = opened(table)
    assert pq.ParquetFile(table[0]).num_row_groups == 3
    assert list(found) == MANY == [found[place] for place in range(5)]
    assert [found[-1], *found[1:3], len(found)] == [MANY[-1], *MANY[1:3], 5]
    for beyond in (5, -6):
        with pytest.raises(IndexError, match=f"receipt {beyond} of 5"):
            found[beyond]
    assert found.starts.tolist() == [0, 9, 9, 14, 18, 19]
    assert found.numbers("bytes").tolist() == [one.bytes for one in MANY]
    assert found.texts("sha256") == [one.sha256 for one in MANY]
    assert found.totals == manifest.total(MANY)
    rows, counts = found.groups()
    assert (rows.tolist(), counts.tolist()) == ([4, 4, 1, 5, 2, 0, 2, 1], [3, 0, 1, 3, 1])


def test_a_table_in_memory_has_the_bytes_of_one_that_is_written(table: tuple[Path, Footer]) -> None:
    assert manifest.shard_table(MANY) == table[0].read_bytes()
    assert list(Receipts.parse(table[0].read_bytes(), where="table")) == MANY
    assert everything(Receipts.of(MANY)) == everything(opened(table))


def test_row_groups_of_the_table_end_where_a_receipt_would_take_long_to_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_GROUP_DIGESTS", 2 * COLUMNS)
    file = pq.ParquetFile(io.BytesIO(manifest.shard_table(MANY)))
    assert [file.metadata.row_group(g).num_rows for g in range(3)] == [1, 3, 1]


def test_no_receipts_are_a_table_too(tmp_path: Path) -> None:
    footer = manifest.write_shard_table(tmp_path / "table", [])
    found = opened((tmp_path / "table", Footer(footer.bytes, footer.sha256)))
    assert (list(found), found.totals.shards, found.groups()[0].tolist()) == ([], 0, [])


def test_every_flipped_byte_of_a_table_is_found_by_who_reads_it(
    table: tuple[Path, Footer],
) -> None:
    path, footer = table
    data = path.read_bytes()
    for place in range(4, len(data), 3):  # the first four are Parquet's mark, which nothing reads
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(CorruptShardError, match=r"^table: .*softlabels verify"):
            everything(opened((path, footer)))


def chunk(path: Path, name: str, row_group: int) -> int:
    """A place amid a column chunk."""
    group = pq.ParquetFile(path).metadata.row_group(row_group)
    (found,) = [
        group.column(index)
        for index in range(group.num_columns)
        if group.column(index).path_in_schema.startswith(name)
    ]
    return int(found.data_page_offset + found.total_compressed_size // 2)


def test_what_is_not_asked_for_is_neither_read_nor_checked(table: tuple[Path, Footer]) -> None:
    path, _ = table
    data = bytearray(path.read_bytes())
    data[chunk(path, "chunk_digests", 1)] ^= 1
    path.write_bytes(data)
    found = opened(table)
    assert found.totals == manifest.total(MANY)
    assert found[1] == MANY[1]
    with pytest.raises(CorruptShardError, match="table: row group 1, column chunk_digests"):
        found[2]


@pytest.mark.parametrize("cut", [0, 3, 11, -1])
def test_a_table_that_was_cut_or_is_gone_is_refused(table: tuple[Path, Footer], cut: int) -> None:
    path, footer = table
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptShardError, match=r"table: .*softlabels verify"):
        opened((path, footer))
    path.unlink()
    with pytest.raises(CorruptShardError, match="table: the file is missing"):
        opened((path, footer))


@pytest.mark.parametrize("digests", [None, "", "zz", "é", "00" * 8])
def test_a_table_whose_footer_lacks_digests_is_refused(tmp_path: Path, digests: str | None) -> None:
    path = tmp_path / "table"
    made = pq.read_table(io.BytesIO(manifest.shard_table(MANY))).replace_schema_metadata()
    with pq.ParquetWriter(path, made.schema) as writer:
        writer.write_table(made)
        if digests is not None:
            writer.add_key_value_metadata({"softlabels.chunk_digests": digests})
    with pa.OSFile(str(path)) as file:
        footer = Footer.of(file)
    with pytest.raises(CorruptShardError, match=r"lacks softlabels\.chunk_digests"):
        opened((path, footer))


def test_pickled_receipts_are_the_same_or_fail(table: tuple[Path, Footer]) -> None:
    path, _ = table
    in_memory = pickle.dumps(Receipts.of(MANY))
    data = pickle.dumps(opened(table))
    assert len(data) < 500
    assert list(pickle.loads(data)) == list(pickle.loads(in_memory)) == MANY
    held = opened(table)
    manifest.write_shard_table(path.with_name("other"), MANY[:3])
    path.with_name("other").rename(path)
    assert list(held) == MANY
    with pytest.raises(CorruptShardError, match="its footer is not the one"):
        pickle.loads(data)


def earlier_layout(found: list[Receipt], **columns: pa.Array) -> bytes:
    """As tables were before their digests were binary, some columns replaced."""
    rows = [one.model_dump(exclude={"probes", "probes_sha256"}) for one in found]
    made = pa.Table.from_pylist(rows)
    for name, column in columns.items():
        made = made.set_column(made.column_names.index(name), name, column)
    sink = io.BytesIO()
    pq.write_table(made, sink)
    return sink.getvalue()


def test_tables_of_the_layout_before_are_read_and_lack_what_they_did_not_have() -> None:
    plain = [one.model_copy(update={"probes": 0, "probes_sha256": None}) for one in MANY]
    data = earlier_layout(MANY)
    assert list(Receipts.parse(data, where="table")) == plain
    assert everything(Receipts.parse(data, where="table")) == everything(Receipts.of(plain))


def columns(found: Receipts) -> None:
    """Read some, and no receipt."""
    found.numbers("bytes")
    found.groups()


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("path", pa.array(["data/a", "../b", "c", "d", "e"]), "path: "),
        ("path", pa.array(["data/a", None, "c", "d", "e"]), "path: "),
        ("path", pa.array(range(5)), "path: "),
        ("rows", pa.array([9, -1, 5, 4, 1]), "rows: "),
        ("rows", pa.array([9, None, 5, 4, 1]), "rows: "),
        ("rows", pa.array(["9", "x", "5", "4", "1"]), "rows: "),
        ("rows", pa.array([9, 1, 5, 4, 1]), "group_rows fit neither"),
        ("bytes", pa.array([1, 2, 3, -4, 5]), "bytes: "),
        ("group_rows", pa.array([[4, 4, 1], None, [5], [2, 0, 2], [1]]), "group_rows: "),
        ("group_rows", pa.array([[4, 4, 1], [], [5], [2, None, 2], [1]]), "group_rows"),
        ("group_rows", pa.array([[4, 4, 1], [], [5], [3, -1, 2], [1]]), "group_rows"),
        ("group_rows", pa.array(range(5)), "group_rows"),
    ],
)
def test_a_column_that_holds_something_else_is_refused_by_its_name(
    name: str, values: pa.Array, problem: str
) -> None:
    data = earlier_layout(MANY, **{name: values})
    with pytest.raises(LabelSetError, match=f"^table: .*{problem}"):
        columns(Receipts.parse(data, where="table"))


def test_names_in_other_scripts_are_paths_too() -> None:
    one = [receipt(0, 3, path="data/обучение-00000.parquet")]
    assert list(Receipts.of(one)) == one


@pytest.mark.parametrize("size", [0, 1, 8, 71, 73, 80])
def test_digests_that_do_not_fit_the_row_groups_are_refused(size: int) -> None:
    row = MANY[0].model_dump() | {"chunk_digests": bytes(size)}
    with pytest.raises(ValueError, match="chunk_digests"):
        manifest.parse_row(row)
    assert len(manifest.parse_row(row | {"chunk_digests": bytes(72)}).chunk_digests) == 3


shards = st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=6)


@given(shards)
def test_row_groups_are_those_that_hold_records_and_every_record_is_in_one(
    given: list[list[int]],
) -> None:
    expected, start = [], 0
    for shard, groups in enumerate(given):
        for group, rows in enumerate(groups):
            if rows:
                expected.append(RowGroup(shard, group, start, rows))
            start += rows
    flat = np.asarray([rows for groups in given for rows in groups], np.int64)
    found = RowGroups(flat, np.asarray([len(groups) for groups in given], np.int64))
    assert list(found) == found[:] == expected
    assert found.bounds.tolist() == [*(one.start for one in expected), start]
    of = found.of(np.arange(start))
    assert of.tolist() == [i for i, one in enumerate(expected) for _ in range(one.rows)]
    for beyond in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            found[beyond]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The receipts that were made."""
    made: list[Any] = []
    parse = manifest.parse_row

    def counting(row: dict[str, Any]) -> Receipt:
        made.append(row["unit"])
        return parse(row)

    monkeypatch.setattr(receipts.manifest, "parse_row", counting)
    return made


def linked(pristine: Path, root: Path, shards: int) -> Path:
    """A finished set whose shards are all the first one of another."""
    shutil.copytree(pristine, root, ignore=shutil.ignore_patterns("data", "keys.index"))
    (root / "data").mkdir()
    real = sl.LabelSet.open(pristine).receipts[0]
    made = [
        real.model_copy(update={"path": f"data/train-{unit:05d}.parquet", "unit": unit})
        for unit in range(shards)
    ]
    for one in made:
        os.link(pristine / real.path, root / one.path)
    footer = manifest.write_shard_table(root / "shards.parquet", made)
    before = manifest.parse((root / "manifest.json").read_bytes(), where="")
    changed = before.model_copy(update={"totals": manifest.total(made), "shards_footer": footer})
    (root / "manifest.json").write_bytes(changed.to_bytes())
    return root


def test_opening_a_set_makes_no_receipt_and_reading_a_record_makes_one(
    pristine: Path, tmp_path: Path, parsed: list[Any], small_groups: None
) -> None:
    first = sl.LabelSet.open(pristine).receipts[0]
    root = linked(pristine, tmp_path / "set", 300)
    parsed.clear()
    labels = sl.LabelSet.open(root)
    assert (len(labels), labels.totals.shards) == (300 * first.rows, 300)
    assert labels.groups_in_memory > 1
    assert len(labels.row_groups) == 300 * len(first.group_rows)
    loader = sl.loader(labels, batch_size=2)
    assert loader.state_dict()["order"]
    assert not parsed
    found = labels[217 * first.rows + 1]
    assert parsed == [217]
    assert found.ids.tolist() == labels[1].ids.tolist()


def test_a_missing_and_a_cut_file_among_many_are_found_at_open(
    pristine: Path, tmp_path: Path
) -> None:
    root = linked(pristine, tmp_path / "set", 20)
    (root / "data/train-00007.parquet").unlink()
    with pytest.raises(CorruptShardError, match="train-00007"):
        sl.LabelSet.open(root)
    (root / "data/train-00007.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptShardError, match="train-00007"):
        sl.LabelSet.open(root)
    shutil.rmtree(root / "data")
    with pytest.raises(CorruptShardError, match="train-00000"):
        sl.LabelSet.open(root)


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_a_loader_of_a_thousand_million_records_holds_nothing_as_long_as_they_are(
    pristine: Path, tracing: None
) -> None:
    store = Folder(pristine)
    many = Receipts.of(receipt(unit, *[100_000] * 100) for unit in range(100))
    labels = sl.LabelSet(store, sl.LabelSet.open(pristine).plan, many, finished=False)
    assert len(labels) == 10**9
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    loader = sl.loader(labels, batch_size=8, seed=0, shuffle=True)
    assert len(loader) == 10**9 // 8
    assert loader.state_dict()["order"]
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < 16 << 20


def test_a_manifest_says_how_the_table_ends_only_if_it_knows() -> None:
    totals = manifest.total(MANY)
    known = manifest.TableFooter(bytes=7, sha256="a" * 64)
    for footer in (None, known):
        made = Manifest(
            format="1", plan_sha256="b" * 64, totals=totals, files={}, shards_footer=footer
        )
        assert (b"shards_footer" in made.to_bytes()) is (footer is not None)
        assert manifest.parse(made.to_bytes(), where="") == made

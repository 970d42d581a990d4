"""Sources: the same units whatever the data comes in, and clear errors before anything runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from softlabels.errors import InputError
from softlabels.inputs import sources
from softlabels.inputs.digests import input_digests
from softlabels.inputs.sources import Source, open_source

ROWS = [{"id": f"k{i}", "text": f"sample {i}", "n": i} for i in range(7)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def folder(tmp: Path) -> str:
    (tmp / "deep").mkdir()
    (tmp / "deep" / "a.jsonl").write_bytes(lines(ROWS[:3]))
    (tmp / "z.jsonl").write_bytes(lines(ROWS[3:]))
    (tmp / "README").write_text("not data")
    return str(tmp)


def written(tmp: Path, name: str, data: bytes) -> Path:
    (tmp / name).write_bytes(data)
    return tmp / name


def parquet(tmp: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp / "a.parquet", row_group_size=2)
    return tmp / "a.parquet"


def mapped(tmp: Path) -> datasets.Dataset:
    """A Dataset whose rows lie in another order than its table's."""
    shuffled = datasets.Dataset.from_list([{"id": "gone", "text": "x", "n": 9}, *ROWS[::-1]])
    return shuffled.select(range(7, -1, -1)).filter(lambda row: row["id"] != "gone")


MAKERS: dict[str, Callable[[Path], Any]] = {
    "list": lambda tmp: ROWS,
    "tuple": lambda tmp: tuple(ROWS),
    "generator": lambda tmp: iter(ROWS),
    "Dataset": lambda tmp: datasets.Dataset.from_list(ROWS),
    "Dataset with indices": mapped,
    "Dataset with a format": lambda tmp: datasets.Dataset.from_list(ROWS).with_format("numpy"),
    "IterableDataset": lambda tmp: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "IterableDataset of a generator": lambda tmp: datasets.IterableDataset.from_generator(
        lambda: iter(ROWS)
    ),
    "Parquet": parquet,
    "JSONL": lambda tmp: str(written(tmp, "a.jsonl", lines(ROWS))),
    "JSONL.ZST": lambda tmp: written(
        tmp, "a.jsonl.zst", zstandard.ZstdCompressor().compress(lines(ROWS))
    ),
    "JSONL.GZ": lambda tmp: written(tmp, "a.jsonl.gz", gzip.compress(lines(ROWS))),
    "name that is a pattern": lambda tmp: written(tmp, "a[1]*.jsonl", lines(ROWS)),
    "folder": folder,
    "glob": lambda tmp: folder(tmp) + "/**/*.jsonl",
}


def contents(source: Source, unit_rows: int) -> list[tuple[list[Any], list[Any], list[bytes]]]:
    found, row = [], 0
    for table in source.units(unit_rows):
        assert table.column_names == source.columns
        keys = source.keys(table, row).to_pylist()
        column = source.identity.columns[0]
        found.append((keys, table[column].to_pylist(), input_digests(table, [column])))
        row += len(table)
    return found


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("limit", [None, 5])
def test_units_are_the_same_whatever_the_source(
    name: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "STREAM_BATCH_ROWS", 2)
    source = open_source(MAKERS[name](tmp_path), key="id", limit=limit)
    source.check_unique_keys()
    assert source.kind == "text"
    assert source.rows in (limit or len(ROWS), None)
    kept = ROWS[:limit]
    digests = input_digests(pa.Table.from_pylist(kept), ["text"])
    assert contents(source, 3) == [
        (
            [row["id"] for row in kept[start : start + 3]],
            [row["text"] for row in kept[start : start + 3]],
            digests[start : start + 3],
        )
        for start in range(0, len(kept), 3)
    ]
    assert str(tmp_path) not in source.identity.model_dump_json()


@pytest.mark.parametrize("unit_rows", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_units_of_a_stream_do_not_depend_on_how_it_is_batched(
    unit_rows: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "STREAM_BATCH_ROWS", batch)
    found = contents(open_source(iter(ROWS), key="n"), unit_rows)
    assert found == contents(open_source(ROWS, key="n"), unit_rows)


@pytest.mark.parametrize("suffix", ["txt", "md"])
def test_a_text_file_is_its_paragraphs(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"a.{suffix}", "one\ntwo\n\nthree é".encode())
    source = open_source(path)
    assert [texts for _, texts, _ in contents(source, 9)] == [["one\ntwo", "three é"]]
    assert source.identity.name == f"a.{suffix}"


def test_rows_are_numbered_where_there_is_no_key() -> None:
    source = open_source(ROWS)
    assert source.identity.key_type == "int64"
    assert [keys for keys, _, _ in contents(source, 4)] == [[0, 1, 2, 3], [4, 5, 6]]


def test_a_source_says_what_was_labelled(tmp_path: Path) -> None:
    identity = open_source(parquet(tmp_path), key="n", limit=2).identity
    assert identity.model_dump() == {
        "name": "a.parquet",
        "revision": None,
        "split": None,
        "columns": ("text",),
        "key": "n",
        "key_type": "int64",
        "limit": 2,
    }
    assert open_source(datasets.Dataset.from_list(ROWS, split="test")).identity.split == "test"


def test_the_folder_in_which_one_stands_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder(tmp_path))
    assert open_source(".").identity.name == tmp_path.name


def test_the_key_may_be_the_labelled_column() -> None:
    assert open_source(ROWS, key="text").columns == ["text"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (pa.array(["a"]), "text"),
        (pa.array(["a"], pa.large_string()), "text"),
        (pa.array([[1]]), "input_ids"),
        (pa.array([[1]], pa.large_list(pa.uint16())), "input_ids"),
        (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), "input_ids"),
        (pa.array([[{"role": "user", "content": "x"}]]), "messages"),
    ],
)
def test_the_type_of_the_column_says_how_it_is_prepared(
    value: pa.Array, kind: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"x": value}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", column="x")
    assert source.kind == kind
    assert contents(source, 5)[0][1] == value.to_pylist()


@pytest.mark.parametrize(
    "value",
    [1, 1.5, b"a", True, None, [1.5], ["a"], [None], {"role": "x"}, [{"\x1b[2J": "user"}]],
)
def test_a_column_that_cannot_be_labelled_is_refused_with_its_type(value: Any) -> None:
    with pytest.raises(InputError, match=r'column "text" is .*; expected text') as error:
        open_source([{"text": value}])
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("make", ["list", "generator", "Dataset", "IterableDataset", "JSONL"])
def test_a_missing_column_or_key_is_refused_and_the_others_are_named(
    make: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r'no column "tëxt\\u001b".*"id", "text", "n"'):
        open_source(MAKERS[make](tmp_path), column="tëxt\x1b")
    with pytest.raises(InputError, match=r'no key column "key\\u001b".*"id", "text", "n"'):
        open_source(MAKERS[make](tmp_path), key="key\x1b")


@pytest.mark.parametrize("key", [1.5, True, [1], b"x", None, {"\x1b": 1}])
def test_a_key_of_another_type_is_refused(key: Any) -> None:
    with pytest.raises(InputError, match="a key is a string or an integer") as error:
        open_source([{"text": "a", "id": key}], key="id")
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int32(), pa.uint8(), pa.large_string()])
def test_keys_of_every_width_become_int64_or_string(kind: pa.DataType, tmp_path: Path) -> None:
    keys = ["a", "b"] if kind == pa.large_string() else [7, 3]
    table = pa.table({"text": ["x", "y"], "id": pa.array(keys, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", key="id")
    source.check_unique_keys()
    found = source.keys(next(source.units(2)), 0)
    assert found.type == (pa.string() if kind == pa.large_string() else pa.int64())
    assert found.to_pylist() == keys


def test_a_key_above_int64_is_refused_and_not_wrapped(tmp_path: Path) -> None:
    table = pa.table({"text": ["x", "y"], "id": pa.array([1, 2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r'rows 0 to 1.*"id".*9223372036854775808'):
        open_source(tmp_path / "a.parquet", key="id").check_unique_keys()


def test_a_null_key_is_refused_with_its_row() -> None:
    rows = [*ROWS[:4], {"text": "x", "id": None}]
    with pytest.raises(InputError, match='row 4: the key column "id" is null'):
        open_source(rows, key="id").check_unique_keys()
    with pytest.raises(InputError, match='row 4: the key column "id" is null'):
        contents(open_source(iter(rows), key="id"), 2)
    with pytest.raises(InputError, match="row 4"):
        contents(open_source(iter([*ROWS[:4], {"text": "x"}]), key="id"), 2)

"""Parquet and JSONL read where they lie: the same rows as unpacked, and only those asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.errors import InputError
from softlabels.inputs import in_place
from softlabels.inputs.digests import input_digests
from softlabels.inputs.in_place import JsonLines, ParquetRows
from softlabels.inputs.sources import Source, open_source

ROWS = [
    {
        "id": f"k{i}",
        "text": f"sämple {i}\u2028line",
        "ids": list(range(i % 5)),
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"{i}"}]
        if i % 2
        else [{"role": "user", "content": "b", "name": "n"}],
    }
    for i in range(23)
]


def jsonl(path: Path, rows: Sequence[Any], end: str = "\n", last: bool = True) -> Path:
    lines = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes((lines + (end if last else "")).encode())
    return path


def parquet(path: Path, rows: Sequence[Any], group: int = 4, schema: Any = None) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path, row_group_size=group)
    return path


def parts(folder: Path, write: Callable[..., Path], suffix: str) -> str:
    for number, (start, stop) in enumerate([(0, 9), (9, 10), (10, 23)]):
        write(folder / f"{number}{suffix}", ROWS[start:stop])
    return str(folder)


MAKERS: dict[str, Callable[[Path], Any]] = {
    "Parquet": lambda tmp: parquet(tmp / "a.parquet", ROWS),
    "Parquet files": lambda tmp: parts(tmp, parquet, ".parquet"),
    "JSONL": lambda tmp: jsonl(tmp / "a.jsonl", ROWS),
    "JSONL files": lambda tmp: parts(tmp, jsonl, ".jsonl"),
    "JSONL of Windows": lambda tmp: jsonl(tmp / "a.jsonl", ROWS, "\r\n"),
    "JSONL without a last end": lambda tmp: jsonl(tmp / "a.jsonl", ROWS, last=False),
    "JSONL with empty lines": lambda tmp: jsonl(tmp / "a.jsonl", ROWS, "\n\r\n\n"),
}


def units(source: Source, unit_rows: int) -> list[Any]:
    found, row = [], 0
    for table in source.units(unit_rows):
        keys = source.keys(table, row).to_pylist()
        found.append((keys, input_digests(table, source.identity.columns)))
        row += len(table)
    return found


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("column", ["text", "ids", "messages"])
def test_rows_read_in_place_are_those_of_the_same_files_unpacked(
    name: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "_STRIDE", 4)
    monkeypatch.setattr(in_place, "_BLOCK_BYTES", 37)
    data = MAKERS[name](tmp_path)
    for limit in (None, 11):
        ours = open_source(data, column=column, key="id", limit=limit, in_place=True)
        # Unpacked, messages of unlike fields become text that nobody can label.
        spoilt = column == "messages" and "JSONL" in name
        theirs = open_source(ROWS if spoilt else data, column=column, key="id", limit=limit)
        assert (ours.rows, ours.kind) == (theirs.rows, theirs.kind)
        assert spoilt or ours.identity == theirs.identity
        for unit_rows in (1, 5, 64):
            assert units(ours, unit_rows) == units(theirs, unit_rows)


@pytest.mark.parametrize("name", MAKERS)
def test_any_rows_are_read_by_number_also_in_another_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "_STRIDE", 4)
    source = open_source(MAKERS[name](tmp_path), in_place=True)
    read = pickle.loads(pickle.dumps(source.read))
    for rows in ([0, 3, 4, 9, 22], [22, 0, 1], [7], slice(3, 12), slice(22, 30), slice(5, 5)):
        expected = ROWS[rows] if isinstance(rows, slice) else [ROWS[row] for row in rows]
        assert read(rows, ["text", "id"]).to_pylist() == [
            {"text": row["text"], "id": row["id"]} for row in expected
        ]


def test_only_the_row_groups_that_are_asked_for_are_read_and_each_once_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(parts(tmp_path, parquet, ".parquet"), in_place=True)
    read: list[tuple[str, int]] = []
    real = pq.ParquetFile.read_row_group

    def noted(self: Any, group: int, **options: Any) -> Any:
        read.append((options["columns"], group))
        return real(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    assert source.unit(2, 5)["text"].to_pylist() == [row["text"] for row in ROWS[10:15]]
    assert read == [(["text"], 0), (["text"], 1)]
    list(source.units(2))
    assert len(read) == 2 + 3 + 1 + 4


def test_of_jsonl_only_the_lines_that_are_asked_for_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(jsonl(tmp_path / "a.jsonl", ROWS), in_place=True)
    parsed: list[bytes] = []
    real = json.loads

    def noted(line: bytes) -> Any:
        parsed.append(line)
        return real(line)

    monkeypatch.setattr(in_place.json, "loads", noted)
    source.unit(2, 5)
    assert [real(line)["id"] for line in parsed] == [f"k{i}" for i in range(10, 15)]


def test_dictionaries_of_a_file_are_its_values(tmp_path: Path) -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", in_place=True)
    assert source.kind == "text"
    assert source.unit(0, 3)["text"].to_pylist() == ["a", "b", "a"]


def test_files_of_other_columns_or_types_are_refused_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"text": "x"}])
    parquet(tmp_path / "b.parquet", [{"words": "x"}])
    source = open_source(tmp_path, in_place=True)
    with pytest.raises(InputError, match=r'"b\.parquet" has no column "text"'):
        source.unit(0, 2)
    parquet(tmp_path / "b.parquet", [{"text": 1}])
    with pytest.raises(InputError, match="files differ in type"):
        open_source(tmp_path, in_place=True).unit(0, 2)
    with pytest.raises(InputError, match=r"rows 1 to 1: column .* is int64"):
        open_source(tmp_path, in_place=True).unit(1, 1)


@pytest.mark.parametrize("line", ['{"text": "x\x1b', "[1]", "5", '{"text": 1}', "\ufeff\x00"])
def test_a_line_that_is_no_row_is_refused_with_its_file(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 1001 + line + "\n")
    source = open_source(path, in_place=True)
    with pytest.raises(InputError, match=r"cannot be read|a row is a|column .* is int64") as error:
        source.unit(1, 1000)
    assert str(error.value).isprintable()
    assert source.unit(0, 1000).num_rows == 1000


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    rows = JsonLines([str(path)])
    jsonl(path, ROWS[:5])
    with pytest.raises(InputError, match="has lost rows"):
        rows(slice(3, 8), ["text"])


def test_files_of_no_rows_are_passed_over(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [], last=True)
    jsonl(tmp_path / "b.jsonl", ROWS[:2])
    assert open_source(tmp_path, in_place=True).rows == 2
    empty = tmp_path / "empty.parquet"
    parquet(empty, [], schema=pa.schema([("text", pa.string())]))
    assert len(ParquetRows([str(empty)])) == 0
    with pytest.raises(InputError, match="no rows"):
        open_source(empty, in_place=True)

"""Duplicate keys are found in flat memory; rows that differ from the first ones are refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels.errors import DuplicateKeyError, InputError
from softlabels.inputs import sources
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.prepare import prepare
from softlabels.inputs.sources import check_unique, open_source


def check(batches: list[pa.Array], pass_rows: int) -> None:
    check_unique(lambda: batches, sum(map(len, batches)), where="here", pass_rows=pass_rows)


texts = st.lists(st.lists(st.text("ab\x1b", max_size=3), max_size=4), max_size=4)
numbers = st.lists(st.lists(st.integers(-9, 9) | st.just(-(2**63)), max_size=4), max_size=4)


@given(texts | numbers, st.integers(1, 9), st.sampled_from([1, 2, 2**63]))
@example([["a"], ["b", "a"]], 1, 1)
@example([[1, 1]], 1, 2**63)
@settings(deadline=None, max_examples=200)
def test_a_key_that_occurs_twice_is_named_with_both_rows_and_no_other_is(
    batches: list[list[Any]], pass_rows: int, hashes: int
) -> None:
    keys = [key for batch in batches for key in batch]
    kind = pa.int64() if keys and isinstance(keys[0], int) else pa.string()
    real = sources.key_hashes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "key_hashes", lambda keys: real(keys) % np.uint64(hashes))
        try:
            check([pa.array(batch, kind) for batch in batches], pass_rows)
        except DuplicateKeyError as error:
            message = str(error)
        else:
            assert len(set(keys)) == len(keys)
            return
    assert "\x1b" not in message
    named = [
        (first, again)
        for again, key in enumerate(keys)
        for first in [keys.index(key)]
        if first < again and f"in row {first} and again in row {again};" in message
    ]
    assert named
    assert message.startswith("here: the key ")


def test_equal_hashes_of_different_keys_are_no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "key_hashes", lambda keys: np.zeros(len(keys), np.uint64))
    check([pa.array(["a", "b"]), pa.array(["c"])], 2)
    with pytest.raises(DuplicateKeyError, match='key "b" is in row 1 and again in row 3'):
        check([pa.array(["a", "b"]), pa.array(["c", "b"])], 2)


@pytest.mark.parametrize("key", ["id", "number"])
def test_a_duplicate_across_batches_is_found_before_anything_is_labelled(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "KEY_BATCH_ROWS", 2)
    rows = [{"text": "x", "id": f"k{i % 5}", "number": i % 5} for i in range(6)]
    for data in (rows, datasets.Dataset.from_list(rows)):
        with pytest.raises(DuplicateKeyError, match=rf'column "{key}".*row 0 and again in row 5'):
            open_source(data, key=key).check_unique_keys()
        open_source(data, key=key, limit=5).check_unique_keys()


def late(rows: list[Any]) -> list[Any]:
    """What comes after more good rows than are looked at when data is opened."""
    return [{"text": "a", "id": f"k{i}"} for i in range(8)] + rows


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "STREAM_BATCH_ROWS", 2)
    monkeypatch.setattr(sources, "SCHEMA_ROWS", 2)
    monkeypatch.setattr(sources, "KEY_BATCH_ROWS", 2)


def run(data: Any, key: str | None = "id", unit_rows: int = 3) -> list[pa.Table]:
    source = open_source(data, key=key)
    source.check_unique_keys()
    row, tables = 0, []
    for table in source.units(unit_rows):
        source.keys(table, row)
        tables.append(table)
        row += len(table)
    return tables


@pytest.mark.parametrize("as_data", [list, iter])
@pytest.mark.parametrize("unit_rows", [2, 3])
@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_later_row_of_another_type_is_refused_and_not_converted(
    as_data: Any, unit_rows: int, more: int
) -> None:
    for text, key in ((5, "z{}"), (["x"], "z{}"), ([], "z{}"), ("x", 5)):
        column = "id" if text == "x" else "text"
        bad = [{"text": text, "id": key.format(i) if key == "z{}" else i} for i in range(4)]
        with pytest.raises(InputError, match=rf'"{column}"|differ in type'):
            run(as_data([*late([])[more:], *bad]), unit_rows=unit_rows)


@pytest.mark.parametrize("as_data", [list, iter])
def test_integer_keys_that_become_text_or_fractions_are_refused(as_data: Any) -> None:
    good = [{"text": "a", "id": i} for i in range(4)]
    for key in ("5", 5.5, 5.0, True):
        with pytest.raises(InputError, match=r'rows 4 to 5.*keys.*"id" are not all int64'):
            run(as_data([*good, {"text": "a", "id": key}, {"text": "a", "id": key}]), unit_rows=2)


@pytest.mark.parametrize("as_data", [list, iter])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_text_that_later_rows_lack_is_null_as_in_a_file_that_lacks_it(
    as_data: Any, count: int
) -> None:
    rows = late([{"id": f"z{i}"} for i in range(count)])
    found = [text for table in run(as_data(rows)) for text in table["text"].to_pylist()]
    assert found == ["a"] * 8 + [None] * count
    column = pa.chunked_array([found[7:]], pa.string())
    windows = prepare(
        column,
        Preparation(kind="text", max_length=4),
        tokenizer=lambda texts, **_: {"input_ids": [[1] if t else [] for t in texts]},
        classes=2,
    )
    assert [row for row, _ in windows.failures] == list(range(1, count + 1))


def test_columns_are_those_of_all_the_first_rows() -> None:
    assert open_source([{"id": "a"}, {"text": "x"}]).schema.names == ["id", "text"]
    assert [t["text"].to_pylist() for t in run([{"id": "a"}, {"text": "x", "id": "b"}])] == [
        [None, "x"]
    ]


@pytest.mark.parametrize("as_data", [list, iter])
@pytest.mark.parametrize("row", ["text", 5, None, ["a"], ("text", "a")])
def test_a_row_that_is_no_mapping_is_refused(as_data: Any, row: Any) -> None:
    for rows in ([row], late([row])):
        with pytest.raises(InputError, match=f"a row is a {type(row).__name__}; expected a mapp"):
            run(as_data(rows))


@pytest.mark.parametrize("value", ["\ud800", 2**64, object(), ["a", 1]])
def test_a_value_that_arrow_has_no_type_for_is_refused_by_column(value: Any) -> None:
    with pytest.raises(InputError, match=r'column "text\\u001b" cannot be read'):
        open_source([{"text\x1b": value}], column="text\x1b")


@pytest.mark.parametrize("data", [[], iter([]), datasets.Dataset.from_dict({"text": []})])
def test_no_rows_are_refused(data: Any) -> None:
    with pytest.raises(InputError, match="no rows"):
        open_source(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.txt", b""), ("a.jsonl.gz", gzip.compress(b"", mtime=0))],
)
def test_files_without_rows_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="no rows"):
        open_source(tmp_path)


def test_an_empty_file_beside_others_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    assert open_source(tmp_path).rows == 1


@pytest.mark.parametrize("path", ["no\x1b[2J.jsonl", "no/*.jsonl", ""])
def test_a_missing_path_is_refused_with_what_is_read(path: str, tmp_path: Path) -> None:
    where = str(tmp_path / path)
    with pytest.raises(InputError, match=r"(no such file or folder).*\.parquet") as error:
        open_source(where)
    assert "\x1b" not in str(error.value)


def test_other_kinds_of_files_and_mixed_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"not a kind of file we read.*\.jsonl"):
        open_source(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=r"several kinds \(\.jsonl, \.txt\)"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "x\x1b[2J'),
        ("a.parquet", b"junk"),
        ("a.txt", b"\xff\xfe\x00"),
        ("a.jsonl.gz", b"junk"),
    ],
)
def test_a_broken_file_is_refused_by_path(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*cannot be read") as error:
        open_source(tmp_path / name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("data", [None, 5, b"text", pa.table({"text": ["a"]})])
def test_what_is_no_data_is_refused_with_what_would_be(data: Any) -> None:
    with pytest.raises(InputError, match=r"data is a .*expected a datasets\.Dataset"):
        open_source(data)


def test_a_dict_of_splits_or_columns_is_refused() -> None:
    split = datasets.Dataset.from_dict({"text": ["a"]})
    for data in (datasets.DatasetDict(train=split), {"text": ["a"]}):
        with pytest.raises(InputError, match="choose one split"):
            open_source(data)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"limit is {limit}"):
        open_source([{"text": "a"}], limit=limit)

"""Files that are not quite what they should be, and chats whose fields differ from row to row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.errors import InputError
from softlabels.inputs.chat import render
from softlabels.inputs.sources import open_source


class AsJson:
    """A tokenizer whose template shows all that it is given."""

    def apply_chat_template(self, turns: list[dict[str, Any]], **_: Any) -> str:
        return json.dumps(turns)


def test_fields_of_other_rows_do_not_reach_the_template() -> None:
    one = [{"role": "assistant", "tool_calls": [{"x": 1}]}]
    two = [{"role": "assistant", "tool_calls": [{"y": {"z": 2}}, {"x": 3}]}]
    together = pa.array([one, two]).to_pylist()
    assert [json.loads(render(AsJson(), chat)) for chat in together] == [one, two]


@pytest.mark.parametrize(
    "chats",
    [
        [[{"role": "u", "content": "a"}], [{"role": "u", "content": "a", "name": "n"}]],
        [[{"role": "u", "t": [{"x": 1}]}], [{"role": "u", "t": [{"y": {"z": 1.5}}]}]],
    ],
)
def test_chats_are_the_same_in_place_and_unpacked(tmp_path: Path, chats: list[Any]) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"m": chat}) + "\n" for chat in chats))
    in_place = open_source(file, column="m", in_place=True).unit(0, 9)
    unpacked = open_source(file, column="m", in_place=False).unit(0, 9)
    assert in_place.to_pylist() == unpacked.to_pylist()


def test_a_column_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"text": "a", "m": 1}\n{"text": "b", "m": "x"}\n')
    source = open_source(file, in_place=True)
    assert source.unit(0, 2)["text"].to_pylist() == ["a", "b"]
    with pytest.raises(InputError, match='"m"'):
        open_source(file, column="m", in_place=True)


def test_an_empty_first_file_does_not_decide_the_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(0)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    assert open_source(tmp_path, in_place=True).kind == "text"


@pytest.mark.parametrize("name", ["gone.jsonl", "*.jsonl", "x" * 300 + ".jsonl", "twice.parquet"])
def test_odd_files_are_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.jsonl").mkdir()
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError):
        open_source(tmp_path / name, in_place=True)

"""Bytes that are no text, and JSON that is no manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from forge import refusal, refusals

import softlabels as sl
from softlabels.errors import LabelSetError

NO_JSON = {
    "utf-16": '{"format": "1.0-draft"}'.encode("utf-16"),
    "invalid utf-8": b'{"format": "\xff\xfe"}',
    "surrogates": b'{"format": "\\ud800"}',
    "empty": b"",
    "cut": b'{"format": "1.0-draft", ',
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "nul": b'{"format": "1.0-draft\x00"}',
    "nothing in it": b'{"format": "1.0-draft"}',
    "controls": b'{"format": "\\u001b[2J\\u202e"}',
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON.keys())
@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
def test_json_that_is_none_is_refused_in_printable_words(
    tiny: Path, name: str, data: bytes
) -> None:
    (tiny / name).write_bytes(data)
    with pytest.raises(LabelSetError, match=name):
        sl.LabelSet.open(tiny)
    for words in refusals(tiny):
        assert all(c.isprintable() or c == "\n" for c in words)


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON.keys())
def test_receipts_of_an_unfinished_set_are_refused_likewise(tiny: Path, data: bytes) -> None:
    (tiny / "manifest.json").unlink()
    (tiny / "receipts").mkdir()
    (tiny / "receipts" / "00000.json").write_bytes(data)
    words = refusal(lambda: sl.LabelSet.open(tiny, unfinished=True))
    assert words is not None
    assert "00000.json" in words
    assert all(c.isprintable() or c == "\n" for c in words)


@pytest.mark.parametrize("name", ["shards.parquet", "keys.index"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"\xff" * 1000])
def test_other_files_that_are_none_are_refused(tiny: Path, name: str, data: bytes) -> None:
    (tiny / name).write_bytes(data)
    assert refusals(tiny)

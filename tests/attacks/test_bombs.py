"""A little that would become a lot: refused by what it says of its size, before it is unpacked."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import zstandard
from forge import FIRST, edit_json, replant, reseal, resident_bytes, rewrite, with_column

import softlabels as sl
from softlabels.errors import LabelSetError

MEBIBYTE = 1 << 20


def bomb(size: int) -> bytes:
    """A frame of so many zeros."""
    writer = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    zeros = bytes(MEBIBYTE)
    return b"".join([*(writer.compress(zeros) for _ in range(size // MEBIBYTE)), writer.flush()])


def test_a_frame_of_another_size_than_its_record_is_not_unpacked(packed: Path) -> None:
    packed_bomb = bomb(512 * MEBIBYTE) + b"\x01"
    assert len(packed_bomb) < MEBIBYTE
    rewrite(packed / FIRST, lambda table: with_column(table, "packed", [packed_bomb] * len(table)))
    reseal(packed)
    before = resident_bytes()
    with pytest.raises(LabelSetError, match="a frame holds 536870912 bytes"):
        sl.LabelSet.open(packed)[0]
    assert resident_bytes() - before < 64 * MEBIBYTE


def test_a_frame_that_holds_more_than_it_says_is_cut_off(packed: Path) -> None:
    """The size in its header is made the record's; what it unpacks to is not."""
    liar = bytearray(bomb(64 * MEBIBYTE))
    assert zstandard.frame_content_size(bytes(liar)) == 64 * MEBIBYTE

    def forged(table: Any) -> Any:
        size = zstandard.frame_content_size(table["packed"][0].as_py())
        liar[5:9] = size.to_bytes(4, "little")
        return with_column(table, "packed", [bytes(liar) + b"\x01"] * len(table))

    rewrite(packed / FIRST, forged)
    reseal(packed)
    before = resident_bytes()
    with pytest.raises(LabelSetError, match="frame"):
        sl.LabelSet.open(packed)[0]
    assert resident_bytes() - before < 64 * MEBIBYTE


def test_an_id_table_longer_than_the_classes_is_not_unpacked(packed: Path) -> None:
    table = base64.b64encode(bomb(512 * MEBIBYTE)).decode()
    edit_json(packed / "plan.json", lambda plan: plan["codec"].update(table=table))
    replant(packed)
    reseal(packed)
    before = resident_bytes()
    with pytest.raises(LabelSetError, match="longer than there are classes"):
        sl.LabelSet.open(packed)
    assert resident_bytes() - before < 64 * MEBIBYTE


def test_lists_of_another_length_than_their_positions_are_refused(tiny: Path) -> None:
    """Columns of Parquet's own compression: of a thousand entries where there are fifteen."""
    rewrite(tiny / FIRST, lambda table: with_column(table, "ids", [[1] * 100_000] * len(table)))
    reseal(tiny)
    with pytest.raises(LabelSetError, match="lists of ids"):
        sl.LabelSet.open(tiny)[0]

"""Sizes and kinds that no checksum covers: refused before memory or time is spent on them."""

from __future__ import annotations

import base64
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from forge import FIRST, edit_json, refusals, replant, reseal, resident_bytes, rewrite, with_column
from test_bombs import MEBIBYTE, bomb

import softlabels as sl
from softlabels.errors import CorruptShardError, LabelSetError
from softlabels.format.receipts import Receipts
from softlabels.format.shard import Shard
from softlabels.verifying.verify import verify


@pytest.mark.parametrize("value", [1 << 20, (1 << 31) - 1])
def test_a_record_of_more_tokens_than_it_holds_takes_no_memory(
    tiny: Path, packed: Path, value: int
) -> None:
    for root in (tiny, packed):
        rewrite(root / FIRST, lambda table: with_column(table, "length", [value] * len(table)))
        reseal(root)
        before = resident_bytes()
        with pytest.raises(CorruptShardError, match=r"length|label_spans"):
            sl.LabelSet.open(root)[0]
        assert resident_bytes() - before < 64 * MEBIBYTE


def test_keys_that_are_no_text_are_named(tiny: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        ends = pa.array(np.arange(len(table) + 1, dtype=np.int32) * 2).buffers()[1]
        data = pa.py_buffer(b"\xff\xfe" * len(table))
        keys = pa.Array.from_buffers(pa.string(), len(table), [None, ends, data])
        return with_column(table, "key", keys)

    rewrite(tiny / FIRST, change)
    reseal(tiny)
    with pytest.raises(CorruptShardError, match=FIRST):
        _ = sl.LabelSet.open(tiny).identities
    assert refusals(tiny)


def test_keys_of_another_type_are_named(tiny: Path) -> None:
    rewrite(tiny / FIRST, lambda t: with_column(t, "key", pa.array(range(len(t)), pa.int64())))
    reseal(tiny)
    with pytest.raises(CorruptShardError, match=FIRST):
        _ = sl.LabelSet.open(tiny).identities


@pytest.mark.parametrize("name", ["rows", "source_rows"])
def test_counts_beyond_all_data_cost_no_time(tiny: Path, name: str) -> None:
    for value in (1 << 50, 1 << 62):
        claims = {name: value, **({"group_rows": (value,)} if name == "rows" else {})}
        try:
            reseal(tiny, **claims)
        except ValueError:
            continue  # not even a receipt
        refusals(tiny)
        verify(tiny)


def test_an_id_table_of_billions_of_classes_is_not_unpacked(packed: Path) -> None:
    table = base64.b64encode(bomb(512 * MEBIBYTE)).decode()
    edit_json(packed / "plan.json", lambda p: p["codec"].update(table=table, classes=1 << 31))
    replant(packed)
    reseal(packed)
    before = resident_bytes()
    with pytest.raises(LabelSetError, match="longer than"):
        sl.LabelSet.open(packed)
    assert resident_bytes() - before < 64 * MEBIBYTE


def test_a_pipe_in_the_place_of_a_shard_does_not_hang(tiny: Path) -> None:
    (tiny / FIRST).unlink()
    os.mkfifo(tiny / FIRST)
    with pytest.raises(CorruptShardError, match=FIRST):
        sl.LabelSet.open(tiny)
    assert refusals(tiny)


def test_a_link_to_itself_is_named(tiny: Path) -> None:
    (tiny / FIRST).unlink()
    (tiny / FIRST).symlink_to(Path(FIRST).name)
    assert refusals(tiny)


def test_a_number_of_more_digits_than_python_reads_is_no_json(tiny: Path) -> None:
    (tiny / "plan.json").write_bytes(b"1" * 5000)
    with pytest.raises(LabelSetError, match=r"plan\.json"):
        sl.LabelSet.open(tiny)


@pytest.mark.parametrize("name", [FIRST, "shards.parquet"])
def test_names_of_columns_that_are_no_text_are_named(tiny: Path, name: str) -> None:
    data = (tiny / name).read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = data.index(b"input_digest", footer)
    forged = data[:at] + b"\xff" + data[at + 1 :]
    (tiny / name).write_bytes(forged)
    shard = partial(Shard, tiny / name, receipt=None, name=name)
    table = partial(Receipts.parse, forged, where=name)
    with pytest.raises(LabelSetError, match=name):
        _ = shard() if name == FIRST else table()


@pytest.mark.parametrize("name", ["positions", "entries", "bytes"])
@pytest.mark.parametrize("value", [1 << 62, (1 << 63) - 1])
def test_counts_that_have_no_sum_are_refused(tiny: Path, name: str, value: int) -> None:
    reseal(tiny, **{name: value})
    with pytest.raises(LabelSetError, match=name):
        _ = sl.LabelSet.open(tiny).totals

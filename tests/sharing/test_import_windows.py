"""Windows of one sample go out and come back by key and part; what is no window is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import softlabels as sl
from softlabels.errors import DuplicateKeyError, InputError, JoinError
from softlabels.sharing import imports
from softlabels.sharing.formats import Arrays, Axolotl, DistillKit, FloatLists, Format
from softlabels.sharing.imports import Imported, Origin, import_set
from softlabels.verifying.verify import verify

LAYOUTS = {"lists": FloatLists, "axolotl": Axolotl, "numpy": Arrays}
IDENTITY = ["key", "part", "view", "source_start", "source_length"]
Precompute = Callable[..., sl.LabelSet]


def bring(source: Format, out: Path, **options: Any) -> Imported:
    made = import_set(source, out, origin=Origin(classes=16), codec="plain", shift=0, **options)
    assert not verify(out).findings
    return made


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_window_comes_back_under_its_key_and_part(
    tmp_path: Path, precompute: Precompute, layout: str, overlap: int
) -> None:
    # What is labelled at its end alone has nothing that axolotl's columns can say.
    overlap = 0 if layout == "axolotl" else overlap
    labels = precompute(tmp_path / "set", overlap=overlap)
    LAYOUTS[layout](tmp_path).write(labels, tmp_path / "theirs")
    made = bring(LAYOUTS[layout](tmp_path / "theirs", key="key"), tmp_path / "back")
    back = made.labels
    assert back.identities.select(IDENTITY).equals(labels.identities.select(IDENTITY))
    assert (back.totals.source_rows, back.totals.records) == (6, len(labels))
    assert len(back.parts("s1")) == len(labels.parts("s1")) > 2
    ours, theirs = labels.get("s1", part=2), back.get("s1", part=2)
    there = slice(0, len(ours) - (layout == "axolotl"))
    assert torch.equal(ours.ids[there], theirs.ids[there])
    assert "by key and part" in made.notes[0]


@pytest.mark.parametrize("overlap", [0, 2])
def test_data_with_whole_samples_joins_their_windows(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]], overlap: int
) -> None:
    labels = precompute(tmp_path / "set", overlap=overlap)
    FloatLists(tmp_path).write(labels, tmp_path / "theirs")
    back = bring(FloatLists(tmp_path / "theirs", key="key"), tmp_path / "back").labels
    assert back.identities["input_digest"].equals(labels.identities["input_digest"])
    if overlap:
        return  # no layout says how windows overlapped, so that rows are not cut into them again
    data = [{"key": row["id"], "input_ids": row["ids"]} for row in id_rows]
    for with_data, alone in zip(
        sl.loader(back, data, batch_size=3), sl.loader(back, batch_size=3), strict=True
    ):
        assert torch.equal(with_data["input_ids"], alone["input_ids"])
    data[1]["input_ids"] = [*data[1]["input_ids"][:-1], 0]
    with pytest.raises(JoinError, match='"s1"'):
        list(sl.loader(back, data, batch_size=3))


def lists(folder: Path, keys: list[Any], **columns: Any) -> Path:
    count = len(keys)
    folder.mkdir()
    made = {
        "id": keys,
        "input_ids": [[row % 16, 1, 2] for row in range(count)],
        "token_ids": [[[1], [2], [3]]] * count,
        "top_values": [[[-0.5], [-0.6], [-0.7]]] * count,
    }
    pq.write_table(pa.table(made | columns), folder / "a.parquet")
    return folder


def test_windows_that_say_no_place_stand_one_after_another(tmp_path: Path) -> None:
    source = FloatLists(lists(tmp_path / "a", ["a", "a", "b"], window=[0, 1, 0]), "input_ids",
                        key="id", part="window")  # fmt: skip
    found = bring(source, tmp_path / "set").labels.identities
    assert found.select(IDENTITY).to_pydict() == {
        "key": ["a", "a", "b"], "part": [0, 1, 0], "view": [0, 0, 0],
        "source_start": [0, 3, 0], "source_length": [6, 6, 3],
    }  # fmt: skip
    digests = found["input_digest"].to_pylist()
    assert digests[0] == digests[1] != digests[2]


def test_windows_of_a_sample_are_never_in_two_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "_UNIT_ROWS", 2)
    keys, parts = ["a", "b", "b", "b", "c"], [0, 0, 1, 2, 0]
    source = FloatLists(lists(tmp_path / "a", keys, part=parts), key="id")
    labels = bring(source, tmp_path / "set").labels
    assert [receipt.rows for receipt in labels.receipts] == [4, 1]
    assert [receipt.source_rows for receipt in labels.receipts] == [2, 1]
    (tmp_path / "set" / "manifest.json").unlink()
    assert len(bring(source, tmp_path / "set").labels) == 5


def test_a_window_that_cannot_be_used_is_rejected_alone(tmp_path: Path) -> None:
    folder = lists(tmp_path / "a", ["a", "a", "b"], part=[0, 1, 0])
    table = pq.read_table(folder / "a.parquet")
    ids = pa.array([[[1], [2], [3]], [[99], [2], [3]], [[1], [2], [3]]])
    pq.write_table(table.set_column(2, "token_ids", ids), folder / "a.parquet")
    labels = bring(FloatLists(folder, key="id"), tmp_path / "set", on_error="skip").labels
    assert labels.identities["key"].to_pylist() == ["a", "b"]
    rejects = pq.read_table(labels.root / "rejects.parquet").to_pylist()
    assert [(row["key"], row["part"]) for row in rejects] == [("a", 1)]


@pytest.mark.parametrize(
    ("keys", "parts", "words"),
    [
        (["a", "a", "a"], [0, 1, 1], r'row 2: part 1 of the key "a" comes after part 1; key and'),
        (["a", "a", "b"], [1, 0, 0], r'row 1: part 0 of the key "a" comes after part 1'),
        (["a", "b", "a"], [0, 0, 1], r'key "a" is in row 0 and again in row 2.*one after another'),
        (["a", "a", "b"], [0, -1, 0], r"row 1: part is -1; expected 0 to"),
        (["a", "a", "b"], [0, None, 0], r"row 1: part is None"),
        (["a", "a", "b"], [0, 2**40, 0], r"row 1: part is 1099511627776"),
    ],
)
def test_parts_that_name_no_record_are_refused(
    tmp_path: Path, keys: list[str], parts: list[Any], words: str
) -> None:
    source = FloatLists(lists(tmp_path / "a", keys, part=parts), key="id")
    with pytest.raises((InputError, DuplicateKeyError), match=words):
        bring(source, tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_column_that_only_happens_to_be_called_part_is_left_alone(tmp_path: Path) -> None:
    folder = lists(tmp_path / "a", ["a", "b"], part=["train", "test"])
    made = bring(FloatLists(folder, key="id"), tmp_path / "set")
    assert made.labels.identities["part"].to_pylist() == [0, 0]
    assert not made.notes
    bring(FloatLists(folder), tmp_path / "rows")
    for part, words in {"part": "holds no whole numbers", "nope": "is not there"}.items():
        with pytest.raises(InputError, match=words):
            bring(FloatLists(folder, key="id", part=part), tmp_path / "no")
    with pytest.raises(InputError, match="name key too"):
        bring(FloatLists(folder, part="part"), tmp_path / "no")
    source = Arrays(arrays(tmp_path / "b"), key="key", part="nope")
    with pytest.raises(InputError, match='no array "nope"'):
        bring(source, tmp_path / "no")


def arrays(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "input_ids.npy", np.ones((2, 3), np.int64))
    np.save(folder / "ids.npy", np.ones((2, 3, 1), np.int64))
    np.save(folder / "log_probs.npy", np.full((2, 3, 1), -0.5, np.float32))
    np.save(folder / "key.npy", np.arange(2))
    return folder


@pytest.mark.parametrize("layout", ["lists", "axolotl"])
def test_a_null_key_is_not_taken_for_a_row_number(tmp_path: Path, layout: str) -> None:
    folder = lists(tmp_path / "a", [10, None, 30])
    table = pq.read_table(folder / "a.parquet")
    columns = {"token_ids": "target_token_ids", "top_values": "target_logprobs"}
    if layout == "axolotl":
        table = table.rename_columns([columns.get(n, n) for n in table.column_names])
        table = table.append_column("target_mask", pa.array([[[1], [1], [1]]] * 3))
        pq.write_table(table, folder / "a.parquet")
    with pytest.raises(InputError, match=r'row 1: the key in column "id" is null'):
        bring(LAYOUTS[layout](folder, key="id"), tmp_path / "set")


def test_samples_of_one_token_go_out_and_are_named_or_noted_when_they_come_back(
    tmp_path: Path, precompute: Precompute
) -> None:
    rows = [{"id": f"s{row}", "ids": [row % 16]} for row in range(20)] + [
        {"id": "t", "ids": [1, 2]}
    ]
    labels = precompute(tmp_path / "set", rows, unit_rows=30)
    DistillKit(tmp_path).write(labels, tmp_path / "theirs")
    source = DistillKit(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"row 0: none of its positions .*--on-error skip"):
        bring(source, tmp_path / "back")
    back = bring(source, tmp_path / "back", on_error="skip").labels
    assert (len(back), back.totals.rejects) == (1, 20)
    # A row group of theirs may hold nothing but such samples.
    DistillKit(tmp_path).write(
        precompute(tmp_path / "short", rows[:2]), tmp_path / "short of theirs"
    )
    assert [len(s.positions) for s in DistillKit(tmp_path / "short of theirs").read()] == [0, 0]


def test_numbers_that_are_no_bytes_are_not_cut_to_bytes(
    tmp_path: Path, precompute: Precompute
) -> None:
    DistillKit(tmp_path).write(precompute(tmp_path / "set"), tmp_path / "theirs")
    file = tmp_path / "theirs" / "data_0.parquet"
    table = pq.read_table(file)
    name = "bytepacked_indices"
    wide = [[[byte + 256 for byte in place] for place in row] for row in table[name].to_pylist()]
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(wide)), file)
    with pytest.raises(InputError, match=r"rows 0 to .*: \d+ is no byte"):
        bring(DistillKit(tmp_path / "theirs"), tmp_path / "back")

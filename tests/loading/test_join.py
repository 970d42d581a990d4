"""Joins: labels find their rows by key in any order, and a row that is another one is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from delivered import contents
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import (
    DuplicateKeyError,
    InputError,
    JoinError,
    SoftLabelsError,
)
from softlabels.labelset.reader import LabelSet

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]


def changed(samples: Samples, row: int, **values: Any) -> Samples:
    return [s | values if i == row else s for i, s in enumerate(samples)]


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style dataset as PyTorch has it; its ids are tensors."""

    def __init__(self, rows: Samples) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] | {"ids": torch.tensor(self.rows[index]["ids"])}


def table_file(samples: Samples, path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(samples), path)
    return str(path)


FORMS: dict[str, Callable[[Samples, Path], Any]] = {
    "list": lambda samples, _: samples,
    "reversed list": lambda samples, _: samples[::-1],
    "dataset": lambda samples, _: datasets.Dataset.from_list(samples),
    "shuffled dataset": lambda samples, _: datasets.Dataset.from_list(samples).shuffle(seed=0),
    "filtered dataset": lambda samples, _: datasets.Dataset.from_list(
        [*samples, {**samples[1], "id": "drop"}]
    ).filter(lambda row: row["id"] != "drop"),
    "narrow integers": lambda samples, _: datasets.Dataset.from_list(samples).cast_column(
        "ids", datasets.List(datasets.Value("uint8"))
    ),
    "torch dataset": lambda samples, _: Rows(samples),
    "parquet": lambda samples, folder: table_file(samples, folder / "data.parquet"),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_find_their_rows_in_any_form_and_order(
    labels: sl.LabelSet, samples: Samples, tmp_path: Path, form: str
) -> None:
    loader = sl.loader(labels, FORMS[form](samples, tmp_path), batch_size=3, seed=0)
    batches = list(loader)
    assert contents(batches) == contents(sl.loader(labels))
    for batch in batches:
        rows = [int(key[1:]) for key in batch["key"]]
        assert batch["weight"].tolist() == [row / 4 for row in rows]
        assert batch["note"] == [f"n{row}" for row in rows]


@given(st.permutations(range(10)), st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_no_order_of_rows_changes_what_a_record_gets(
    labels: sl.LabelSet, samples: Samples, order: list[int], batch_size: int, seed: int
) -> None:
    loader = sl.loader(labels, [samples[i] for i in order], batch_size=batch_size, seed=seed)
    for batch in loader:
        assert batch["note"] == [f"n{key[1:]}" for key in batch["key"]]


def test_windows_of_one_sample_share_its_row(labels: sl.LabelSet, samples: Samples) -> None:
    chosen = [labels.index("s1", part=part) for part in labels.parts("s1")]
    assert len(chosen) > 2
    (batch,) = sl.loader(labels, samples, records=chosen, batch_size=100)
    assert batch["key"] == ["s1"] * len(chosen)
    assert batch["part"].tolist() == labels.parts("s1")
    assert batch["weight"].tolist() == [0.25] * len(chosen)


@pytest.mark.parametrize("row", [0, 1, 9])
def test_a_changed_row_is_an_error_with_key_found_and_expected(
    labels: sl.LabelSet, samples: Samples, row: int
) -> None:
    ids = [*samples[row]["ids"][:-1], (samples[row]["ids"][-1] + 1) % 16]
    loader = sl.loader(labels, changed(samples, row, ids=ids), batch_size=1)
    expected = labels.identities["input_digest"][labels.index(f"s{row}")].as_py().hex()
    with pytest.raises(JoinError, match=rf'"s{row}".*row {row} .*[0-9a-f]{{16}}.*{expected}'):
        list(loader)


def test_other_columns_may_change(labels: sl.LabelSet, samples: Samples) -> None:
    loader = sl.loader(labels, changed(samples, 0, weight=9.0, note="new"))
    assert contents(loader) == contents(sl.loader(labels))


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize("key", ["id", None])
@pytest.mark.parametrize("store_inputs", [True, False])
def test_a_join_shifted_by_one_row_is_caught(
    samples: Samples,
    tmp_path: Path,
    precompute: Precompute,
    key: str | None,
    shift: int,
    store_inputs: bool,
) -> None:
    labels = precompute(tmp_path / "set", samples, key=key, store_inputs=store_inputs)
    ids = [s["ids"] for s in samples]
    shifted = [s | {"ids": ids[(i + shift) % len(ids)]} for i, s in enumerate(samples)]
    assert len(list(sl.loader(labels, samples, batch_size=1))) == len(labels)
    delivered = []
    with pytest.raises(JoinError, match="input digest"):
        delivered.extend(sl.loader(labels, shifted, batch_size=1))
    assert delivered == []


def test_row_numbers_join_only_the_rows_that_were_labelled(
    samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    labels = precompute(tmp_path / "set", samples, key=None)
    more = [*samples, samples[0]]
    assert contents(sl.loader(labels, more, on_missing="skip")) == contents(sl.loader(labels))
    with pytest.raises(JoinError, match=r'key "8" .*1 other'):
        sl.loader(labels, samples[:8], records=[labels.index(key) for key in (7, 8, 9)])


def test_a_chosen_record_without_a_row_is_named_before_the_first_batch(
    labels: sl.LabelSet, samples: Samples
) -> None:
    fewer = [s for s in samples if s["id"] not in ("s2", "s7")]
    with pytest.raises(JoinError, match=r'key "s2" has labels but no row.*records='):
        sl.loader(labels, fewer, records=[0, labels.index("s2"), labels.index("s7")])
    keys = labels.identities["key"].to_pylist()
    chosen = [i for i, key in enumerate(keys) if key not in ("s2", "s7")]
    loader = sl.loader(labels, fewer, records=chosen)
    assert {key for key, _ in contents(loader)} == {s["id"] for s in fewer}


def test_a_key_in_two_rows_is_refused(labels: sl.LabelSet, samples: Samples) -> None:
    with pytest.raises(DuplicateKeyError, match='"s3" is in row 3 and again in row 10'):
        sl.loader(labels, [*samples, samples[3]])


def test_a_row_that_only_shares_the_hash_of_a_key_is_refused(
    labels: sl.LabelSet, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LabelSet, "match", lambda _, keys: (np.zeros(len(keys), int), np.zeros(len(keys), int))
    )
    same = [s | {"id": "other"} for s in samples[:1]]
    delivered = []
    with pytest.raises(JoinError, match=r'"s0" has labels but no row.*row 0.*"other"'):
        delivered.extend(sl.loader(labels, same, records=[0]))
    assert delivered == []


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([{"id": "s0", "ids": "text"}], JoinError, r'"ids" holds text, labelled was input_ids'),
        ([{"id": 0, "ids": [1]}], JoinError, r'"id" is int64, keys of the labels are string'),
        ([{"id": "s0", "tokens": [1]}], InputError, r'no column "ids"'),
        ([{"name": "s0", "ids": [1]}], InputError, r'no key column "id"'),
        ([], InputError, "no rows"),
        ("no/such.parquet", InputError, "no such file"),
        (3, InputError, "int"),
    ],
)
def test_data_that_cannot_be_joined_is_refused_at_once(
    labels: sl.LabelSet, data: Any, error: type[SoftLabelsError], said: str
) -> None:
    with pytest.raises(error, match=said):
        sl.loader(labels, data)


def test_columns_come_as_tensors_where_they_are_numbers(
    labels: sl.LabelSet, samples: Samples
) -> None:
    kinds = {
        "int": lambda i: i - 3,
        "float": lambda i: i / 2,
        "bool": lambda i: i % 2 == 0,
        "some": lambda i: i if i else None,
        "text": str,
        "list": lambda i: [i] * i,
    }
    rows = [{k: s[k] for k in ("id", "ids")} for s in samples]
    data = [row | {k: f(i) for k, f in kinds.items()} for i, row in enumerate(rows)]
    for batch in sl.loader(labels, data, batch_size=2, seed=0):
        numbers = [int(key[1:]) for key in batch["key"]]
        for name, kind in kinds.items():
            values = batch[name]
            assert isinstance(values, torch.Tensor) == (
                name in ("int", "float", "bool") or (name == "some" and 0 not in numbers)
            )
            assert (values.tolist() if isinstance(values, torch.Tensor) else values) == [
                kind(i) for i in numbers
            ]


def test_columns_are_chosen_by_name(labels: sl.LabelSet, samples: Samples) -> None:
    own = {"input_ids", "attention_mask", "soft_labels", "next_ids", "key", "part"}
    for columns, extra in ((None, {"weight", "note"}), (["note"], {"note"}), ([], set())):
        batch = next(iter(sl.loader(labels, samples, columns=columns)))
        assert batch.keys() == own | extra
    with pytest.raises(InputError, match=r'"size"; the data has .*"note"'):
        sl.loader(labels, samples, columns=["size"])


def test_a_column_never_stands_in_the_place_of_a_field(
    labels: sl.LabelSet, samples: Samples
) -> None:
    data = [s | {"attention_mask": [0], "part": 7} for s in samples]
    assert contents(sl.loader(labels, data)) == contents(sl.loader(labels))
    with pytest.raises(InputError, match=r'"part" has the name of a batch\'s own field'):
        sl.loader(labels, data, columns=["part"])

"""Sets that were written by hand, from docs/FORMAT.md alone, are read for ever."""

from __future__ import annotations

import hashlib
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import softlabels as sl
from softlabels.labelset.verify import verify

HERE = Path(__file__).parent
FORMAT = HERE.parents[1] / "docs" / "FORMAT.md"
sys.path.insert(0, str(HERE))
from golden import SETS  # noqa: E402

DIGESTS = {
    "1.0-draft-plain": "90706aa59d4fc76b51b90110f12deb2deecae54d953c236cee82893c21e38d63",
    "1.0-draft-plain-bare": "b631df91c38ebbd4efa9219d43c6fe988f447a4d9247257b7427146bb522e77c",
}
by_name = pytest.mark.parametrize("name", SETS)


def literal_rows(name: str) -> list[dict[str, Any]]:
    return [row for unit in SETS[name].units for row in unit.rows]


def float32s(values: Any, *shape: int) -> Any:
    """A literal column; null becomes NaN."""
    return None if values is None else np.asarray(values, np.float32).reshape(shape)


@by_name
def test_the_files_are_those_that_were_kept(name: str) -> None:
    state = hashlib.sha256()
    for path in sorted(path for path in (HERE / name).rglob("*") if path.is_file()):
        state.update(str(path.relative_to(HERE)).encode() + path.read_bytes())
    assert state.hexdigest() == DIGESTS[name]


@by_name
def test_a_golden_set_reads_as_its_literals(name: str) -> None:
    golden = SETS[name]
    labels = sl.LabelSet.open(HERE / name)
    k, temperatures = golden.plan["selection"]["k"], golden.plan["temperatures"]
    assert len(labels) == len(literal_rows(name))
    for number, row in enumerate(literal_rows(name)):
        found = labels.get(row["key"], part=row["part"])
        identity = labels.identities.slice(number, 1).to_pylist()[0]
        for field in ("key", "part", "view", "source_start", "source_length"):
            assert identity[field] == row[field]
        mask = np.full(row["length"], row["label_spans"] is None)
        for span in row["label_spans"] or []:
            mask[span["start"] : span["start"] + span["length"]] = True
        assert found.mask is not None
        assert found.mask.tolist() == mask.tolist()
        labelled = found[found.mask]
        assert labelled.ids.tolist() == np.reshape(row["ids"], (-1, k)).tolist()
        expected = {
            "log_probs": float32s(row["log_probs"], -1, k),
            "logsumexp": float32s(row["logsumexp"], -1),
            "log_tails": float32s(row["log_tails"], -1, len(temperatures)),
            "hard_log_probs": float32s(row["hard_log_probs"], -1),
        }
        for field, values in expected.items():
            tensor = getattr(labelled, field)
            assert (tensor is None) == (values is None), field
            if values is not None:
                assert np.array_equal(tensor.numpy(), values, equal_nan=True), field


@by_name
def test_a_golden_set_carries_its_inputs_or_none(name: str) -> None:
    labels = sl.LabelSet.open(HERE / name)
    for number, row in enumerate(literal_rows(name)):
        records = labels.take([number])
        if row["input_ids"] is None:
            assert records.token_ids is None
            continue
        assert records.token_ids is not None
        assert records.next_ids is not None
        assert records.token_ids.tolist() == row["input_ids"]
        assert records.next_ids[0] == (-1 if row["next_id"] is None else row["next_id"])


@by_name
def test_a_golden_set_verifies(name: str) -> None:
    report = verify(HERE / name)
    assert report.findings == ()
    assert report.positions == sum(row["positions"] for row in literal_rows(name))


@by_name
def test_a_golden_set_joins_the_rows_it_was_made_from(name: str) -> None:
    golden = SETS[name]
    sources = [(key, *row) for unit in golden.units for key, row in unit.sources.items()]
    data = [{"name": str(key), "ids": ids} for key, ids in sources]
    labels = sl.LabelSet.open(HERE / name)
    batches = list(sl.loader(labels, data, batch_size=1))
    assert [b["input_ids"][0].tolist() for b in batches] == [
        r["tokens"] for r in literal_rows(name)
    ]
    data[0]["ids"] = [*data[0]["ids"], 4]
    with pytest.raises(sl.errors.JoinError, match="input digest"):
        list(sl.loader(labels, data, batch_size=1))


def printed_readers(folder: Path) -> dict[str, Any]:
    """The functions that docs/FORMAT.md prints, from one file."""
    blocks = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    (folder / "readers.py").write_text("\n".join(blocks))
    return runpy.run_path(str(folder / "readers.py"))


@by_name
def test_the_reader_printed_in_the_format_reads_it_too(name: str, tmp_path: Path) -> None:
    read = printed_readers(tmp_path)["read_label_set"]
    rows = list(read(HERE / name))
    labels = sl.LabelSet.open(HERE / name)
    assert len(rows) == len(labels)
    for row, ours in zip(rows, labels[:], strict=True):
        assert ours.mask is not None
        assert row["mask"].tolist() == ours.mask.tolist()
        assert row["ids"].tolist() == ours[ours.mask].ids.tolist()
        assert row["log_probs"].tolist() == ours[ours.mask].log_probs.tolist()
        if ours.log_tails is not None:
            assert row["log_tails"].tolist() == ours[ours.mask].log_tails.tolist()
    copy = tmp_path / "copy"
    shutil.copytree(HERE / name, copy)
    shard = copy / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"PAR1", b"PAR2", 1))
    with pytest.raises(ValueError, match="train-00000"):
        list(read(copy))


def test_what_the_library_writes_has_the_columns_that_the_golden_sets_have(
    finished_set: Path,
) -> None:
    ours = pq.read_schema(finished_set / "data" / "train-00000.parquet")
    golden = pq.read_schema(HERE / "1.0-draft-plain" / "data" / "train-00000.parquet")
    assert ours.remove_metadata() == golden.remove_metadata()


def test_the_rejects_of_a_golden_set_stand_in_their_table() -> None:
    table = pq.read_table(HERE / "1.0-draft-plain" / "rejects.parquet")
    rejects = [{"unit": 0, **r} for r in SETS["1.0-draft-plain"].units[0].rejects]
    assert table.to_pylist() == rejects


@pytest.mark.parametrize("temperatures", [(1.0, 2.0, 4.0), (2.0,), ()])
def test_the_reader_of_compact_printed_in_the_format_agrees_with_the_library(
    tmp_path: Path,
    teacher_dir: Path,
    rows: list[dict[str, Any]],
    temperatures: tuple[float, ...],
) -> None:
    read = printed_readers(tmp_path)["read_compact"]
    labels = sl.precompute(
        rows[:6], teacher_dir, tmp_path / "set", key="id", max_length=64, codec="compact",
        temperatures=temperatures,
    )  # fmt: skip
    numbers = iter(range(len(labels)))
    for receipt in labels.receipts:
        for row in pq.read_table(tmp_path / "set" / receipt.path).to_pylist():
            ours = labels[next(numbers)]
            ids, log_probs, log_tails = read(row, labels.plan.codec)
            assert np.array_equal(np.stack(ids), ours.ids)
            assert np.allclose(np.stack(log_probs), ours.log_probs, atol=1e-5)
            if ours.log_tails is not None:
                assert np.allclose(log_tails, ours.log_tails, atol=1e-5)
    assert verify(tmp_path / "set").findings == ()
    assert next(numbers, None) is None

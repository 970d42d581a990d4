"""Sets that were written by hand, from docs/FORMAT.md alone, are read for ever."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

import softlabels as sl
from softlabels.format import records as library_records
from softlabels.format.shard import Shard
from softlabels.format.shard_writing import write
from softlabels.verifying.verify import verify

HERE = Path(__file__).parent
FORMAT = HERE.parents[1] / "docs" / "FORMAT.md"
sys.path.insert(0, str(HERE))
from expected import labels_of, stored  # noqa: E402
from golden import SETS, GoldenSet  # noqa: E402
from golden_packed import PACKED  # noqa: E402

GOLDEN: dict[str, GoldenSet] = {**SETS, **PACKED}
DIGESTS = {
    "1.0-draft-plain": "90706aa59d4fc76b51b90110f12deb2deecae54d953c236cee82893c21e38d63",
    "1.0-draft-plain-bare": "b631df91c38ebbd4efa9219d43c6fe988f447a4d9247257b7427146bb522e77c",
    "1.0-draft-plain-digested": "8ae9c9b07d19c0bcc635a4103f25df8d7b2127e0354c416e3b9d9e3055eaded5",
    "1.0-draft-compact": "7ecf732776ab8b154a8d6e6888c637cb76a965f5906b1e0c140f6ab64027f660",
    "1.0-draft-compact-bare": "cc0e9e9c3588c6622085113947c24c0535280058a4f6ca1ff89eaba87797d171",
    "1.0-draft-lossless": "973091e38a30dda22b02633dbb34cf172085f06788c54fb03b450ede71aae505",
    "1.0-draft-sampled": "342400bbc9c3490df1dab31dee991791dc064bd4dd33f226dbc86fe61aedd04c",
    "1.0-draft-sampled-few": "5f1b8da3306b4f1d4d47dcfcbfd11ad2545cb81fa09165c2355a489d5ee3f6d8",
    "1.0-draft-sampled-weights": "1efb8dd00155333c2eecedb2c009232b4adfac962cd8ca068527a74dcbff9245",
}
FIELDS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs")
by_name = pytest.mark.parametrize("name", GOLDEN)
by_packed_name = pytest.mark.parametrize("name", PACKED)


def literal_rows(name: str) -> list[dict[str, Any]]:
    return [row for unit in GOLDEN[name].units for row in unit.rows]


def assert_close(found: Any, wanted: Any, field: str, *, codec: str) -> None:
    """Equal where nothing is computed from the stored numbers, else to float32 rounding."""
    assert (found is None) == (wanted is None), field
    if wanted is None:
        return
    found = np.asarray(found)
    assert found.shape == wanted.shape, field
    computed = {"compact": ("log_probs", "log_tails"), "sampled": ("log_probs",)}.get(codec, ())
    if field not in computed:
        assert np.array_equal(found, wanted, equal_nan=field == "hard_log_probs"), field
        return
    # In compact ln c³ and what scales it, each below 32, are rounded before they are added.
    atol = 2 * 2.0**-20 if (codec, field) == ("compact", "log_probs") else 0
    np.testing.assert_allclose(found, wanted, rtol=2.0**-22, atol=atol, err_msg=field)


@by_name
def test_the_files_are_those_that_were_kept(name: str) -> None:
    state = hashlib.sha256()
    for path in sorted(path for path in (HERE / name).rglob("*") if path.is_file()):
        state.update(str(path.relative_to(HERE)).encode() + path.read_bytes())
    assert state.hexdigest() == DIGESTS[name]


@by_name
def test_a_golden_set_reads_as_its_literals(name: str) -> None:
    golden = GOLDEN[name]
    codec = golden.plan["codec"]["name"]
    labels = sl.LabelSet.open(HERE / name)
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
        assert labelled.sampled == (codec == "sampled")
        for field, values in labels_of(golden, row).items():
            assert_close(getattr(labelled, field), values, field, codec=codec)


def test_a_lossless_golden_set_has_the_bits_of_its_logits() -> None:
    golden = PACKED["1.0-draft-lossless"]
    labels = sl.LabelSet.open(HERE / "1.0-draft-lossless")
    for number, row in enumerate(literal_rows("1.0-draft-lossless")):
        found = labels[number]
        assert found.logits is not None
        assert found.logits.dtype == torch.bfloat16
        bits = found.logits[found.mask].view(torch.int16).numpy().view(np.uint16)
        wanted = stored(golden, row["labels"])
        assert np.array_equal(bits[wanted >= 0], wanted[wanted >= 0])


def test_probabilities_of_a_golden_set_are_those_worked_out_by_hand() -> None:
    """Cubes 10⁶ and 125,000 share the half that tail code 128, x = ½, leaves; code 255 has all."""
    found = sl.LabelSet.open(HERE / "1.0-draft-compact").get("été")
    assert found.log_probs.exp()[0].tolist() == pytest.approx([4 / 10, 1 / 20, 1 / 20])
    assert found.log_probs.exp()[1].tolist() == pytest.approx([1 / 18, 4 / 9, 0])
    assert found.log_probs.exp()[2].tolist() == [1, 0, 0]


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


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_set_verifies(name: str) -> None:
    report = verify(HERE / name)
    assert report.findings == ()
    assert report.positions == sum(row["positions"] for row in literal_rows(name))


@by_name
def test_a_golden_set_joins_the_rows_it_was_made_from(name: str) -> None:
    golden = GOLDEN[name]
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


@by_name
def test_the_library_writes_the_labels_of_a_golden_set_into_the_same_columns(
    name: str, tmp_path: Path
) -> None:
    labels = sl.LabelSet.open(HERE / name)
    codec, plan = labels.plan.make_codec(), labels.plan
    for receipt in labels.receipts:
        path = HERE / name / receipt.path
        golden = Shard(path, receipt=receipt, name=receipt.path)
        token_type = GOLDEN[name].schema.field("next_id").type
        schema = library_records.schema(plan.data.key_type, codec, token_type=token_type)
        assert schema == golden.schema.remove_metadata()
        if not receipt.group_rows:
            continue
        copy, summary = tmp_path / path.name, golden.summary()
        write(
            copy,
            golden.records(0, codec),
            summary,
            schema=schema,
            codec=codec,
            plan_digest=golden.footer("plan"),
        )
        ours, theirs = pq.read_table(copy), pq.read_table(path)
        assert ours.schema.remove_metadata() == schema
        if name in PACKED:
            # What compact reads is rescaled to the tail: its codes are others when written again.
            if name != "1.0-draft-compact":
                assert planes(ours, plan.codec) == planes(theirs, plan.codec)
            ours, theirs = (table.drop_columns("packed") for table in (ours, theirs))
        assert ours.to_pylist() == theirs.to_pylist()


def planes(table: Any, codec: dict[str, Any]) -> list[bytes]:
    """What the frames of a shard hold."""
    dictionary = base64.b64decode(codec["dictionary"])
    given = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    readers = [zstandard.ZstdDecompressor(), zstandard.ZstdDecompressor(dict_data=given)]
    return [
        readers[row["positions"] < 96].decompress(row["packed"][:-1]) for row in table.to_pylist()
    ]


@by_packed_name
def test_short_records_need_the_dictionary_and_long_ones_do_not(name: str) -> None:
    for receipt in sl.LabelSet.open(HERE / name).receipts:
        for row in pq.read_table(HERE / name / receipt.path).to_pylist():
            reader = zstandard.ZstdDecompressor()
            if PACKED[name].with_dictionary and row["positions"] < 96:
                with pytest.raises(zstandard.ZstdError):
                    reader.decompress(row["packed"][:-1])
            else:
                reader.decompress(row["packed"][:-1])


def printed_reader(folder: Path) -> Any:
    """`read_label_set` of docs/FORMAT.md, from one file."""
    blocks = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    (folder / "readers.py").write_text("\n".join(blocks))
    return runpy.run_path(str(folder / "readers.py"))["read_label_set"]


@by_name
def test_the_reader_printed_in_the_format_reads_it_too(name: str, tmp_path: Path) -> None:
    golden, read = GOLDEN[name], printed_reader(tmp_path)
    rows = list(read(HERE / name))
    assert len(rows) == len(literal_rows(name))
    for row, literal in zip(rows, literal_rows(name), strict=True):
        for field, values in labels_of(golden, literal).items():
            assert_close(row[field], values, field, codec=golden.plan["codec"]["name"])
        assert row["mask"].sum() == literal["positions"]
        assert row["key"] == literal["key"]


@by_name
def test_the_reader_printed_in_the_format_refuses_a_set_that_was_changed(
    name: str, tmp_path: Path
) -> None:
    read, copy = printed_reader(tmp_path), tmp_path / "copy"
    shutil.copytree(HERE / name, copy)
    shard = copy / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"PAR1", b"PAR2", 1))
    with pytest.raises(ValueError, match="train-00000"):
        list(read(copy))
    table = pq.read_table(copy / "shards.parquet")
    paths = ["../elsewhere.parquet"] * len(table)
    pq.write_table(table.set_column(0, "path", [paths]), copy / "shards.parquet")
    with pytest.raises(ValueError, match=r"shards\.parquet"):
        list(read(copy))
    manifest = json.loads((copy / "manifest.json").read_bytes())
    digest = hashlib.sha256((copy / "shards.parquet").read_bytes()).hexdigest()
    manifest["files"]["shards.parquet"] = digest
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside"):
        list(read(copy))
    (copy / "plan.json").write_bytes((copy / "plan.json").read_bytes() + b"\n")
    with pytest.raises(ValueError, match=r"plan\.json"):
        list(read(copy))


@pytest.mark.parametrize(
    ("codec", "temperatures"),
    [
        ("plain", (1.0, 2.0)),
        ("compact", (1.0, 2.0, 4.0)),
        ("compact", (2.0,)),
        ("compact", ()),
        ("lossless", (1.0,)),
    ],
)
def test_the_reader_printed_in_the_format_reads_what_the_library_writes(
    tmp_path: Path,
    teacher_dir: Path,
    rows: list[dict[str, Any]],
    codec: str,
    temperatures: tuple[float, ...],
) -> None:
    read, root = printed_reader(tmp_path), tmp_path / "set"
    labels = sl.precompute(
        rows[:6], teacher_dir, root, key="id", max_length=128, codec=codec,
        temperatures=temperatures,
    )  # fmt: skip
    found = list(read(root))
    assert len(found) == len(labels)
    assert {row["positions"] < 96 for row in found} == {True, False}
    for row, ours in zip(found, labels[:], strict=True):
        assert ours.mask is not None
        assert row["mask"].tolist() == ours.mask.tolist()
        for field in FIELDS:
            tensor = getattr(ours[ours.mask], field)
            values = None if tensor is None else tensor.numpy()
            assert_close(row[field], values, field, codec=codec)
    assert verify(root).findings == ()


def test_what_the_library_writes_has_the_columns_that_the_golden_sets_have(
    finished_set: Path,
) -> None:
    ours = pq.read_schema(finished_set / "data" / "train-00000.parquet")
    golden = pq.read_schema(HERE / "1.0-draft-plain" / "data" / "train-00000.parquet")
    assert ours.remove_metadata() == golden.remove_metadata()


@by_name
def test_the_rejects_of_a_golden_set_stand_in_their_table(name: str) -> None:
    units = enumerate(GOLDEN[name].units)
    rejects = [{"unit": number, **reject} for number, unit in units for reject in unit.rejects]
    path = HERE / name / "rejects.parquet"
    assert (pq.read_table(path).to_pylist() if path.exists() else []) == rejects

"""Probes: dense logits of a sample of positions, bit for bit, and what guards them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import killed
from same_set import contents

import softlabels as sl
from softlabels.errors import CorruptShardError, InputError, PlanMismatchError
from softlabels.format import probes
from softlabels.format.probes import choose, quota
from softlabels.labelset.writer import begin
from softlabels.verifying.verify import repair, verify

Precompute = Callable[..., sl.LabelSet]

FIRST, SECOND = "probes/train-00000.parquet", "probes/train-00001.parquet"
BAD = 15  # the token that a faulty teacher stumbles over


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def places(labels: sl.LabelSet) -> list[tuple[int, int]]:
    """Record and position of every probe, in order."""
    pairs = [zip(p.records.tolist(), p.positions.tolist(), strict=True) for p in labels.probes()]
    return [place for part in pairs for place in part]


def labelled(labels: sl.LabelSet) -> list[tuple[int, int]]:
    """Record and position of everything that is labelled, in order."""
    return [(i, t) for i, y in enumerate(labels[:]) for t in y.mask.nonzero().flatten().tolist()]


def table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) * 2).to(dtype)


def teacher(weights: torch.Tensor, fault: float | None = None) -> Any:
    """A table; with a fault, of the token BAD it knows nothing else."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        found = weights[ids]
        if fault is not None:
            found[ids == BAD] = fault
        return found

    return sl.teachers.from_callable(logits, name="table", version="1", classes=16)


@pytest.fixture
def probed(precompute: Precompute, tmp_path: Path) -> Path:
    """Two units of three rows and ten probes."""
    return precompute(tmp_path / "set", probes=10).root


@given(probes=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_quotas_sum_to_the_probes_wherever_the_rows_are_cut(probes: int, sizes: list[int]) -> None:
    ends = np.cumsum([0, *sizes]).tolist()
    total = ends[-1]
    units = [range(a, b) for a, b in pairwise(ends)]
    shares = [quota(probes, rows, total) for rows in units]
    assert sum(shares) == probes
    for rows, share in zip(units, shares, strict=True):
        # FORMAT.md: ⌊n·b/N⌋ − ⌊n·a/N⌋, so within one of the unit's part of the rows
        assert share == probes * rows.stop // total - probes * rows.start // total
        assert abs(share - probes * len(rows) / total) < 1


@given(st.integers(0, 200), st.integers(0, 220), st.integers(0, 10**6))
def test_chosen_positions_are_as_many_as_asked_and_stay_when_more_are(
    positions: int, count: int, unit: int
) -> None:
    chosen = choose(positions, count, unit)
    assert (chosen.dtype, chosen.shape) == (bool, (positions,))
    assert chosen.sum() == min(positions, count)
    assert np.array_equal(chosen, choose(positions, count, unit))
    assert (chosen <= choose(positions, count + 1, unit)).all()


def test_every_position_and_every_pair_of_neighbours_is_chosen_as_often() -> None:
    units, positions, count = 4000, 40, 10
    chosen = np.stack([choose(positions, count, unit) for unit in range(units)])
    share = count / positions
    deviation = np.sqrt(units * share * (1 - share))
    scores = (chosen.sum(0) - units * share) / deviation
    # Their sum of squares is chi-square of 39 degrees of freedom: above 72.1 once in a thousand.
    assert (scores**2).sum() * (1 - 1 / positions) < 72.1
    both = (chosen[:, 1:] & chosen[:, :-1]).sum(0)
    expected = units * share * (count - 1) / (positions - 1)
    assert np.abs(both - expected).max() < 5 * np.sqrt(expected)
    assert len({row.tobytes() for row in chosen}) > units * 0.99


@pytest.mark.parametrize("probes", [1, 7, 40])
def test_a_set_has_exactly_the_probes_asked_for_spread_over_its_units(
    precompute: Precompute, tmp_path: Path, probes: int
) -> None:
    labels = precompute(tmp_path / "set", probes=probes, unit_rows=2, overlap=2)
    rows = [range(0, 2), range(2, 4), range(4, 6)]
    counts = [receipt.probes for receipt in labels.receipts]
    # Of the last two units no more than their ten positions each can be kept.
    room = [receipt.positions for receipt in labels.receipts]
    assert counts == [min(quota(probes, r, 6), n) for r, n in zip(rows, room, strict=True)]
    assert probes == 40 or sum(counts) == probes
    assert labels.totals.probes == sum(counts) == len(places(labels))
    assert places(labels) == sorted(set(places(labels)))
    assert set(places(labels)) <= set(labelled(labels))


def test_probes_are_the_same_again_and_whatever_the_batches(
    precompute: Precompute, tmp_path: Path
) -> None:
    found = [
        contents(precompute(tmp_path / f"{i}", probes=10, batch_tokens=tokens).root / "probes")
        for i, tokens in enumerate([8192, 8192, 6, 13])
    ]
    assert set(found[0]) == {"train-00000.parquet", "train-00001.parquet"}
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("codec", ["plain", "compact", "lossless"])
def test_logits_are_the_teachers_bit_for_bit(
    precompute: Precompute, tmp_path: Path, dtype: torch.dtype, codec: str
) -> None:
    weights = table(dtype)
    weights[3, :3] = torch.tensor([-torch.inf, 0.0, -0.0])
    labels = precompute(tmp_path / "set", teacher=teacher(weights), probes=12, codec=codec)
    seen = 0
    for part in labels.probes():
        for record, position, logits in zip(part.records, part.positions, part.logits, strict=True):
            token = labels.take([int(record)]).token_ids[position]
            assert logits.dtype == dtype
            assert logits.view(torch.uint8).equal(weights[token].view(torch.uint8))
            kept = labels[int(record)][int(position)]
            whole = torch.log_softmax(logits.double(), -1)[kept.ids]
            assert float((kept.log_probs - whole).abs().max()) < (
                0.1 if codec == "compact" else 1e-5
            )
            seen += 1
    assert seen == 12


def test_many_probes_come_in_row_groups_and_in_record_order(
    precompute: Precompute, tmp_path: Path
) -> None:
    rows = [{"id": f"r{i}", "ids": [i % 16] * 100} for i in range(4)]
    labels = precompute(tmp_path / "set", rows, probes=300, max_length=64)
    assert [len(part) for part in labels.probes()] == [64, 64, 64, 33, 64, 11]
    assert places(labels) == sorted(set(places(labels)))


def test_logits_of_a_causal_lm_are_those_at_their_record_and_position(
    teacher_dir: Path, model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    labels = sl.precompute(
        rows[:12], teacher_dir, tmp_path / "set", selection=sl.TopK(4), key="id", max_length=48,
        overlap=8, unit_rows=5, batch_tokens=256, probes=30, progress=False,
    )  # fmt: skip
    assert len(places(labels)) == 30
    assert set(places(labels)) <= set(labelled(labels))
    for part in labels.probes():
        for record, position, logits in zip(part.records, part.positions, part.logits, strict=True):
            tokens = torch.from_numpy(labels.take([int(record)]).token_ids)
            with torch.no_grad():
                expected = model(tokens[None]).logits[0, position]
            # In a batch the same products are summed in another order.
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_records_are_counted_without_those_that_were_rejected(
    precompute: Precompute, tmp_path: Path, fault: float
) -> None:
    rows = [{"id": f"r{i}", "ids": [i, i + 1, i + 2]} for i in range(8)]
    rows[0]["ids"], rows[2]["ids"], rows[5]["ids"] = [1, BAD], [BAD, 2], [99]  # there is no 99
    rows[6]["ids"] = [1, 2, 3, 4, 5, BAD, 3, 4]  # its first window only
    weights = table()
    labels = precompute(
        tmp_path / "set", rows, teacher=teacher(weights, fault), probes=1000, on_error="skip"
    )
    assert labels.totals.rejects == 4
    assert places(labels) == labelled(labels)
    for part in labels.probes():
        for record, position, logits in zip(part.records, part.positions, part.logits, strict=True):
            token = labels.take([int(record)]).token_ids[position]
            assert logits.equal(weights[token])
    few = precompute(
        tmp_path / "few", rows, teacher=teacher(weights, fault), probes=16, on_error="skip"
    )
    assert 0 < few.totals.probes < 16
    assert set(places(few)) <= set(places(labels))
    assert verify(few.root).findings == ()


def test_a_unit_of_rejects_alone_has_no_probes(precompute: Precompute, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "ids": [99 if i < 3 else i]} for i in range(6)]
    labels = precompute(tmp_path / "set", rows, probes=6, on_error="skip")
    assert [receipt.probes for receipt in labels.receipts] == [0, 3]
    assert [p.name for p in (labels.root / "probes").iterdir()] == ["train-00001.parquet"]
    assert [record for record, _ in places(labels)] == [0, 1, 2]


def test_without_probes_there_is_no_folder(precompute: Precompute, tmp_path: Path) -> None:
    labels = precompute(tmp_path / "set")
    assert not (labels.root / "probes").exists()
    assert (labels.totals.probes, list(labels.probes())) == (0, [])


def test_probes_of_a_stream_are_refused(
    precompute: Precompute, tmp_path: Path, id_rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match=r"stream of unknown length.*random access"):
        precompute(tmp_path / "set", iter(id_rows), probes=5)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "probes",
    [
        -1,
        1.5,
        "5",
        None,
    ],
)
def test_probes_that_are_no_number_from_0_on_are_refused(
    precompute: Precompute, tmp_path: Path, probes: Any
) -> None:
    with pytest.raises(InputError, match=f"probes is {probes}"):
        precompute(tmp_path / "set", probes=probes)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_another_number_of_probes_is_refused_by_name(
    precompute: Precompute, probed: Path, finished: bool
) -> None:
    if not finished:
        (probed / "data" / "train-00001.parquet").unlink()
        (probed / "manifest.json").unlink()
    before = contents(probed)
    with pytest.raises(PlanMismatchError, match=r"probes was 10, is now 11"):
        precompute(probed, probes=11)
    with pytest.raises(PlanMismatchError, match=r"probes was 10, is now 0"):
        precompute(probed)
    assert contents(probed) == before


def label(rows: list[dict[str, Any]], weights: torch.Tensor, out: Path) -> sl.LabelSet:
    return sl.precompute(
        rows, teacher(weights), out, selection=sl.TopK(3), column="ids", key="id", max_length=6,
        unit_rows=3, temperatures=(1.0, 2.0), codec="plain", probes=10,
    )  # fmt: skip


@pytest.mark.parametrize(("count", "there"), [(2, 1), (3, 2), (5, 3)])
def test_a_run_killed_between_probes_and_shard_goes_on_to_the_same_set(
    precompute: Precompute,
    id_rows: list[dict[str, Any]],
    tmp_path: Path,
    count: int,
    there: int,
) -> None:
    weights = table()
    out, known = tmp_path / "set", teacher(weights)
    # The first file that is published is plan.json, the second probes.
    killed("after", "os.link", count, partial(label, id_rows, weights, out))
    here = sorted(str(p.relative_to(out)) for p in out.rglob("*.parquet") if ".tmp" not in p.parts)
    assert here == sorted([FIRST, "data/train-00000.parquet", SECOND][:there])
    precompute(out, teacher=known, probes=10)
    assert contents(out) == contents(precompute(tmp_path / "whole", teacher=known, probes=10).root)


def flip_page(root: Path) -> None:
    flip(root / FIRST, 300)


def flip_magic(root: Path) -> None:
    flip(root / FIRST, 0)


def flip_end(root: Path) -> None:
    flip(root / FIRST, -1)


def cut(root: Path) -> None:
    os.truncate(root / FIRST, 100)


def remove(root: Path) -> None:
    (root / FIRST).unlink()


def exchange(root: Path) -> None:
    shutil.copy(root / SECOND, root / FIRST)


@pytest.mark.parametrize("damage", [flip_page, flip_magic, flip_end, cut, remove, exchange])
def test_damaged_probes_are_named_never_read_and_made_again(
    precompute: Precompute, probed: Path, damage: Callable[[Path], None]
) -> None:
    before, found = contents(probed), places(sl.LabelSet.open(probed))
    damage(probed)
    assert [finding.file for finding in verify(probed).findings] == [FIRST]
    with pytest.raises(CorruptShardError, match=FIRST):
        list(sl.LabelSet.open(probed).probes())
    dropped = repair(probed, verify(probed))
    assert dropped == ["data/train-00000.parquet", FIRST]
    assert not (probed / FIRST).exists()
    precompute(probed, probes=10)
    assert contents(probed) == before
    assert places(sl.LabelSet.open(probed)) == found


def test_a_stray_file_of_probes_is_named_and_dropped(precompute: Precompute, probed: Path) -> None:
    before = contents(probed)
    shutil.copy(probed / FIRST, probed / "probes" / "train-00002.parquet")
    assert [f.file for f in verify(probed).findings] == ["probes/train-00002.parquet"]
    assert repair(probed, verify(probed)) == ["probes/train-00002.parquet"]
    precompute(probed, probes=10)
    assert contents(probed) == before


def test_a_flipped_bit_anywhere_is_found_and_never_read_as_logits(probed: Path) -> None:
    path = probed / FIRST
    good = path.read_bytes()
    for number, place in enumerate(range(0, len(good), 7)):
        flip(path, place, number % 8)
        assert [finding.file for finding in verify(probed).findings] == [FIRST], place
        with pytest.raises(CorruptShardError, match=FIRST):
            list(sl.LabelSet.open(probed).probes())
        path.write_bytes(good)


def test_a_flipped_bit_where_no_digest_is_known_is_an_error_that_names_the_file_or_harmless(
    probed: Path,
) -> None:
    """As when a lost receipt is made again: only Parquet's own checksums and zstd's are left."""

    def everything() -> list[bytes]:
        return [
            array.tobytes()
            for part in probes.read(path, classes=16, name="P")
            for array in (part.records, part.positions, part.logits.numpy())
        ]

    path = probed / FIRST
    good, expected, errors = path.read_bytes(), everything(), 0
    dtype = good.rindex(b"float32")
    for number, place in enumerate([*range(0, len(good), 5), *range(dtype, dtype + 7)]):
        flip(path, place, 7 if place >= dtype else number % 8)
        try:
            assert everything() == expected, place
        except CorruptShardError as error:
            errors += 1
            assert str(error).startswith("P: ")
        path.write_bytes(good)
    assert errors > len(good) / 5 / 2


def test_a_lost_receipt_is_made_again_with_probes_and_digest(
    precompute: Precompute, probed: Path
) -> None:
    before = contents(probed)
    (probed / "data" / "train-00001.parquet").unlink()
    repair(probed, verify(probed))
    assert {name for name in contents(probed) if "0000" in name} == {
        "data/train-00000.parquet", FIRST, "receipts/00000.json",
    }  # fmt: skip
    receipt = probed / "receipts" / "00000.json"
    expected = json.loads(receipt.read_bytes())
    assert expected["probes"] == 5
    receipt.unlink()
    with begin(
        probed, sl.LabelSet.open(probed, unfinished=True).plan, save_tokenizer=None
    ) as writer:
        made = writer.receipt(0)
    assert made is not None
    expected["seconds"] = None  # which no shard knows
    assert json.loads(made.model_dump_json()) == json.loads(receipt.read_bytes()) == expected
    precompute(probed, probes=10)
    assert contents(probed) == before


def test_a_derived_set_has_the_same_probes(probed: Path, tmp_path: Path) -> None:
    derived = sl.derive(probed, tmp_path / "derived", codec="compact", k=2)
    assert contents(derived.root / "probes") == contents(probed / "probes")
    assert places(derived) == places(sl.LabelSet.open(probed))
    assert derived.totals.probes == derived.plan.probes == 10
    assert verify(derived.root).findings == ()


def read_probes(path: Path, classes: int) -> list[tuple[int, int, np.ndarray]]:
    """Written from docs/FORMAT.md alone: record, position and the bytes of the logits, (V, w)."""
    dtype = pq.read_metadata(path).metadata[b"softlabels.dtype"].decode()
    width = {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]
    found = []
    for row in pq.ParquetFile(path).read().to_pylist():
        frame, end = row["logits"][:-1], row["logits"][-1:]
        assert end == b"\x01"
        assert zstandard.get_frame_parameters(frame).has_checksum
        assert zstandard.frame_content_size(frame) == classes * width
        planes = np.frombuffer(zstandard.decompress(frame), np.uint8).reshape(width, classes)
        found.append((row["record"], row["position"], planes.T))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_file_is_what_the_format_says(
    precompute: Precompute, tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = table(dtype)
    labels = precompute(tmp_path / "set", teacher=teacher(weights), probes=10)
    schema = pq.read_schema(labels.root / FIRST)
    assert [(f.name, str(f.type), f.nullable) for f in schema] == [
        ("record", "int64", False), ("position", "int32", False), ("logits", "binary", False),
    ]  # fmt: skip
    found = [read_probes(labels.root / name, 16) for name in (FIRST, SECOND)]
    rows = labels.receipts[0].rows
    numbers = [(r, t) for r, t, _ in found[0]] + [(r + rows, t) for r, t, _ in found[1]]
    assert numbers == places(labels)
    for (record, position), (_, _, raw) in zip(numbers, [*found[0], *found[1]], strict=True):
        token = labels.take([record]).token_ids[position]
        bits = weights[token].view(torch.uint8).numpy().reshape(16, -1)  # little-endian
        assert np.array_equal(raw, bits)
    for receipt in labels.receipts:
        assert receipt.probes == 5


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_probes_of_any_size_come_back(tmp_path_factory: Any, data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([1, 2, 63, 64, 65, 129]))
    classes = data.draw(st.sampled_from([1, 2, 255, 256, 257, 1000]))
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    bits = rng.integers(0, 256, (count, classes * dtype.itemsize), np.uint8)  # NaN payloads too
    given_ = probes.Probes(
        np.sort(rng.integers(0, 1 << 40, count)), rng.integers(0, 1 << 31, count),
        torch.from_numpy(bits).view(dtype),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("probes") / "p.parquet"
    probes.write(path, given_)
    found = list(probes.read(path, classes=classes, name="P"))
    assert all(0 < len(part) <= 64 for part in found)
    for name in ("records", "positions"):
        joined = np.concatenate([getattr(part, name) for part in found])
        assert np.array_equal(joined, getattr(given_, name))
    assert torch.cat([part.logits for part in found]).view(torch.uint8).numpy().tobytes() == (
        bits.tobytes()
    )
    with pytest.raises(CorruptShardError, match="P: "):
        list(probes.read(path, classes=classes + 1, name="P"))


@pytest.mark.parametrize("lost", ["data/train-00000.parquet", "receipts/00000.json"])
def test_damaged_probes_of_an_unfinished_set_can_be_repaired(
    precompute: Precompute, probed: Path, lost: str
) -> None:
    """Killed between probes and shard, or before the receipt; then a bit flips."""
    before = contents(probed)
    (probed / "data" / "train-00001.parquet").unlink()
    repair(probed, verify(probed))
    (probed / lost).unlink()
    (probed / "receipts" / "00000.json").unlink(missing_ok=True)
    flip_page(probed)
    with pytest.raises(CorruptShardError, match=FIRST):
        precompute(probed, probes=10)
    assert FIRST in repair(probed, verify(probed))
    precompute(probed, probes=10)
    assert contents(probed) == before


@pytest.mark.parametrize("finished", [True, False])
def test_lost_probes_are_named_or_made_again_by_the_same_call(
    precompute: Precompute, probed: Path, finished: bool
) -> None:
    """As a lost shard is; unfinished, no receipt tells how many there were."""
    before = contents(probed)
    remove(probed)
    if not finished:
        (probed / "manifest.json").unlink()
    try:
        precompute(probed, probes=10)
    except CorruptShardError as error:
        assert FIRST in str(error)
    else:
        assert contents(probed) == before

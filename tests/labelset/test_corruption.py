"""A flipped bit, a file cut, moved or added: found and named, never read as labels."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_set import contents

import softlabels as sl
from softlabels.cli.app import run
from softlabels.errors import CorruptShardError, LabelSetError, SoftLabelsError
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]
FIRST, SECOND = "data/train-00000.parquet", "data/train-00001.parquet"


def bits_of(labels: sl.SoftLabels) -> list[bytes]:
    tensors = (labels.ids, labels.log_probs, labels.logsumexp, labels.log_tails)
    return [
        tensor.numpy().tobytes()
        for tensor in (*tensors, labels.hard_log_probs, labels.mask)
        if tensor is not None
    ]


def everything(root: Path) -> list[Any]:
    """All that the set and the loader hand out, bit for bit."""
    labels = sl.LabelSet.open(root)
    found: list[Any] = [labels.identities.to_pylist()]
    found += [bits_of(labels[i]) for i in range(len(labels))]
    # Without threads: one would still read when the file is written again, and end the process.
    for batch in sl.loader(labels, batch_size=3, threads=0):
        found.append((batch["key"], batch["part"].tolist(), batch["next_ids"].tolist()))
        found.append(batch["input_ids"].numpy().tobytes())
        found.append(bits_of(batch["soft_labels"]))
    return found


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def places(size: int, footer: int, *, count: int) -> list[int]:
    """Places to flip: both magics and the footer's length, and a seeded sample of all the rest."""
    fixed = [*range(8), *range(size - 8, size), size - footer - 1, size - footer]
    rng = np.random.default_rng(7)
    pages = rng.choice(size - footer, count // 2, replace=False)
    metadata = size - footer + rng.choice(footer, count - count // 2, replace=False)
    return sorted({*fixed, *pages.tolist(), *metadata.tolist()})


def test_a_flipped_bit_anywhere_in_a_shard_is_found_and_never_read_as_labels(
    tiny: Path, pristine: Path
) -> None:
    shard, expected = tiny / FIRST, everything(tiny)
    good = shard.read_bytes()
    footer = int.from_bytes(good[-8:-4], "little") + 8
    corrupt = 0
    for number, place in enumerate(places(len(good), footer, count=300)):
        flip(shard, place, number % 8)
        report = verify(tiny)
        assert {finding.file for finding in report.findings} == {FIRST}, place
        try:
            assert everything(tiny) == expected, place
        except CorruptShardError as error:
            corrupt += 1
            assert FIRST in str(error)
        shard.write_bytes(good)
    # Only the leading magic is covered by nothing but the file's sha256, and read by nobody.
    assert corrupt > 290
    assert everything(tiny) == everything(pristine)


@pytest.mark.parametrize("place", ["magic", "page", "footer"])
def test_verify_on_the_command_line_exits_1_for_a_flipped_bit_and_names_the_file(
    tiny: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    size = (tiny / SECOND).stat().st_size
    flip(tiny / SECOND, {"magic": 0, "page": 300, "footer": size - 100}[place], 3)
    assert run(["verify", str(tiny)]) == 1
    assert SECOND in capsys.readouterr().out
    assert run(["verify", str(tiny), "--json"]) == 1
    assert {f["file"] for f in json.loads(capsys.readouterr().out)["findings"]} == {SECOND}


def test_a_flipped_bit_in_a_shard_whose_receipt_was_lost_stops_the_run_in_words_or_is_harmless(
    tiny: Path, precompute: Precompute
) -> None:
    """Without a receipt only Parquet's own page checksums are left."""
    (tiny / "manifest.json").unlink()
    shard, before = tiny / FIRST, contents(tiny)
    good = shard.read_bytes()
    footer = int.from_bytes(good[-8:-4], "little") + 8
    rng = np.random.default_rng(3)
    for number, place in enumerate(places(len(good), footer, count=40)):
        if place >= len(good) - footer and rng.random() < 0.5:
            continue
        flip(shard, place, number % 8)
        try:
            precompute(tiny)
        except SoftLabelsError as error:
            assert FIRST in str(error), place
        shutil.rmtree(tiny / "receipts", ignore_errors=True)
        (tiny / "manifest.json").unlink(missing_ok=True)
        shard.write_bytes(good)
    precompute(tiny)
    assert {k: v for k, v in contents(tiny).items() if k in before} == before


def cut(root: Path) -> None:
    os.truncate(root / FIRST, (root / FIRST).stat().st_size - 1)


def halve(root: Path) -> None:
    os.truncate(root / FIRST, (root / FIRST).stat().st_size // 2)


def empty(root: Path) -> None:
    os.truncate(root / FIRST, 0)


def lengthen(root: Path) -> None:
    with (root / FIRST).open("ab") as file:
        file.write(b"\0")


def remove(root: Path) -> None:
    (root / FIRST).unlink()


def swap(root: Path) -> None:
    first, second = (root / FIRST).read_bytes(), (root / SECOND).read_bytes()
    (root / FIRST).write_bytes(second)
    (root / SECOND).write_bytes(first)


def stray(root: Path) -> None:
    shutil.copy(root / FIRST, root / "data" / "train-00002.parquet")


def change_table(root: Path) -> None:
    flip(root / "shards.parquet", 100, 0)


def cut_table(root: Path) -> None:
    os.truncate(root / "shards.parquet", 100)


def remove_table(root: Path) -> None:
    (root / "shards.parquet").unlink()


def change_card(root: Path) -> None:
    flip(root / "README.md", 100, 0)


def remove_card(root: Path) -> None:
    (root / "README.md").unlink()


def edit_manifest(root: Path, old: str, new: str) -> None:
    text = (root / "manifest.json").read_text()
    assert text.count(old) >= 1
    (root / "manifest.json").write_text(text.replace(old, new, 1))


def break_manifest(root: Path) -> None:
    edit_manifest(root, "{", "(")


def change_totals(root: Path) -> None:
    edit_manifest(root, '"shards": 2', '"shards": 3')


def change_format(root: Path) -> None:
    edit_manifest(root, '"format": "1.0"', '"format": "1.O"')


def change_plan_digest(root: Path) -> None:
    found = json.loads((root / "manifest.json").read_text())["plan_sha256"]
    edit_manifest(root, found, found[::-1])


REPAIRABLE: list[tuple[Callable[[Path], None], set[str]]] = [
    (cut, {FIRST}),
    (halve, {FIRST}),
    (empty, {FIRST}),
    (lengthen, {FIRST}),
    (remove, {FIRST}),
    (swap, {FIRST, SECOND}),
    (stray, {"data/train-00002.parquet"}),
    (change_table, {"shards.parquet"}),
    (cut_table, {"shards.parquet"}),
    (remove_table, {"shards.parquet"}),
    (change_card, {"README.md"}),
    (remove_card, {"README.md"}),
    (break_manifest, {"manifest.json"}),
    (change_totals, {"manifest.json"}),
    (change_format, {"manifest.json"}),
    (change_plan_digest, {"manifest.json"}),
]


@pytest.mark.parametrize(("damage", "files"), REPAIRABLE, ids=lambda x: getattr(x, "__name__", ""))
def test_damage_is_named_and_after_repair_the_same_command_makes_the_same_set(
    tiny: Path,
    precompute: Precompute,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    files: set[str],
) -> None:
    before = contents(tiny)
    damage(tiny)
    assert {finding.file for finding in verify(tiny).findings} == files
    assert run(["verify", str(tiny), "--repair"]) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in files)
    untouched = {name for name in (FIRST, SECOND) if name not in files}
    assert untouched <= contents(tiny).keys(), "repair dropped a shard that is well"
    assert not (tiny / "manifest.json").exists()
    precompute(tiny)
    assert contents(tiny) == before
    assert run(["verify", str(tiny)]) == 0


@pytest.mark.parametrize(("damage", "files"), REPAIRABLE, ids=lambda x: getattr(x, "__name__", ""))
def test_damage_is_never_read_as_other_labels(
    tiny: Path, damage: Callable[[Path], None], files: set[str]
) -> None:
    expected = everything(tiny)
    damage(tiny)
    try:
        assert everything(tiny) == expected
    except LabelSetError:
        assert damage not in (stray, change_card, remove_card, change_totals)


def test_a_changed_plan_is_named_and_repair_drops_nothing_because_it_cannot_be_made_again(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (tiny / "plan.json").read_text()
    (tiny / "plan.json").write_text(text.replace('"name": "table"', '"name": "other"'))
    before = contents(tiny)
    assert {finding.file for finding in verify(tiny).findings} == {"plan.json"}
    assert run(["verify", str(tiny), "--repair"]) == 1
    assert "plan.json" in capsys.readouterr().out
    assert contents(tiny) == before
    with pytest.raises(CorruptShardError, match=r"plan\.json"):
        sl.LabelSet.open(tiny)


def test_every_bit_of_the_small_files_is_watched(tiny: Path) -> None:
    for name in ("plan.json", "manifest.json", "README.md", "shards.parquet"):
        path = tiny / name
        good = path.read_bytes()
        for place in range(0, len(good), max(1, len(good) // 40)):
            flip(path, place, place % 7)
            findings = verify(tiny).findings
            assert findings, f"{name}, byte {place}"
            # A manifest with another name in it says that this other file is missing.
            assert name == "manifest.json" or {f.file for f in findings} == {name}
            path.write_bytes(good)


def test_a_damaged_tokenizer_is_named_dropped_and_saved_again(
    finished_set: Path, teacher_dir: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished_set, tmp_path / "labels"))
    before = contents(root)
    flip(root / "tokenizer" / "tokenizer.json", 50, 0)
    assert [f.file for f in verify(root).findings] == ["tokenizer/tokenizer.json"]
    assert run(["verify", str(root), "--repair"]) == 1
    sl.precompute(
        rows,
        teacher_dir,
        root,
        selection=sl.TopK(16),
        key="id",
        codec="plain",
        max_length=64,
        unit_rows=16,
        batch_tokens=512,
        progress=False,
    )
    assert contents(root) == before


def test_a_finished_set_that_lost_a_shard_is_made_whole_without_repair(
    tiny: Path, precompute: Precompute
) -> None:
    before = contents(tiny)
    (tiny / FIRST).unlink()
    precompute(tiny)
    assert contents(tiny) == before


def test_a_damaged_receipt_of_an_unfinished_set_is_named_and_rebuilt(
    tiny: Path, precompute: Precompute
) -> None:
    before = contents(tiny)
    (tiny / FIRST).unlink()
    assert run(["verify", str(tiny), "--repair"]) == 1
    assert not (tiny / "manifest.json").exists()
    (tiny / "receipts" / "00001.json").write_text("{")
    assert [f.file for f in verify(tiny).findings] == ["receipts/00001.json"]
    assert run(["verify", str(tiny), "--repair"]) == 1
    precompute(tiny)
    assert contents(tiny) == before


def test_two_logits_that_round_to_one_log_prob_are_no_finding(
    tmp_path: Path, precompute: Precompute
) -> None:
    """Entries are in the order of logits; log-probs of float32 may tie where logits do not."""
    import torch

    logits = torch.full((16, 16), -100.0)
    logits[:, 3], logits[:, 9] = 0.25, 0.25 + 2**-24
    logits[:, 1] = 10.0
    ids = precompute(
        tmp_path / "labels",
        teacher=sl.teachers.from_callable(
            lambda ids: logits[ids], name="ties", version="1", classes=16
        ),
    )[0].ids
    assert ids[0].tolist() == [1, 9, 3]
    assert verify(tmp_path / "labels").findings == ()


def test_a_sample_of_many_windows_may_span_row_groups(
    tmp_path: Path, precompute: Precompute
) -> None:
    rows = [{"id": "long", "ids": [1, 2, 3, 4] * 5000}, {"id": "short", "ids": [1]}]
    labels = precompute(tmp_path / "labels", rows, max_length=64)
    assert len(labels.row_groups) == 2
    assert labels.parts("long") == list(range(313))
    assert verify(labels.root).findings == ()


def test_a_repeated_key_is_found_and_repair_drops_nothing(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shard is at fault alone, so there is none to drop."""
    from softlabels.labelset import tables

    monkeypatch.setattr(tables, "check_unique", lambda *_, **__: None)
    rows = [{"id": "twice", "ids": [1]}, {"id": "once", "ids": [2]}, {"id": "twice", "ids": [3]}]
    root = precompute(tmp_path / "labels", iter(rows), unit_rows=1).root
    before = contents(root)
    (finding,) = verify(root).findings
    assert finding.file == "data"
    assert '"twice"' in finding.problem
    assert run(["verify", str(root), "--repair"]) == 1
    assert contents(root) == before


def test_shards_without_a_receipt_are_looked_at_too(tiny: Path) -> None:
    (tiny / "manifest.json").unlink()
    assert verify(tiny).findings == ()
    assert verify(tiny).shards == 2
    (tiny / FIRST).write_bytes(b"garbage")
    (tiny / "data" / "stray.txt").write_text("x")
    found = {finding.file for finding in verify(tiny).findings}
    assert found == {FIRST, "data/stray.txt"}

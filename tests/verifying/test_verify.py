"""verify by several threads, what it tells meanwhile, and the command that makes a set whole."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_set import contents

import softlabels as sl
from softlabels.cli.app import run
from softlabels.labelset.writer import begin
from softlabels.verifying.again import command
from softlabels.verifying.verify import repair, verify

Precompute = Callable[..., sl.LabelSet]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("finished", [True, False])
def test_threads_find_what_one_finds_in_the_same_order(
    precompute: Precompute, tmp_path: Path, finished: bool
) -> None:
    root = precompute(tmp_path / "set", unit_rows=1, probes=6).root
    if not finished:
        flip(root / "data/train-00000.parquet")
        repair(root, verify(root))
    for unit in (4, 1, 3):
        flip(root / f"data/train-{unit:05d}.parquet")
    flip(root / "probes/train-00002.parquet")
    reports = [verify(root, workers=workers) for workers in (1, 3)]
    assert reports[0] == reports[1]
    assert (reports[0].finished, reports[0].shards) == (finished, 6 if finished else 5)
    names = ["data/train-00001", "probes/train-00002", "data/train-00003", "data/train-00004"]
    found = [finding.file for finding in reports[0].findings]
    assert list(dict.fromkeys(found)) == [f"{name}.parquet" for name in names]


def test_a_class_that_is_kept_twice_is_found_and_unused_entries_are_not(
    precompute: Precompute, tmp_path: Path
) -> None:
    source = precompute(tmp_path / "source")
    records, receipt = next(source.groups()), source.receipts[0]
    twice, fine = (records.labels.map(torch.Tensor.clone) for _ in range(2))
    twice.ids[2, 1] = twice.ids[2, 0]
    assert fine.log_tails is not None
    fine.ids[:, 1:], fine.log_probs[:, 1:] = 0, -torch.inf
    fine.log_tails[:, 0] = torch.log1p(-fine.log_probs[:, 0].exp())
    found = {}
    for name, labels in {"twice": twice, "fine": fine}.items():
        with begin(tmp_path / name, source.plan, save_tokenizer=None) as writer:
            summary = source.open_shard(receipt).summary()
            writer.publish(replace(records, labels=labels), summary)
            writer.finish(1)
        found[name] = [finding.problem for finding in verify(tmp_path / name).findings]
    assert found == {"twice": ["row group 0: a class is kept twice at one position"], "fine": []}


def change(root: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data, indent=2))


def test_a_misspelt_field_of_the_manifest_is_found_and_one_of_later_versions_is_not(
    tiny: Path,
) -> None:
    change(tiny, lambda data: data.update(later=1))
    change(tiny, lambda data: data["totals"].update(later=2))
    assert verify(tiny).findings == ()
    change(tiny, lambda data: data["totals"].pop("probes"))
    (finding,) = verify(tiny).findings
    assert (finding.file, finding.problem) == (
        "manifest.json", "the name of a field was changed",
    )  # fmt: skip


def test_another_footer_of_the_shard_table_is_found(tiny: Path) -> None:
    change(tiny, lambda data: data["shards_footer"].update(sha256="0" * 64))
    (finding,) = verify(tiny).findings
    assert finding.file == "manifest.json"
    assert "shards_footer" in finding.problem


def test_progress_counts_shards_and_the_bytes_that_were_read(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = sl.LabelSet.open(tiny).totals
    assert verify(tiny, progress=True).findings == ()
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    told = [last[name] for name in ("event", "doing", "units", "bytes", "tokens", "share")]
    assert told == ["finished", "verifying", 2, totals.bytes, totals.positions, 1.0]


def repaired(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The words of the command that `verify --repair` names, and its note."""
    capsys.readouterr()
    assert run(["verify", str(root), "--repair", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["dropped"]
    return shlex.split(found["again"]), found["note"]


def test_the_command_that_repair_names_makes_the_set_whole(
    teacher_dir: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the plan alone, and so with names where there were paths."""
    data = tmp_path / "my texts.jsonl"
    data.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows[1:6], {"id": "v", "text": ""}])
    )
    root = tmp_path / "set"
    flags = [
        "--key", "id", "--k", "5", "--max-length", "32", "--on-long", "truncate", "--unit-rows",
        "2", "--temperatures", "1", "3", "--codec", "plain", "--no-store-inputs", "--probes",
        "4", "--on-error", "skip", "--quiet",
    ]  # fmt: skip
    names = ["--teacher", str(teacher_dir), "--data", str(data), "--out", str(root)]
    assert run(["precompute", *names, *flags]) == 0
    before = contents(root)
    flip(root / "data/train-00001.parquet")
    words, note = repaired(root, capsys)
    assert "give teacher and data by where they lie" in note
    assert [word for word in words if word.startswith("/")] == [str(root)]
    where = {teacher_dir.name: str(teacher_dir), data.name: str(data)}
    assert run([where.get(word, word) for word in words[1:]]) == 0
    assert contents(root) == before


def test_the_command_of_a_derived_set_makes_it_whole(
    precompute: Precompute,
    id_rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = [precompute(tmp_path / "a", id_rows[:4]), precompute(tmp_path / "b", id_rows[4:])]
    (tmp_path / "keys").write_text("s0\ns1\ns5\ns4\n")
    root = sl.derive(
        sets[0], tmp_path / "set", merge=sets[1:], codec="compact", k=2, keys=tmp_path / "keys",
        where="positions > 1 and mass > .01", fraction=0.9, seed=3, shard_records=2,
    ).root  # fmt: skip
    before = contents(root)
    flip(root / "data/train-00000.parquet")
    words, note = repaired(root, capsys)
    assert note.count("…") == 2
    assert sl.LabelSet.open(sets[1].root).finished
    where = {"SOURCE": sets[0].root, "SOURCE2": sets[1].root, "KEYS": tmp_path / "keys"}
    assert run([str(where.get(word, word)) for word in words[1:]]) == 0
    assert contents(root) == before


SELECTIONS = {
    "--k 3": sl.TopK(3),
    "--top-p 0.9 --k 5": sl.TopP(0.9, 5),
    "--draws 4 --draw-seed 7": sl.Sampled(4, seed=7),
    "--draws 4 --head 2 --draw-seed 0": sl.Sampled(4, head=2),
    "--dense": sl.Dense(),
}


@pytest.mark.parametrize("flags", SELECTIONS)
def test_the_command_says_the_selection_as_flags_do(
    precompute: Precompute, tmp_path: Path, flags: str
) -> None:
    options = {"selection": SELECTIONS[flags], "codec": None, "temperatures": None}
    plan = precompute(tmp_path / "set", **options).plan
    text, note = command(plan, "set")
    assert text is None
    assert note == "run the same precompute again in Python; its teacher is the callable table 1"
    module = plan.teacher.model_copy(update={"engine": "transformers", "name": "org/model"})
    text, _ = command(plan.model_copy(update={"teacher": module}), "set")
    assert text is not None
    assert f" {flags} --codec {plan.codec['name']}" in text


def test_a_server_s_address_is_not_in_the_plan_and_not_in_the_command(
    precompute: Precompute, tmp_path: Path
) -> None:
    plan = precompute(tmp_path / "set").plan
    server = plan.teacher.model_copy(update={"engine": "openai-server", "name": "org/m; rm -r ~"})
    text, _ = command(plan.model_copy(update={"teacher": server}), "my set")
    assert text is not None
    words = shlex.split(text)
    assert words[2:6] == ["--teacher", "ADDRESS", "--model", "org/m; rm -r ~"]
    assert words[words.index("--out") + 1] == "my set"


def test_of_a_changed_plan_no_command_is_made(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny, tiny.parent / "copy")
    (tiny / "plan.json").write_text("{}")
    assert run(["verify", str(tiny), "--repair", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["dropped"], "again" in found) == ([], False)

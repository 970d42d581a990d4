"""`softlabels derive`, and what `info` and `precompute` say of derived sets, limits and probes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.cli.arguments import DeriveArguments
from softlabels.codecs.limit import limit
from softlabels.labels import concatenate

Precompute = Callable[..., sl.LabelSet]


@pytest.fixture
def source(tmp_path: Path, precompute: Precompute) -> Path:
    return precompute(tmp_path / "src", selection=sl.TopK(8), codec="lossless", probes=5).root


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def row(out: str, name: str) -> str:
    """The value beside a name in the table of `info`."""
    (found,) = re.findall(rf"^ *{name} {{2,}}(.*?) *$", out, re.MULTILINE)
    return str(found)


def test_a_set_is_derived_as_the_library_derives_it(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dst"
    done = softlabels("derive", source, out, "--codec", "compact", "--k", 4, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert contents(out) == contents(
        sl.derive(source, tmp_path / "same", codec="compact", k=4).root
    )
    totals = sl.LabelSet.open(out).totals
    assert f"{out}: {totals.records} records of 6 samples, {totals.positions} positions" in done.out
    assert f"next: softlabels show {out}" in done.out
    assert softlabels("verify", out).code == 0


def test_without_flags_codec_and_entries_stay(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    assert softlabels("derive", source, tmp_path / "dst", "--quiet").code == 0
    plan = sl.LabelSet.open(tmp_path / "dst").plan
    assert (plan.codec["name"], plan.selection.k) == ("lossless", 8)


def test_json_is_the_totals_and_the_same_command_again_is_well(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    command = ("derive", source, tmp_path / "dst", "--codec", "tiny", "--k", 3, "--json", "--quiet")
    first, second = softlabels(*command), softlabels(*command)
    assert (first.code, first.err) == (second.code, second.err) == (0, "")
    assert first.json == second.json == sl.LabelSet.open(tmp_path / "dst").totals.model_dump()


def test_progress_is_a_line_on_standard_error(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    done = softlabels("derive", source, tmp_path / "dst", "--json")
    positions = sl.LabelSet.open(source).totals.positions
    last = json.loads(done.err.splitlines()[-1])
    assert (last["event"], last["doing"]) == ("finished", "deriving")
    assert (last["source_rows"], last["tokens"]) == (6, positions)
    assert done.json["positions"] == positions


def test_help_lists_every_flag(softlabels: Any) -> None:
    done = softlabels("derive", "--help")
    assert done.code == 0
    listed = dict(
        re.findall(r"^│.*?(--[a-z-]+)(?: [A-Z.]+)? {2,}(\w.*?) *│$", done.out, re.MULTILINE)
    )
    assert list(listed) == [
        f"--{field.name.replace('_', '-')}"
        for field in fields(DeriveArguments)
        if field.name != "_"
    ]
    for words in ("SOURCE", "OUT", "compact, tiny, lossless, plain", "--debug"):
        assert words in done.out
    assert "derive" in softlabels("--help").out


WRONG = {
    "no source": ((), {}, "is not a label set: there is no such folder"),
    "more entries": (("--k", "9"), {}, "k is 9; the source holds 8 entries"),
    "no entries": (("--k", "0"), {}, "k is 0"),
    "no number": (("--k", "many"), {}, '"many"'),
    "no codec": (("--codec", "sampled"), {}, "choose from tiny, compact, lossless, plain"),
    "unknown codec": (("--codec", "zip"), {}, 'there is no codec "zip"; choose from tiny'),
    "no flag": (("--frob",), {}, "--frob"),
    "lossless of plain": (("--codec", "lossless"), {"codec": "plain"}, "from lossless alone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_line_and_exits_2(
    softlabels: Any, precompute: Precompute, tmp_path: Path, name: str
) -> None:
    flags, options, words = WRONG[name]
    if name != "no source":
        precompute(tmp_path / "src", selection=sl.TopK(8), **({"codec": "lossless"} | options))
    done = softlabels("derive", tmp_path / "src", tmp_path / "dst", *flags)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    message = done.err.removesuffix("`softlabels --help` shows the commands\n")
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "dst").exists()


def test_other_settings_and_another_folder_are_refused_in_a_line(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dst"
    assert softlabels("derive", source, out, "--k", 4, "--quiet").code == 0
    for arguments, words in [
        ((source, out, "--k", 5), "selection.k was 4, is now 5"),
        ((source, source), "was begun with another recipe"),
        ((source, tmp_path), "holds something else"),
        ((source,), "--out requires an argument"),
    ]:
        done = softlabels("derive", *arguments)
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert done.err.startswith("error: ")


def test_a_damaged_source_exits_1_and_is_named(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    damage(source)
    done = softlabels("derive", source, tmp_path / "dst", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert "data/train-00001.parquet" in done.err
    assert done.err.count("\n") == 1


def damage(root: Path) -> None:
    """Flip a bit, which nothing but reading the labels finds."""
    path = root / "data" / "train-00001.parquet"
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)


def test_info_says_where_a_set_came_from_its_probes_and_its_limit(
    softlabels: Any, source: Path, tmp_path: Path
) -> None:
    out = softlabels("info", source).out
    assert row(out, "derived from") == "the teacher itself"
    assert row(out, "probes") == "5 positions with dense logits"
    middle = sl.derive(source, tmp_path / "middle", codec="plain", k=5)
    last = sl.derive(middle, tmp_path / "last", codec="compact", k=3)
    out = softlabels("info", last.root).out
    assert row(out, "derived from") == "plain, k = 5 ← lossless, k = 8"
    assert row(out, "probes") == "5 positions with dense logits"
    least = limit(concatenate([records.labels for records in last.groups()]))
    assert row(out, "limit") == (
        f"{least.total:.1f} a position for ids ({least.ids:.1f}) and values ({least.values:.1f}), "
        "by their entropy"
    )
    found = softlabels("info", last.root, "--json").json
    assert found["limit"] == pytest.approx(asdict(least))
    assert found["totals"]["probes"] == found["plan"]["probes"] == 5
    origins = [(origin["codec"], origin["k"]) for origin in found["plan"]["derived_from"]]
    assert origins == [("lossless", 8), ("plain", 5)]


def test_info_of_a_set_without_probes_or_records_says_so(
    softlabels: Any, precompute: Precompute, tmp_path: Path
) -> None:
    precompute(tmp_path / "set", [{"id": "void", "ids": [99]}], on_error="skip")
    out = softlabels("info", tmp_path / "set").out
    assert row(out, "probes") == "none"
    assert row(out, "limit").startswith("none")
    assert softlabels("info", tmp_path / "set", "--json").json["limit"] is None


def test_the_limit_of_a_large_set_is_that_of_a_sample_and_near(
    softlabels: Any, precompute: Precompute, tmp_path: Path
) -> None:
    rows = [{"id": f"r{i}", "ids": [(i * j) % 16 for j in range(100)]} for i in range(400)]
    labels = precompute(tmp_path / "set", rows, max_length=100, unit_rows=200, codec="compact")
    assert labels.totals.positions == 40_000
    found = softlabels("info", labels.root, "--json").json["limit"]
    least = asdict(limit(concatenate([records.labels for records in labels.groups()])))
    assert found != pytest.approx(least, rel=1e-9)
    assert found == pytest.approx(least, rel=0.02)


def test_info_of_a_damaged_set_still_prints(softlabels: Any, source: Path) -> None:
    damage(source)
    done = softlabels("info", source)
    assert (done.code, done.err) == (0, "")
    assert row(done.out, "limit") == "not known: the labels cannot be read"
    assert row(done.out, "codec") == "lossless"
    found = softlabels("info", source, "--json")
    assert (found.code, found.json["limit"]) == (0, None)
    assert found.json["totals"]["records"] == len(sl.LabelSet.open(source))


@pytest.mark.parametrize(
    ("codec", "k", "kept", "name"),
    [
        ("tiny", None, 8, "compact"),
        ("tiny", 3, 3, "compact"),
        ("lossless", 3, 3, "lossless"),
        ("plain", None, 64, "plain"),
        (None, None, 64, "compact"),
    ],
)
def test_precompute_takes_codecs_by_intent_and_probes(
    softlabels: Any, teacher_dir: Path, data_file: Path, tmp_path: Path,
    codec: str | None, k: int | None, kept: int, name: str,
) -> None:  # fmt: skip
    flags = [("--codec", codec), ("--k", k)]
    done = softlabels(
        "precompute", "--teacher", teacher_dir, "--data", data_file, "--out", tmp_path / "set",
        "--max-length", 48, "--key", "id", "--probes", 5, "--quiet", "--json",
        *(word for flag, value in flags if value is not None for word in (flag, value)),
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    labels = sl.LabelSet.open(tmp_path / "set")
    assert (labels.plan.codec["name"], labels.plan.selection.k) == (name, kept)
    assert done.json["probes"] == labels.totals.probes == 5
    assert sum(map(len, labels.probes())) == 5
    assert row(softlabels("info", tmp_path / "set").out, "probes").startswith("5 positions")


def test_probes_that_are_no_number_from_0_on_are_refused_in_a_line(
    softlabels: Any, teacher_dir: Path, data_file: Path, tmp_path: Path
) -> None:
    for value, words in [(-1, "probes is -1"), ("some", '"some"')]:
        done = softlabels(
            "precompute", "--teacher", teacher_dir, "--data", data_file, "--out", tmp_path / "set",
            "--max-length", 48, f"--probes={value}", "--quiet",
        )  # fmt: skip
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert not (tmp_path / "set").exists()


def test_a_fraction_of_an_entry_is_refused(softlabels: Any, source: Path, tmp_path: Path) -> None:
    done = softlabels("derive", source, tmp_path / "dst", "--k", "4.6", "--quiet")
    assert done.code == 2
    assert "4.6" in done.err


def test_a_process_that_derives_imports_neither_transformers_nor_datasets(
    source: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from softlabels.cli import run; "
        f"code = run(['derive', {str(source)!r}, {str(tmp_path / 'dst')!r}, '--k', '4']); "
        "print(code, sorted({'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["0 []"]), done.stderr

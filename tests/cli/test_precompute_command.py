"""`softlabels precompute`: the same fields from flags or a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl

YAML = "teacher: {teacher}\ndata: {data}\nout: {out}\nkey: id\nk: 8\nmax_length: 32\nquiet: true\n"
TOML = 'teacher = "{teacher}"\ndata = "{data}"\nout = "{out}"\nkey = "id"\nk = 8\nmax_length = 32\n'


def config(tmp_path: Path, kind: str, **fields: Any) -> Path:
    """A file of the same recipe in each notation."""
    path = tmp_path / f"run.{kind}"
    if kind == "json":
        fields = {name: str(value) for name, value in fields.items()}
        path.write_text(json.dumps({**fields, "key": "id", "k": 8, "max_length": 32}))
    else:
        path.write_text((TOML if kind == "toml" else YAML).format(**fields))
    return path


def test_flags_reach_the_plan(
    softlabels: Any, tmp_path: Path, teacher_dir: Path, data_file: Path
) -> None:
    out = tmp_path / "set"
    done = softlabels(
        "precompute", "--teacher", teacher_dir, "--data", data_file, "--out", out, "--key", "id",
        "--column", "text", "--k", 5, "--max-length", 48, "--overlap", 4, "--on-long", "truncate",
        "--temperatures", 1, 3, "--codec", "plain", "--no-store-inputs", "--limit", 6,
        "--on-error", "skip", "--unit-rows", 4, "--batch-tokens", 128, "--dtype", "float32",
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    labels = sl.LabelSet.open(out)
    plan = labels.plan
    assert (plan.data.name, plan.data.key, plan.data.limit) == ("rows.jsonl", "id", 6)
    assert (plan.selection.k, plan.temperatures, plan.store_inputs) == (5, (1.0, 3.0), False)
    assert (plan.unit_rows, plan.batch_tokens) == (4, 128)
    preparation = plan.preparation
    assert (preparation.max_length, preparation.overlap) == (48, 4)
    assert preparation.on_long == "truncate"
    assert f"{labels.totals.records:,} records of 6 samples" in done.out
    assert f"next: softlabels show {out}" in done.out
    if labels.totals.truncated:
        assert f"{labels.totals.truncated:,} samples were cut at 48 tokens" in done.out


@pytest.mark.parametrize("kind", ["yaml", "toml", "json"])
def test_a_file_holds_the_same_fields_and_flags_win(
    softlabels: Any, tmp_path: Path, teacher_dir: Path, data_file: Path, kind: str
) -> None:
    out = tmp_path / "set"
    path = config(tmp_path, kind, teacher=teacher_dir, data=data_file, out=out)
    done = softlabels("precompute", "--config", path, "--k", 4, "--limit", 2, "--quiet", "--json")
    assert (done.code, done.err) == (0, "")
    labels = sl.LabelSet.open(out)
    assert (labels.plan.selection.k, labels.plan.preparation.max_length) == (4, 32)
    assert done.json == labels.totals.model_dump()
    # Again with the file's own k: another recipe, refused by name.
    done = softlabels("precompute", f"--config={path}", "--limit", 2, "--quiet")
    assert done.code == 2
    assert "selection.k was 4, is now 8" in done.err


@pytest.mark.parametrize("kind", ["yaml", "toml", "json"])
def test_an_unknown_field_of_a_file_is_refused_by_name(
    softlabels: Any, tmp_path: Path, kind: str
) -> None:
    path = config(tmp_path, kind, teacher="t", data="d", out=tmp_path / "set")
    text = path.read_text()
    more = {"yaml": "topk: 3\n", "toml": "topk = 3\n", "json": ""}[kind]
    path.write_text(text.replace("{", '{"topk": 3, ', 1) if kind == "json" else text + more)
    done = softlabels("precompute", "--config", path)
    assert done.code == 2
    assert "topk" in done.err
    assert path.name in done.err
    assert not (tmp_path / "set").exists()


BROKEN = {
    "run.yaml": "teacher: [a\n",
    "run.toml": "teacher = \n",
    "run.json": '{"teacher": ',
    "list.json": "[1]",
    "run.ini": "[a]",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_named(softlabels: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(BROKEN[name])
    done = softlabels("precompute", "--config", path)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert name in done.err
    assert "Traceback" not in done.err


def test_a_file_of_bytes_a_missing_file_and_no_file(softlabels: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x82")
    for arguments, words in [
        (("--config", tmp_path / "run.yaml"), "run.yaml cannot be read"),
        (("--config", tmp_path / "none.yaml"), "there is no such file"),
        (("--config",), "--config needs a file"),
    ]:
        done = softlabels("precompute", *arguments)
        assert done.code == 2
        assert words in done.err


def test_rejects_are_in_the_exit_summary(
    softlabels: Any, tmp_path: Path, teacher_dir: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "some words"}\n{"text": ""}\n')
    command = ("precompute", "--teacher", teacher_dir, "--data", data, "--out", tmp_path / "set",
               "--k", 2, "--max-length", 64, "--quiet")  # fmt: skip
    done = softlabels(*command)
    assert done.code == 2
    assert "key" in done.err
    assert "--on-error skip" in done.err
    done = softlabels(*command, "--on-error", "skip")
    assert done.code == 0
    assert "1 samples were rejected; rejects.parquet says why" in done.out


WRONG = {
    "no path": (("--data", "nowhere.jsonl"), "no such file"),
    "no column": (("--column", "words"), 'no column "words"'),
    "no key": (("--key", "uid"), 'no key column "uid"'),
    "k of 0": (("--k", "0"), "k is 0"),
    "k above V": (("--k", "513"), "512 classes"),
    "no number": (("--k", "many"), '"many"'),
    "no choice": (("--on-long", "drop"), "drop"),
    "no unit": (("--unit-rows", "0"), "unit_rows is 0"),
    "too long": (("--max-length", "999"), "at most 256 tokens"),
    "no teacher": (("--teacher", "/nowhere"), 'the teacher "/nowhere"'),
    "no flag": (("--frob", "1"), "--frob"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_paragraph_and_exits_2(
    softlabels: Any, tmp_path: Path, teacher_dir: Path, data_file: Path, name: str
) -> None:
    flags = {"--teacher": teacher_dir, "--data": data_file, "--max-length": 32}
    (flag, value), words = WRONG[name]
    flags[flag] = value
    pairs = [word for pair in flags.items() for word in pair]
    done = softlabels("precompute", *pairs, "--out", tmp_path / "set")
    assert done.code == 2
    assert done.out == ""
    assert words in done.err
    message = done.err.removesuffix("`softlabels --help` shows the commands\n")
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_without_the_extra_it_says_what_to_install(
    softlabels: Any, tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # its import fails
    done = softlabels("precompute", "--teacher", "t", "--data", data_file, "--out", tmp_path)
    assert done.code == 2
    assert "pip install 'softlabels[transformers]'" in done.err
    assert done.err.count("\n") == 1

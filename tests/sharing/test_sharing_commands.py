"""`softlabels push`, `pull`, `import` and `export`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub

import softlabels as sl
from softlabels.cli import main

NAME = "me/labels"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_push_says_where_it_is_and_what_the_licences_forbid(
    server: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--license", "mit", "--teacher-license", "llama3", "--data-license", "cc0-1.0"]
    assert run("push", tiny, NAME, "--private", *given) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    commit = server.repositories[NAME].branches["main"]
    assert f"hf://datasets/{NAME}@{commit}: 11 files" in out
    assert "note: The licence of the teacher, llama3, forbids to improve other" in out
    assert "not told" not in out
    assert TOKEN not in out
    assert server.repositories[NAME].private
    assert run("push", tiny, NAME, *given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 0


def test_pull_brings_a_set_that_opens(
    server: Hub, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("push", tiny, NAME, "--revision", "v1")
    capsys.readouterr()
    assert run("pull", f"{NAME}@v1", tmp_path / "copy") == 0
    assert "8 records, 40 positions" in capsys.readouterr().out
    assert len(sl.LabelSet.open(tmp_path / "copy")) == 8
    assert run("pull", f"{NAME}@v1", tmp_path / "copy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fetched_files"] == 0
    assert run("pull", f"{NAME}@v2", tmp_path / "other") == 2
    assert "no such file or revision" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["distillkit", "lists", "axolotl", "numpy"])
def test_a_set_goes_out_and_comes_back(
    finished_set: Path, teacher_dir: Path, tmp_path: Path, layout: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run("export", layout, finished_set, tmp_path / "out") == 0
    assert "137 records" in capsys.readouterr().out
    told = [] if layout == "distillkit" else ["--classes", 512]
    assert run("import", layout, tmp_path / "out", tmp_path / "set", *told, "--json",
               "--teacher", "tiny", "--tokenizer", teacher_dir) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["totals"]["records"] == 137
    labels = sl.LabelSet.open(tmp_path / "set")
    assert (labels.plan.teacher.name, labels.plan.codec["name"]) == ("tiny", "compact")
    assert labels.tokenizer_folder() is not None
    assert run("export", layout, finished_set, tmp_path / "out") == 2
    assert "choose a new or empty folder" in capsys.readouterr().err


def test_import_asks_for_what_the_layout_does_not_say(
    finished_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", "lists", finished_set, tmp_path / "out")
    assert run("import", "lists", tmp_path / "out", tmp_path / "set") == 2
    assert "--classes" in capsys.readouterr().err
    assert run("import", "lists", tmp_path / "nothing", tmp_path / "set") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "set" / "plan.json").exists()

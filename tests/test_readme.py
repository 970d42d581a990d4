"""The README's own examples run as they are printed, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from softlabels.cli.app import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("FORMAT", "LOADING", "RESULTS", "TRAINING")


@pytest.fixture
def project(
    tmp_path: Path,
    teacher_dir: Path,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder in which what the README names exists: its data, and a (smaller) teacher."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct").symlink_to(teacher_dir)
    lines = (json.dumps({"id": row["id"], "text": row["text"][:200]}) for row in rows[:12])
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    # The small teacher takes 256 tokens; what is printed is for the real one.
    monkeypatch.setattr("softlabels.teachers.transformers.CausalLM.max_length", None)
    return tmp_path


def test_the_python_examples_run(project: Path, model: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"student": model}
    for block in blocks:
        exec(block, names)
    # The student is the teacher itself: at the right positions nothing is left to learn.
    # Beyond what the default codec rounds away, at T = 2.
    assert abs(float(names["loss"].detach())) < 5e-4
    assert names["batch"]["weight"].tolist() == [2.0]


def test_the_commands_run(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^\$ (softlabels .*)$", README, re.MULTILINE)
    assert len(commands) == 10
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        expected = 0
        if words[-2:] == ["||", "true"]:
            words, expected = words[:-2], 1
        assert run(words) == expected, command


def test_the_two_commands_are_those_of_the_makefile_and_of_ci() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"^make (\w+) ", README, re.MULTILINE)
    assert commands == ["quickstart", "test"]
    assert set(commands) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links:
        path, _, anchor = link.partition("#")
        if path:
            assert (ROOT / page).parent.joinpath(path).exists(), link
        else:
            assert anchor in anchors, link

"""The README's own examples run as they are printed."""

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


def test_the_python_example_runs(project: Path, model: Any) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {"student": model}
    exec(block, names)
    # The student is the teacher itself: at the right positions nothing is left to learn.
    # Beyond what the default codec rounds away, at T = 2.
    assert abs(float(names["loss"].detach())) < 5e-4


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
    in_ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make test-slow"} <= set(in_ci)

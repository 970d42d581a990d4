"""The pages of docs/ run as they are printed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def folder(
    finished_set: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What the pages name: data, its labels, and those of another teacher."""
    shutil.copytree(finished_set, tmp_path / "labels" / "docs")
    sl.derive(finished_set, tmp_path / "labels" / "other", codec="compact", k=8)
    lines = (json.dumps({"id": row["id"], "text": row["text"]}) for row in rows)
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_page_on_loading_runs(folder: Path, model: Any) -> None:
    names: dict[str, Any] = {"student": model}
    found = blocks("LOADING.md")
    assert len(found) == 4
    for block in found:
        exec(block, names)
    assert names["state"]["epoch"] == 1
    assert names["logits"].shape[:2] == names["hard"].shape
    assert names["batch"]["source"] in ("docs", "more")
    assert len(list(names["fused"])) == len(list(names["chosen"])) == len(names["fused"])


def test_the_page_on_kinds_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_dir, tmp_path / "models" / "SmolLM2-135M-Instruct")
    names: dict[str, Any] = {}
    found = blocks("KINDS.md")
    assert len(found) == 6
    for block in found:
        exec(block, names)
    assert names["gold"].shape == ()
    assert names["told"]["soft_labels"].mask.sum() == names["answers"].totals.positions > 0
    assert names["batch"]["soft_labels"].shape == (8,)
    assert [batch["view"].unique().tolist() for batch in names["loader"]] == [[0]] * 5
    assert (names["vectors"].plan.kind, names["smaller"].codec.dtype) == ("embedding", "float16")

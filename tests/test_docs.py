"""The pages of docs/ run as they are printed, and their links lead somewhere.

TRAINING.md runs in integrations/test_training_page.py, FORMAT.md's readers in golden/.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import softlabels as sl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in DOCS.glob("*.md")))
RUN_ELSEWHERE = {"TRAINING.md", "FORMAT.md"}


@pytest.fixture
def folder(
    finished_set: Path,
    teacher_dir: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """What the pages name: a teacher, data, its labels, and those of another teacher."""
    shutil.copytree(finished_set, tmp_path / "labels" / "docs")
    shutil.copytree(teacher_dir, tmp_path / "models" / "SmolLM2-135M-Instruct")
    sl.derive(finished_set, tmp_path / "labels" / "other", codec="compact", k=8)
    lines = (json.dumps({"id": row["id"], "text": row["text"]}) for row in rows)
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    # The small teacher takes 256 tokens; what is printed is for the real one.
    monkeypatch.setattr("softlabels.teachers.transformers.CausalLM.max_length", None)
    return tmp_path


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(page: str, **names: Any) -> dict[str, Any]:
    """The names that a page's blocks leave."""
    for block in blocks(page):
        exec(block, names)
    return names


def test_every_page_with_code_is_run() -> None:
    here = set(re.findall(r'run\("(\w+\.md)"', Path(__file__).read_text()))
    assert here | RUN_ELSEWHERE == {page.name for page in DOCS.glob("*.md") if blocks(page.name)}


def test_concepts() -> None:
    """The numbers in its comments are the ones that come out."""
    (block,) = blocks("CONCEPTS.md")
    names = run("CONCEPTS.md")
    shown = re.findall(r"^(y\..*?)  # (\[.*)", block, re.MULTILINE)
    assert len(shown) == 5
    for expression, comment in shown:
        printed, _ = json.JSONDecoder().raw_decode(comment)
        found = eval(expression, names).double().round(decimals=3)
        assert found.tolist() == printed, expression


def test_labelling(folder: Path) -> None:
    shutil.rmtree(folder / "labels" / "docs")
    names = run("LABELLING.md")
    assert names["labels"].totals.positions > 0
    assert names["forecast"].sample_rows == 4


def test_sets(folder: Path) -> None:
    names = run("SETS.md")
    labels = names["labels"]
    assert [y.shape for y in names["some"]] == [labels[n].shape for n in (3, 1, 2)]
    assert len(names["table"]) == len(labels) == len(names["small"])
    assert names["small"].plan.selection.k == 8
    assert 0 < len(names["unsure"]) < len(labels)


def test_losses() -> None:
    names = run("LOSSES.md")
    assert names["logits"].grad.shape == (2, 5)
    assert names["head"].weight.grad.abs().sum() > 0


def test_loading(folder: Path, model: Any) -> None:
    names = run("LOADING.md", student=model)
    assert names["state"]["epoch"] == 1
    assert names["joined"]["weight"].tolist() == [2.0]
    assert names["logits"].shape[:2] == names["hard"].shape
    assert names["batch"]["source"] in ("docs", "more")
    assert len(list(names["fused"])) == len(list(names["chosen"])) == len(names["fused"])


def test_kinds(folder: Path) -> None:
    for number, name in enumerate(["cat", "dog", "cat", "owl"]):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        image = np.full((6, 5, 3), 40 * number, np.uint8)
        Image.fromarray(image).save(folder / "photos" / name / f"{number}.png")
    names = run("KINDS.md")
    assert names["seen"].totals.positions == 4
    assert names["gold"].shape == ()
    assert names["told"]["soft_labels"].mask.sum() == names["answers"].totals.positions > 0
    assert names["batch"]["soft_labels"].shape == (8,)
    assert [batch["view"].unique().tolist() for batch in names["loader"]] == [[0]] * 5
    assert (names["vectors"].plan.kind, names["smaller"].codec.dtype) == ("embedding", "float16")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

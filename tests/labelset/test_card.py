"""The card: `datasets` reads the folder by it, and no name in it becomes markup or YAML."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import softlabels as sl
from softlabels.format import manifest
from softlabels.format.plan import Plan
from softlabels.labelset.card import card

Precompute = Callable[..., sl.LabelSet]
HOSTILE = [
    "<script>alert(1)</script>",
    "a\n---\nconfigs: []\n",
    "\n\n# heading\n\n```",
    "[click](javascript:alert(1)) ![](http://x.example/y.png)",
    "https://x.example/?token=1 me@x.example",
    "| a | b |\n|--|--|",
    "\x1b[2J\x00\x7f\u202e\u2028\r",
    "`code` ``more`` *bold* __bold__ ~~gone~~",
    "&lt;b&gt; &#60;b&#62;",
    "back\\slash \\| \\",
    "",
]
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def split_card(text: str) -> tuple[Any, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture(scope="module")
def labels(pristine: Path) -> sl.LabelSet:
    return sl.LabelSet.open(pristine)


def check_rows(rows: list[dict[str, Any]], labels: sl.LabelSet) -> None:
    """Rows as `datasets` gives them hold what we read."""
    assert len(rows) == len(labels)
    assert [row["key"] for row in rows] == labels.identities["key"].to_pylist()
    for row, batch in zip(rows, sl.loader(labels, batch_size=1), strict=True):
        found = batch["soft_labels"]
        assert (row["key"], row["part"], row["view"]) == (batch["key"][0], int(batch["part"]), 0)
        assert row["input_ids"] == batch["input_ids"][0].tolist()
        assert (-100 if row["next_id"] is None else row["next_id"]) == int(batch["next_ids"])
        assert row["ids"] == found.ids.flatten().tolist()
        assert row["log_probs"] == found.log_probs.flatten().tolist()
        assert row["logsumexp"] == found.logsumexp.flatten().tolist()
        assert row["log_tails"] == found.log_tails.flatten().tolist()
        hard = [None if v != v else v for v in found.hard_log_probs.flatten().tolist()]
        assert row["hard_log_probs"] == hard


def test_datasets_reads_the_folder_with_no_code_of_ours(
    labels: sl.LabelSet, pristine: Path, tmp_path: Path
) -> None:
    found = datasets.load_dataset(str(pristine), cache_dir=str(tmp_path))
    assert list(found) == ["train"]
    check_rows(list(found["train"]), labels)


def test_datasets_streams_the_folder_too(labels: sl.LabelSet, pristine: Path) -> None:
    found = datasets.load_dataset(str(pristine), streaming=True)
    assert list(found) == ["train"]
    check_rows(list(found["train"]), labels)


def test_to_dataset_is_what_load_dataset_gives(
    labels: sl.LabelSet, pristine: Path, tmp_path: Path
) -> None:
    ours = labels.to_dataset()
    theirs = datasets.load_dataset(str(pristine), cache_dir=str(tmp_path), split="train")
    assert ours.features == theirs.features
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("folder", ["a[1]", "what? *", "ümlaut"])
def test_to_dataset_reads_from_any_folder(tiny: Path, tmp_path: Path, folder: str) -> None:
    labels = sl.LabelSet.open(shutil.copytree(tiny, tmp_path / folder))
    # Neighbours that the folder's name matches when taken for a pattern.
    for other in ("a1", "what! x"):
        shutil.copytree(tiny, tmp_path / other)
    check_rows(list(labels.to_dataset()), labels)


@pytest.mark.parametrize("split", ["validation", "no", "null", "1e3", "007", "train[:50%]"])
def test_the_split_is_the_data_s_own_whatever_yaml_makes_of_it(
    tmp_path: Path, precompute: Precompute, id_rows: list[dict[str, Any]], split: str
) -> None:
    data = datasets.Dataset.from_list(id_rows, split=split)
    labels = precompute(tmp_path / "set", data)
    name = split.partition("[")[0]
    found = datasets.load_dataset(str(tmp_path / "set"), streaming=True)
    assert list(found) == [name]
    check_rows(list(found[name]), labels)


def test_only_the_split_s_own_shards_are_named(labels: sl.LabelSet) -> None:
    front, _ = split_card(card(labels.plan, labels.totals, split="validation"))
    files = {"split": "validation", "path": "data/validation-*.parquet"}
    assert front["configs"] == [{"config_name": "default", "data_files": [files]}]


def renamed(plan: Plan, name: str) -> Plan:
    teacher = {"name": name, "engine": name, "dtype": name, "weights": name}
    return plan.model_copy(
        update={
            "teacher": plan.teacher.model_copy(update=teacher),
            "data": plan.data.model_copy(update={"name": name, "columns": (name, name)}),
        }
    )


@given(st.text(max_size=30) | st.sampled_from(HOSTILE))
@settings(deadline=None, max_examples=60)
@example("<img src=x onerror=alert(1)>")
def test_a_hostile_name_stays_text_in_one_cell(labels: sl.LabelSet, name: str) -> None:
    harmless = card(renamed(labels.plan, "name"), labels.totals, split="train")
    hostile = card(renamed(labels.plan, name), labels.totals, split="train")
    assert hostile.isascii()
    assert all(c.isprintable() or c == "\n" for c in hostile)
    (front, body), (expected, calm) = split_card(hostile), split_card(harmless)
    assert front == expected
    kinds, texts = itertools.tee(PARSER.parse(body))
    assert [t.type for t in kinds] == [t.type for t in PARSER.parse(calm)]
    inner = [child for token in texts for child in token.children or ()]
    allowed = {"text", "text_special", "code_inline", "softbreak"}
    assert {child.type for child in inner} <= allowed
    codes = [child.content for child in inner if child.type == "code_inline"]
    assert codes == ["ids", "log_probs", 'datasets.load_dataset(".")']


def test_an_ordinary_name_is_shown_as_it_is(labels: sl.LabelSet) -> None:
    name = "HuggingFaceTB/SmolLM2-135M-Instruct_v1.0"
    body = split_card(card(renamed(labels.plan, name), labels.totals, split="train"))[1]
    assert f"<h1>Soft labels of {name}</h1>" in PARSER.render(body)


def test_the_numbers_on_the_card_are_those_of_the_manifest(
    labels: sl.LabelSet, pristine: Path
) -> None:
    text = (pristine / "README.md").read_text()
    totals = manifest.parse((pristine / "manifest.json").read_bytes(), where="").totals
    assert "| records | 8 of 6 samples, 0 rejected |" in text
    assert "| positions | 40 |" in text
    assert f"| size | {totals.bytes:,} bytes, {totals.bytes / 40:.1f} a position |" in text
    assert "top 3 of 16 classes at every position, log tail mass at T = 1, 2" in text
    assert "| token ids | stored |" in text

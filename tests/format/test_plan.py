"""plan.json: its bytes, what is refused, and which differences count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.errors import PlanMismatchError, UnsupportedFormatError
from softlabels.format import plan as plans
from softlabels.format.plan import Plan

Precompute = Callable[..., sl.LabelSet]

BYTES = b"""{
  "format": "1.0",
  "kind": "categorical",
  "requires": [],
  "writer": "softlabels 0.1.0",
  "teacher": {
    "name": "tiny",
    "revision": null,
    "weights": "00112233445566778899aabbccddeeff",
    "config": null,
    "dtype": "float32",
    "engine": "transformers",
    "engine_version": "5.0.0",
    "classes": 512,
    "logits_known": true
  },
  "tokenizer": {
    "size": 512,
    "vocabulary": "0f",
    "pipeline": null,
    "special_tokens": {
      "eos_token": 2
    },
    "chat_template": null
  },
  "data": {
    "name": "docs",
    "revision": null,
    "split": "train[:10%]",
    "columns": [
      "text"
    ],
    "key": "id",
    "key_type": "string",
    "limit": null
  },
  "preparation": {
    "kind": "text",
    "max_length": 64,
    "overlap": 0,
    "on_long": "window",
    "special_tokens": true,
    "assistant_only": false
  },
  "selection": {
    "name": "top_k",
    "k": 16,
    "algorithm": "some/1"
  },
  "codec": {
    "name": "plain",
    "classes": 512,
    "temperatures": [
      1.0,
      2.0
    ],
    "id_type": "uint16",
    "value_type": "float32"
  },
  "temperatures": [
    1.0,
    2.0
  ],
  "hard_label_alignment": "next",
  "store_inputs": true,
  "unit_rows": 256,
  "batch_tokens": 8192,
  "probes": 0,
  "derived_from": []
}
"""


def raw() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BYTES)
    return found


def changed(path: str, value: Any) -> Plan:
    data = raw()
    *parents, last = path.split(".")
    inner = data
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return plans.parse(json.dumps(data).encode(), where="plan.json")


def plan() -> Plan:
    return plans.parse(BYTES, where="plan.json")


@pytest.mark.parametrize("options", [{"exclude_none": True}, {"include": {"format", "teacher"}}])
def test_a_plan_can_be_dumped_in_part(pristine: Path, options: dict[str, Any]) -> None:
    plan = sl.LabelSet.open(pristine).plan
    assert plan.model_dump(**options)["teacher"]["name"] == "table"


def test_a_plan_is_written_to_the_same_bytes_that_it_was_read_from() -> None:
    assert plan().to_bytes() == BYTES


def test_the_digest_is_of_the_bytes_on_disk() -> None:
    assert plans.digest(BYTES) == hashlib.sha256(BYTES).hexdigest()
    assert plans.digest(BYTES) == "33d4aa13a03ab106943aa2f3bb49e755648240b353ccfce191d0eb0effcddd9b"


def test_unknown_fields_are_ignored() -> None:
    data = raw()
    data["colour"] = {"a": 1}
    data["teacher"]["mood"] = "bright"
    assert plans.parse(json.dumps(data).encode(), where="plan.json") == plan()


OTHERS = ["1.1", "2.0", None, 1.0, ["1.0"], "1.0 ", "1.0-drafts"]


@pytest.mark.parametrize("version", OTHERS)
def test_an_unknown_format_is_refused_and_named(version: Any) -> None:
    with pytest.raises(
        UnsupportedFormatError, match=r"plan\.json: format .*reads 1\.0 and 1\.0-draft"
    ):
        changed("format", version)


def test_a_draft_is_read_and_gone_on_with() -> None:
    draft = changed("format", "1.0-draft")
    plans.check_same(draft, plan(), where="labels")
    assert plans.differences(draft, plan()) == {}


def test_a_required_feature_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFormatError, match='requires "dreams", "verses"'):
        changed("requires", ["verses", "dreams", "views"])


def test_what_a_set_requires_reaches_no_terminal_raw() -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        changed("requires", ["\x1b[2Jgone"])
    assert '"\\u001b[2Jgone"' in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"1.0-draft"',
        b"[" * 100_000,
        b'{"format": "1.0-draft"}',
        b'{"format": "1.0-draft", "requires": 1}',
        b'{"format": "1.0-draft", "requires": "views"}',
        b'{"format": "1.0-draft", "requires": [{}]}',
    ],
)
def test_what_is_no_plan_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"^plan\.json: "):
        plans.parse(data, where="plan.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "graphical"),
        ("teacher", None),
        ("teacher.classes", "many"),
        ("unit_rows", 0),
        ("hard_label_alignment", "previous"),
        ("tokenizer.special_tokens", {"\x1b[2J": "x"}),
    ],
)
def test_a_field_that_is_wrong_is_named_and_printable(path: str, value: Any) -> None:
    with pytest.raises(UnsupportedFormatError, match=path.split(".")[0]) as caught:
        changed(path, value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("teacher.weights", "ff"),
        ("teacher.config", "ff"),
        ("teacher.dtype", "bfloat16"),
        ("teacher.engine", "vllm"),
        ("teacher.classes", 513),
        ("tokenizer", None),
        ("tokenizer.vocabulary", "10"),
        ("data.columns", ["body"]),
        ("data.key", None),
        ("data.limit", 10),
        ("preparation.max_length", 128),
        ("preparation.overlap", 8),
        ("preparation.on_long", "truncate"),
        ("selection.k", 17),
        ("selection.algorithm", "other/1"),
        ("codec.name", "lossless"),
        ("temperatures", [1.0]),
        ("store_inputs", False),
        ("unit_rows", 128),
        ("batch_tokens", 4096),
    ],
)
def test_another_recipe_is_refused_and_the_difference_named(path: str, value: Any) -> None:
    wanted = changed(path, value)
    with pytest.raises(PlanMismatchError, match=path.split(".")[-1]):
        plans.check_same(plan(), wanted, where="labels")
    plans.check_same(wanted, wanted, where="labels")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("writer", "softlabels 0.2.0"),
        ("teacher.name", "renamed"),
        ("teacher.revision", "abc"),
        ("teacher.engine_version", "6.0.0"),
        ("data.name", "elsewhere"),
        ("data.revision", "abc"),
        ("data.split", "train"),
    ],
)
def test_names_whose_digests_agree_may_differ(path: str, value: Any) -> None:
    plans.check_same(plan(), changed(path, value), where="labels")


@pytest.mark.parametrize(("path", "value"), [("teacher.revision", "2"), ("teacher.name", "other")])
def test_a_teacher_without_a_digest_is_known_by_its_name_and_version(path: str, value: str) -> None:
    data = raw()
    data["teacher"] |= {"weights": None, "revision": "1", "engine": "callable"}
    begun = Plan.model_validate(data)
    data["teacher"][path.split(".")[1]] = value
    with pytest.raises(PlanMismatchError, match=path):
        plans.check_same(begun, Plan.model_validate(data), where="labels")


def test_every_difference_is_counted_where_not_every_one_is_shown() -> None:
    data = raw()
    data["preparation"] |= {"max_length": 1, "overlap": 1, "on_long": "raise"}
    data["selection"] |= {"name": "a", "k": 1, "algorithm": "b"}
    data |= {"unit_rows": 1, "batch_tokens": 1}
    with pytest.raises(PlanMismatchError, match="and 2 more"):
        plans.check_same(plan(), Plan.model_validate(data), where="labels")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, "train"),
        ("train[:10%]", "train"),
        ("validation", "validation"),
        ("../x", "train"),
        ("", "train"),
        ("été", "train"),
    ],
)
def test_the_split_in_shard_names_holds_letters_and_digits_only(
    split: str | None, expected: str
) -> None:
    assert changed("data.split", split).split == expected


def test_a_finished_set_cannot_be_resumed_by_a_callable_of_another_version(
    tmp_path: Path, precompute: Precompute
) -> None:
    def logits(ids: Any) -> Any:
        return ids.unsqueeze(-1) * ids.new_ones(16).float()

    def teacher(version: str) -> Any:
        return sl.teachers.from_callable(logits, name="t", version=version, classes=16)

    precompute(tmp_path / "labels", teacher=teacher("1"))
    with pytest.raises(PlanMismatchError, match=r"teacher\.revision"):
        precompute(tmp_path / "labels", teacher=teacher("2"))


def test_the_plan_of_a_set_is_never_rewritten(tmp_path: Path, precompute: Precompute) -> None:
    labels = precompute(tmp_path / "labels")
    path = labels.root / "plan.json"
    ours = path.read_bytes().replace(b'"split": null', b'"colour": 1, "split": null')
    path.write_bytes(ours)
    (labels.root / "manifest.json").unlink()
    for shard in (labels.root / "data").iterdir():
        shard.unlink()
    precompute(labels.root)
    assert path.read_bytes() == ours

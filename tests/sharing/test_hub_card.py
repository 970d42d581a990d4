"""The card on the Hub: what `datasets` reads, what people should know, and nothing private."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from cyclopts.exceptions import CycloptsError
from hub_server import TOKEN, Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import softlabels as sl
from softlabels.cli.app import app
from softlabels.errors import InputError
from softlabels.format.plan import Plan, SelectionPlan
from softlabels.sharing.card import hub_card
from softlabels.sharing.command import commands, portable
from softlabels.sharing.licences import Licences
from softlabels.sharing.preview import write_preview
from softlabels.sharing.push import push
from softlabels.sharing.statistics import statistics

NAME = "me/labels"
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
HOSTILE = ["<script>x</script>", "a\n---\nconfigs: []\n", "```\n# x", "\x1b[2J\u202e", "1e3", "no"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def labels(finished_set: Path) -> sl.LabelSet:
    return sl.LabelSet.open(finished_set)


def made(
    labels: sl.LabelSet, plan: Plan | None = None, licences: dict[str, str] | None = None
) -> tuple[Any, str]:
    """YAML and body of a card."""
    text = hub_card(
        plan or labels.plan,
        labels.totals,
        repository=NAME,
        licences=Licences(**licences or {}),
        statistics=statistics(labels),
        digests={"plan.json": "0" * 64},
    )
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


LOADS = """
import json, sys, datasets
datasets.disable_progress_bars()
found = {}
for config in ("default", "preview"):
    for streaming in (False, True):
        rows = list(datasets.load_dataset(sys.argv[1], config, split="train", streaming=streaming))
        found[f"{config} {streaming}"] = [[str(r["key"]), r["part"]] for r in rows]
        found[f"columns {config}"] = list(rows[0])
print(json.dumps(found))
"""


def test_datasets_loads_both_configs_of_the_repository_streaming_and_not(
    server: Hub, labels: sl.LabelSet, tmp_path: Path
) -> None:
    push(labels, NAME)
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADS, NAME],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    identities = labels.identities.select(["key", "part"]).to_pylist()
    expected = [[row["key"], row["part"]] for row in identities]
    assert found["default False"] == found["default True"] == expected
    assert found["preview False"] == found["preview True"]
    assert 100 < len(found["preview True"]) <= 300
    assert {"text", "token", "top_1", "prob_1"} <= set(found["columns preview"])
    assert {"key", "input_ids", "log_probs"} <= set(found["columns default"])


def test_the_preview_says_what_the_teacher_believed_in_words(
    labels: sl.LabelSet, tmp_path: Path, tokenizer: Any
) -> None:
    count = write_preview(labels, tmp_path / "preview.parquet")
    rows = pq.read_table(tmp_path / "preview.parquet").to_pylist()
    assert len(rows) == count
    row = rows[7]
    record = labels.get(row["key"], part=row["part"])
    ids = [r["soft_labels"] for r in sl.loader(labels, batch_size=1)] and record.ids[
        row["position"]
    ]
    assert row["top_1"] == tokenizer.decode([int(ids[0])])
    assert row["prob_1"] == pytest.approx(float(record.log_probs[row["position"], 0].exp()))
    assert row["next_prob"] == pytest.approx(
        float(record.hard_log_probs[row["position"]].exp()), rel=1e-6
    )
    kept = sum(float(p) for p in record.log_probs[row["position"]].exp())
    assert row["rest_prob"] == pytest.approx(1 - kept, abs=1e-5)
    assert row["text"].endswith(row["token"])
    assert rows[8]["text"].endswith(row["next_token"])


def test_the_same_set_has_the_same_preview_to_the_byte(labels: sl.LabelSet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_preview(labels, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"store_inputs": False},
        {"selection": sl.Sampled(4), "codec": "sampled", "temperatures": ()},
    ],
)
def test_a_preview_leaves_out_what_the_set_does_not_have(
    tmp_path: Path, precompute: Callable[..., sl.LabelSet], options: dict[str, Any]
) -> None:
    options = (
        {"codec": "sampled", "temperatures": ()} | options if "selection" in options else options
    )
    labels = precompute(tmp_path / "set", **options)
    write_preview(labels, tmp_path / "preview.parquet")
    rows = pq.read_table(tmp_path / "preview.parquet").to_pylist()
    assert all(row["top_1"] is not None for row in rows)
    assert {row["token"] is None for row in rows} == {not labels.plan.store_inputs}
    assert {row["rest_prob"] is None for row in rows} == {bool("selection" in options)}


def renamed(plan: Plan, name: str) -> Plan:
    teacher = plan.teacher.model_copy(update={"name": name, "engine": name, "revision": name})
    data = plan.data.model_copy(update={"name": name, "columns": (name,), "key": name})
    return plan.model_copy(update={"teacher": teacher, "data": data})


@given(st.text(max_size=30) | st.sampled_from(HOSTILE), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_hostile_name_is_neither_yaml_nor_markup(
    labels: sl.LabelSet, name: str, by_command: bool
) -> None:
    def card_of(name: str) -> tuple[Any, str]:
        plan = renamed(labels.plan, name)
        engine = "transformers" if by_command else name
        teacher = plan.teacher.model_copy(update={"engine": engine})
        return made(labels, plan.model_copy(update={"teacher": teacher}))

    (front, body), (expected, calm) = card_of(name), card_of("name")
    assert front["pretty_name"] == f"Soft labels of {name}"
    assert {**front, "pretty_name": 0} == {**expected, "pretty_name": 0}
    assert body.isascii()
    if name and name != "openai-server":
        kinds = [token.type for token in PARSER.parse(body)]
        assert kinds == [token.type for token in PARSER.parse(calm)]


def parsed(lines: str) -> Any:
    """The arguments that `softlabels precompute` makes of a card's command."""
    words = shlex.split(lines.replace("\\\n", ""))  # shlex knows no continuation
    assert words[:2] == ["softlabels", "precompute"]
    try:
        _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(str(error))
    return bound.arguments["arguments"]


def test_the_command_on_the_card_is_one_that_softlabels_takes(labels: sl.LabelSet) -> None:
    _, body = made(labels)
    arguments = parsed(body.split("```sh\n")[1].split("```")[0])
    plan = labels.plan
    assert arguments.teacher == plan.teacher.name
    assert (arguments.k, arguments.max_length) == (plan.selection.k, plan.preparation.max_length)
    assert arguments.temperatures == plan.temperatures
    assert (arguments.key, arguments.codec) == (plan.data.key, plan.codec["name"])


def test_the_command_has_every_setting_that_is_not_the_default(labels: sl.LabelSet) -> None:
    preparation = {"overlap": 4, "on_long": "truncate", "assistant_only": True}
    plan = labels.plan.model_copy(
        update={
            "preparation": labels.plan.preparation.model_copy(update=preparation),
            "data": labels.plan.data.model_copy(update={"limit": 9, "key": None}),
            "teacher": labels.plan.teacher.model_copy(update={"revision": "v1"}),
            "store_inputs": False,
            "probes": 7,
            "packing": True,
        }
    )
    found = parsed(commands(plan) or "")
    assert (found.overlap, found.on_long, found.assistant_only) == (4, "truncate", True)
    assert (found.limit, found.key, found.revision) == (9, None, "v1")
    assert (found.store_inputs, found.probes, found.packing) == (False, 7, True)
    assert (found.unit_rows, found.batch_tokens, found.dtype) == (16, 512, "float32")


@pytest.mark.parametrize(
    ("selection", "flags"),
    [
        (sl.TopP(0.9, 8), {"top_p": 0.9, "k": 8}),
        (sl.Sampled(12, 3, 5), {"draws": 12, "head": 3, "draw_seed": 5}),
        (sl.Dense(512), {"dense": True, "k": None}),
    ],
)
def test_every_selection_has_its_flags(
    labels: sl.LabelSet, selection: Any, flags: dict[str, Any]
) -> None:
    plan = labels.plan.model_copy(update={"selection": SelectionPlan.of(selection)})
    found = parsed(commands(plan) or "")
    assert {name: getattr(found, name) for name in flags} == flags


def test_a_derived_set_names_both_steps(labels: sl.LabelSet, tmp_path: Path) -> None:
    derived = sl.derive(labels, tmp_path / "a", codec="compact", k=4, progress=False)
    again = sl.derive(derived, tmp_path / "b", k=2, progress=False)
    lines = (commands(again.plan) or "").replace(" \\\n   ", "").splitlines()
    assert lines[0].startswith("softlabels precompute")
    assert "--k 16" in lines[0]
    assert lines[1:] == [
        "softlabels derive labels derived-1 --codec compact --k 4",
        "softlabels derive derived-1 derived-2 --codec compact --k 2",
    ]


def test_a_callable_teacher_has_no_command_and_the_card_says_so(pristine: Path) -> None:
    labels = sl.LabelSet.open(pristine)
    assert commands(labels.plan) is None
    assert "By table, version 1 (callable), which no command line names" in made(labels)[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/jane/models/llama", "llama"),
        ("~/llama", "llama"),
        ("C:\\Users\\jane\\llama", "llama"),
        ("file:///home/jane/llama", "llama"),
        ("https://jane:secret@host.example:8000/v1?key=hunter2#x", "https://host.example:8000/v1"),
        ("s3://bucket/docs.parquet?versionId=1", "s3://bucket/docs.parquet"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_folders_credentials_and_queries_are_nobody_s_business(
    labels: sl.LabelSet, name: str, shown: str
) -> None:
    assert portable(name) == shown
    teacher = labels.plan.teacher.model_copy(update={"name": name})
    data = labels.plan.data.model_copy(update={"name": name})
    lines = commands(labels.plan.model_copy(update={"teacher": teacher, "data": data}))
    assert lines is not None
    words = shlex.split(lines.replace("\\\n", ""))
    assert words[words.index("--teacher") + 1] == words[words.index("--data") + 1] == shown
    assert not [secret for secret in ("jane", "secret", "hunter2", "/home") if secret in lines]


def test_numbers_on_the_card_are_the_set_s(labels: sl.LabelSet) -> None:
    front, body = made(labels)
    assert front["size_categories"] == ["n<1K"]
    names = {config["config_name"]: config for config in front["configs"]}
    assert list(names) == ["default", "preview"]
    assert names["default"]["default"] is True
    assert f"| measured on | {labels.totals.positions:,} of {labels.totals.positions:,}" in body
    tail = sl.SoftLabels.log_tail
    found = labels.take(range(len(labels))).labels
    kept = 1 - tail(found, 1.0).double().exp()
    assert f"| mass of the kept classes | {float(kept.mean()):.4f} in the mean |" in body
    assert f"sha256 `{'0' * 64}`" in body


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        ({"teacher": "llama3"}, "forbids to improve other language models"),
        ({"teacher": "gemma"}, "derivative"),
        ({"data": "cc-by-nc-4.0"}, "The licence of the data, cc-by-nc-4.0, forbids commercial use"),
        ({"data": "cc-by-nc-4.0", "labels": "mit"}, "of the labels, mit, does not say so"),
        ({"teacher": "cc-by-nd-4.0"}, "forbids to share what is derived"),
        ({"data": "cc-by-sa-4.0", "labels": "mit"}, "shared under the same licence"),
        ({}, "The licence of the teacher is not told"),
    ],
)
def test_what_a_licence_forbids_stands_on_the_card(
    labels: sl.LabelSet, licences: dict[str, str], words: str
) -> None:
    _, body = made(labels, licences=licences)
    assert words in body
    assert words in "\n".join(Licences(**licences).warnings())


def test_licences_that_allow_it_warn_of_nothing(labels: sl.LabelSet) -> None:
    calm = Licences(labels="cc-by-nc-4.0", teacher="apache-2.0", data="cc-by-4.0")
    assert not calm.warnings()
    with pytest.raises(InputError, match="expected an identifier of the Hub"):
        Licences(teacher="Apache 2.0\n---")

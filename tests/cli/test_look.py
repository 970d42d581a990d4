"""`softlabels info`, `show` and `verify`, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import softlabels as sl
from softlabels.looking.text import safe


def test_info_says_what_a_set_is(softlabels: Any, finished_set: Path) -> None:
    done = softlabels("info", finished_set)
    totals = sl.LabelSet.open(finished_set).totals
    assert (done.code, done.err) == (0, "")
    for words in (
        "finished", "tiny-llama, float32, transformers", "top 16 of 512 classes",
        "T = 1, T = 2, T = 4", "plain", f"{totals.records:,} in 4 shards", "id",
        f"{totals.bytes:,}, {totals.bytes / totals.positions:.1f} a position", "1.0",
    ):  # fmt: skip
        assert words in done.out


def test_info_as_json_is_complete(softlabels: Any, finished_set: Path) -> None:
    found = softlabels("info", finished_set, "--json").json
    labels = sl.LabelSet.open(finished_set)
    assert found["finished"] is True
    assert found["totals"] == labels.totals.model_dump()
    assert found["plan"] == json.loads((finished_set / "plan.json").read_text())
    assert found["bytes_per_position"] == labels.totals.bytes / labels.totals.positions


def test_info_says_how_fast_it_was_labelled_and_on_what(
    softlabels: Any, finished_set: Path, tiny: Path
) -> None:
    labels = sl.LabelSet.open(finished_set)
    seconds, positions = float(labels.receipts.seconds().sum()), labels.totals.positions
    found = softlabels("info", finished_set, "--json").json["labelling"]
    assert found == {
        "shards": 4, "positions": positions, "seconds": seconds, "accelerators": ["cpu"],
    }  # fmt: skip
    words = f"{seconds:,.1f} s on cpu, {positions / seconds:,.0f} positions/s"
    assert words in softlabels("info", finished_set).out
    # A shard that lost its receipt says nothing, and the teacher of this set has no device.
    (tiny / "manifest.json").unlink()
    softlabels("verify", tiny)
    assert softlabels("info", tiny, "--json").json["labelling"] is None
    assert "positions/s" not in softlabels("info", tiny).out


def test_info_of_an_unfinished_set_says_so(softlabels: Any, tiny: Path) -> None:
    assert softlabels("verify", tiny, "--repair").code == 0
    (tiny / "data" / "train-00001.parquet").unlink()
    softlabels("verify", tiny, "--repair")
    done = softlabels("info", tiny)
    assert done.code == 0
    assert "unfinished, 1 units done" in done.out
    assert softlabels("info", tiny, "--json").json["finished"] is False


def test_show_is_a_table_of_tokens(softlabels: Any, finished_set: Path, tokenizer: Any) -> None:
    done = softlabels("show", finished_set, "doc-001", "--positions", 3, "--top", 2)
    assert (done.code, done.err) == (0, "")
    labels = sl.LabelSet.open(finished_set)
    tokens = labels.take([labels.index("doc-001")]).token_ids
    y = labels.get("doc-001")
    assert f"key doc-001, part 0: {len(y)} positions" in done.out
    assert f"{len(y) - 3} more positions" in done.out
    for t in range(3):
        token = tokenizer.decode([int(tokens[t])])
        assert safe(token).replace(" ", "·") in done.out
        assert f"{math.exp(y.hard_log_probs[t]):.3f}" in done.out
        assert f" {math.exp(y.log_probs[t, 0]):.2f}" in done.out
        assert f"{math.exp(y.log_tails[t, 0]):.3f}" in done.out


def test_show_as_json_is_the_whole_record(softlabels: Any, finished_set: Path) -> None:
    labels = sl.LabelSet.open(finished_set)
    for arguments in ((), ("doc-000", "--part", 1)):
        found = softlabels("show", finished_set, *arguments, "--json").json
        y = labels.get("doc-000", part=1) if arguments else labels[0]
        records = labels.take([labels.index("doc-000", part=found["part"])])
        assert (found["key"], found["view"]) == ("doc-000", 0)
        assert found["length"] == len(found["positions"]) == len(y)
        assert found["temperatures"] == [1.0, 2.0, 4.0]
        lines = found["positions"]
        tokens = records.token_ids.tolist()
        assert [line["token"] for line in lines] == tokens
        assert [line["next"] for line in lines[:-1]] == tokens[1:]
        assert [line["position"] for line in lines] == list(range(len(y)))
        for name in ("ids", "log_probs", "logsumexp", "log_tails"):
            stored = torch.tensor([line[name] for line in lines])
            assert torch.equal(stored, getattr(y, name))


def test_what_is_not_known_is_null_and_infinities_are_text(
    softlabels: Any, precompute: Callable[..., sl.LabelSet], tmp_path: Path
) -> None:
    rows = [{"id": "a", "ids": [1, 2]}]
    precompute(tmp_path / "a", rows, selection=sl.TopK(16), store_inputs=False)
    found = softlabels("show", tmp_path / "a", "--json").json
    assert [line["log_tails"] for line in found["positions"]] == [["-Infinity"] * 2] * 2
    assert [line["token"] for line in found["positions"]] == [None, None]
    assert found["positions"][1]["next_log_prob"] is None
    assert found["positions"][1]["next"] is None
    assert softlabels("show", tmp_path / "a").code == 0
    precompute(tmp_path / "b", rows, temperatures=())
    found = softlabels("show", tmp_path / "b", "--json").json
    assert found["positions"][0]["log_tails"] == found["temperatures"] == []
    assert softlabels("show", tmp_path / "b").code == 0


def test_only_the_tail_at_one_stands_beside_probabilities_at_one(
    softlabels: Any, precompute: Callable[..., sl.LabelSet], tmp_path: Path
) -> None:
    rows = [{"id": "a", "ids": [1]}]
    y = precompute(tmp_path / "a", rows, temperatures=(3.0, 1.0))[0]
    hot, cold = (f"{math.exp(x):.3f}" for x in y.log_tails[0])
    assert hot != cold
    out = softlabels("show", tmp_path / "a").out
    assert cold in out
    assert hot not in out


def test_labels_at_some_positions_only_are_shown_there(softlabels: Any, tmp_path: Path,
    precompute: Callable[..., sl.LabelSet]) -> None:  # fmt: skip
    precompute(tmp_path / "set", [{"id": "a", "ids": list(range(9))}], overlap=2)
    found = softlabels("show", tmp_path / "set", "a", "--part", 1, "--json").json
    assert found["source_start"] == 4
    assert [line["position"] for line in found["positions"]] == [2, 3, 4]


@pytest.mark.parametrize("window", [("--start", -1), ("--positions", 0), ("--top", 0)])
def test_a_window_that_shows_nothing_is_refused(
    softlabels: Any, tiny: Path, window: tuple[str, int]
) -> None:
    for more in ((), ("--json",)):
        done = softlabels("show", tiny, *window, *more)
        assert (done.code, done.out) == (2, "")
        assert f"{window[0]} is {window[1]}" in done.err


def test_a_key_that_is_not_there_names_one_that_is(softlabels: Any, tiny: Path) -> None:
    done = softlabels("show", tiny, "none")
    assert (done.code, done.out) == (2, "")
    assert 'no record with key "none"' in done.err
    assert '"s0"' in done.err
    assert softlabels("show", tiny, "s0", "--part", 5).code == 2


def test_integer_keys_are_read_as_integers(
    softlabels: Any, precompute: Callable[..., sl.LabelSet], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    precompute(out, [{"id": 7, "ids": [1]}, {"id": -3, "ids": [2]}])
    assert softlabels("show", out, "7", "--json").json["key"] == 7
    assert softlabels("show", out, "--json", "--", "-3").json["key"] == -3
    for key, words in (("seven", "whole numbers"), ("8", "no record"), ("9" * 30, "no record")):
        done = softlabels("show", out, key)
        assert done.code == 2
        assert words in done.err


HOSTILE = "\x1b[2J\x07\u202ekey\r[red]x[/red]\n"


def test_control_characters_and_markup_of_a_set_never_reach_the_terminal(
    softlabels: Any, precompute: Callable[..., sl.LabelSet], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    teacher = sl.teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, 16), name=HOSTILE, version=HOSTILE, classes=16
    )
    precompute(out, [{"id": HOSTILE, "ids": [1, 2]}], teacher=teacher)
    (out / "data" / f"{HOSTILE.replace('/', '|')}.parquet").write_bytes(b"")
    commands = [("info", out), ("show", out), ("show", out, HOSTILE + "x"), ("verify", out),
                ("verify", out, "--repair")]  # fmt: skip
    for command in commands:
        done = softlabels(*command)
        shown = done.out + done.err
        assert "u001b[2J" in shown, command
        assert "[red]" in shown, command
        assert all(c.isprintable() or c == "\n" for c in shown), command
    found = softlabels("show", out, "--json").json
    assert found["key"] == HOSTILE


def test_control_characters_of_tokens_are_escaped(
    softlabels: Any, teacher_dir: Path, tmp_path: Path
) -> None:
    rows = [{"text": "a\x1b[31m b\tc\n"}]
    sl.precompute(
        rows, teacher_dir, tmp_path / "set", selection=sl.TopK(3), max_length=64, progress=False
    )
    done = softlabels("show", tmp_path / "set")
    assert all(c.isprintable() or c == "\n" for c in done.out)
    assert "\\u001b" in done.out
    assert "\\n" in done.out


def test_a_tokenizer_that_cannot_be_read_is_named(
    softlabels: Any, finished_set: Path, tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(finished_set, tmp_path / "set"))
    (out / "tokenizer" / "tokenizer.json").write_text("{}")
    done = softlabels("show", out)
    assert (done.code, done.out) == (1, "")
    assert "tokenizer.json" in done.err
    assert softlabels("show", out, "--json").code == 0


def test_a_set_without_records_has_none_to_show(
    softlabels: Any, precompute: Callable[..., sl.LabelSet], tmp_path: Path
) -> None:
    precompute(tmp_path / "set", [{"id": "a", "ids": [99]}], on_error="skip")
    assert softlabels("info", tmp_path / "set").code == 0
    done = softlabels("show", tmp_path / "set")
    assert (done.code, "holds no records" in done.err) == (2, True)


def test_verify_of_a_whole_set(softlabels: Any, tiny: Path) -> None:
    done = softlabels("verify", tiny)
    assert (done.code, done.err) == (0, "")
    assert "all is well (finished; 2 shards, 8 records, 40 positions checked)" in done.out
    assert softlabels("verify", tiny, "--json").json == {
        "finished": True, "shards": 2, "records": 8, "positions": 40, "findings": [], "dropped": [],
    }  # fmt: skip


def test_verify_names_the_file_exits_1_and_repairs(
    softlabels: Any, tiny: Path, precompute: Callable[..., sl.LabelSet], pristine: Path
) -> None:
    shard = tiny / "data" / "train-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for _ in range(2):
        done = softlabels("verify", tiny)
        assert done.code == 1
        assert "data/train-00001.parquet: " in done.out
        assert "findings in" in done.out
    found = softlabels("verify", tiny, "--json")
    assert found.code == 1
    assert {finding["file"] for finding in found.json["findings"]} == {"data/train-00001.parquet"}
    assert found.json["dropped"] == []
    done = softlabels("verify", tiny, "--repair")
    assert done.code == 1
    assert "dropped data/train-00001.parquet: run the same precompute again" in done.out
    assert not shard.exists()
    precompute(tiny)
    assert shard.read_bytes() == (pristine / "data" / "train-00001.parquet").read_bytes()
    assert softlabels("verify", tiny).code == 0


def test_a_corrupt_shard_met_while_reading_exits_1(softlabels: Any, tiny: Path) -> None:
    shard = tiny / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    done = softlabels("show", tiny)
    assert (done.code, done.out) == (1, "")
    assert "data/train-00000.parquet" in done.err
    assert done.err.count("\n") == 1
    with pytest.raises(Exception, match=r"footer|Parquet|magic"):
        pq.read_table(shard)


def test_show_begins_where_labels_begin(softlabels: Any, teacher_dir: Path, tmp_path: Path) -> None:
    """The first windows of a chat, and the first tokens of a window, may have no labels."""
    question = " ".join(["why"] * 40)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "so be it"}]
    labels = sl.precompute(
        [{"id": 7, "messages": messages}], teacher_dir, tmp_path / "set", column="messages",
        key="id", assistant_only=True, max_length=16, selection=sl.TopK(4),
    )  # fmt: skip
    first = labels.parts(7)[0]
    assert first > 0
    found = softlabels("show", tmp_path / "set", "7", "--json").json
    mask = labels.get(7, part=first).mask
    assert mask is not None
    assert found["part"] == first
    assert [p["position"] for p in found["positions"]] == mask.nonzero().flatten().tolist()
    table = softlabels("show", tmp_path / "set", "7", "--positions", 1).out
    assert f"{int(mask.sum()) - 1} more positions" in table
    assert f"│ {found['positions'][0]['position']} " in table
    done = softlabels("show", tmp_path / "set", "7", "--start", len(mask))
    assert done.code == 2
    assert f"the record has {len(mask)} positions" in done.err
    done = softlabels("show", tmp_path / "set", "7", "--part", 0)
    assert f"it has parts {first}" in done.err


def test_verify_of_nothing_says_that_there_is_nothing(softlabels: Any, tmp_path: Path) -> None:
    done = softlabels("verify", tmp_path / "nowhere")
    assert done.code == 2
    assert "there is no such folder" in done.err

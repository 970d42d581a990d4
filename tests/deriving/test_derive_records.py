"""derive of some records, sets merged and shards cut anew: what the obvious slow way gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from processes import killed

import softlabels as sl
from softlabels.codecs import Sampled
from softlabels.codecs.idtable import IdTable
from softlabels.deriving.bounds import bounds
from softlabels.deriving.choice import Choice
from softlabels.deriving.sources import Sources
from softlabels.deriving.unit import Recipe, derive_unit
from softlabels.errors import DuplicateKeyError, InputError, PlanMismatchError
from softlabels.format import shard_writing
from softlabels.format.records import join
from softlabels.format.summary import UnitSummary
from softlabels.labelset.writer import begin
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]
Record = dict[str, Any]

BAD = 15  # the token at which the teacher of `source` fails
PARQUET_OF_KEYS = "keys.parquet"


def sample(name: str, length: int, seed: int) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(0, BAD, length).tolist()
    return {"id": name, "ids": ids}


def old_rows() -> list[dict[str, Any]]:
    """Sixteen samples: one of four windows, one that is void, one whose second window is."""
    rows = [sample(f"a{i}", 3 + 5 * i % 11, i) for i in range(16)]
    rows[3] = sample("a3", 24, 3)
    rows[6]["ids"] = []
    rows[9]["ids"] = [1, 2, 3, 4, 5, 6, 7, BAD, 9, 10, 11, 12, 13]
    return rows


def new_rows() -> list[dict[str, Any]]:
    return [sample(f"b{i}", 2 + 3 * i % 7, 100 + i) for i in range(6)]


@pytest.fixture(scope="module")
def teacher() -> Any:
    table = torch.randn(16, 16, generator=torch.Generator().manual_seed(4)) * 2
    table[BAD] = torch.nan
    return sl.teachers.from_callable(lambda ids: table[ids], name="t", version="1", classes=16)


@pytest.fixture(scope="module")
def label(precompute: Precompute, teacher: Any) -> Precompute:
    def run(out: Path, rows: list[dict[str, Any]], **options: Any) -> sl.LabelSet:
        settings = {"selection": sl.TopK(4), "on_error": "skip", "probes": 20, "unit_rows": 4}
        return precompute(out, rows, teacher=teacher, **(settings | options))

    return run


@pytest.fixture(scope="module", params=["plain", "compact", "lossless"])
def source(
    request: pytest.FixtureRequest, label: Precompute, tmp_path_factory: pytest.TempPathFactory
) -> sl.LabelSet:
    """Four shards of windows of six tokens, with probes and rejects."""
    return label(tmp_path_factory.mktemp("old") / "set", old_rows(), codec=request.param)


def numbers(values: torch.Tensor | None) -> Any:
    """Every bit, NaN included."""
    return None if values is None else values.numpy().tobytes().hex()


def everything(labels: sl.LabelSet) -> list[Record]:
    """Every record, one by one, with its probes."""
    dense: dict[int, list[Any]] = {}
    for part in labels.probes():
        places = zip(part.records.tolist(), part.positions.tolist(), strict=True)
        for place, (record, position) in enumerate(places):
            dense.setdefault(record, []).append((position, numbers(part.logits[place])))
    found = []
    for number in range(len(labels)):
        record = labels.take([number])
        y = record.labels
        fields = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "logits")
        found.append({
            **record.identity.to_pylist()[0],
            "token_ids": record.token_ids.tolist(),
            "next": int(record.next_ids[0]),
            "wanted": record.wanted.tolist(),
            **{name: numbers(getattr(y, name)) for name in fields},
            "probes": dense.get(number, []),
        })  # fmt: skip
    return found


def rejects(labels: sl.LabelSet) -> list[tuple[Any, ...]]:
    file = labels.root / "rejects.parquet"
    rows = pq.read_table(file).to_pylist() if file.exists() else []
    return [(row["key"], row["part"], row["reason"]) for row in rows]


def shown(labels: sl.LabelSet, number: int) -> dict[str, float]:
    """Statistics of a record by the book, position after position."""
    y = labels.take([number]).labels
    place = y.temperatures.index(1.0)
    nats, mass, tail, hard = [], [], [], []
    for t in range(len(y)):
        rest = math.exp(y.log_tails[t, place])
        kept = [math.exp(v) for v in y.log_probs[t].tolist() if v > -math.inf]
        kept = [p * (1 - rest) / sum(kept) for p in kept]
        nats.append(-sum(p * math.log(p) for p in [*kept, rest] if p))
        mass.append(1 - rest)
        tail.append(rest)
        if not y.hard_log_probs[t].isnan():
            hard.append(float(y.hard_log_probs[t]))
    mean_hard = sum(hard) / len(hard) if hard else math.nan
    length = len(labels.take([number]).wanted)
    return {
        "positions": len(y), "length": length, "entropy": sum(nats) / len(y),
        "mass": sum(mass) / len(y), "tail": sum(tail) / len(y), "hard_log_prob": mean_hard,
        "perplexity": math.exp(-mean_hard),
    }  # fmt: skip


def by_hash(key: str | int, fraction: float, seed: int) -> bool:
    data = key.encode() if isinstance(key, str) else key.to_bytes(8, "little", signed=True)
    return xxhash.xxh3_64_intdigest(data, seed) < int(fraction * 2**64)


@pytest.mark.parametrize("shard_records", [None, 1, 4, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keys": ["a15", "a3", "a6", "a0", "a9", "a3"]},
        {"fraction": 0.4, "seed": 7},
        {"fraction": 0.6, "keys": [f"a{i}" for i in range(1, 12)]},
    ],
    ids=lambda options: " ".join(options) or "everything",
)
def test_chosen_samples_are_what_the_slow_way_gives_with_rejects_and_probes(
    source: sl.LabelSet, tmp_path: Path, options: dict[str, Any], shard_records: int | None
) -> None:
    def taken(key: str) -> bool:
        chosen = key in options["keys"] if "keys" in options else True
        if "fraction" in options:
            chosen = chosen and by_hash(key, options["fraction"], options.get("seed", 0))
        return chosen

    derived = sl.derive(source, tmp_path / "set", shard_records=shard_records, **options)
    assert everything(derived) == [r for r in everything(source) if taken(r["key"])] != []
    assert sorted(rejects(derived)) == sorted(r for r in rejects(source) if taken(r[0]))
    samples = {r["key"] for r in everything(derived)} | {r[0] for r in rejects(derived)}
    assert derived.totals.source_rows == len(samples)
    assert derived.plan.codec == source.plan.codec
    assert verify(derived.root).findings == ()
    if shard_records is None:
        assert len(derived.receipts) == len(source.receipts)
    elif shard_records == 1000:
        assert len(derived.receipts) == 1


@pytest.mark.parametrize("count", range(1, 9))
def test_shards_are_as_full_as_samples_that_stay_whole_let_them_be(
    source: sl.LabelSet, tmp_path: Path, count: int
) -> None:
    derived = sl.derive(source, tmp_path / "set", shard_records=count)
    sizes = [len(list(group)) for _, group in groupby(r["key"] for r in everything(source))]
    expected: list[int] = []
    for size in sizes:
        if expected and expected[-1] + size <= count:
            expected[-1] += size
        else:
            expected.append(size)
    assert [receipt.rows for receipt in derived.receipts] == expected
    assert derived.plan.derived_from[-1].shard_records == count


@pytest.mark.parametrize("shard_records", [None, 3])
@pytest.mark.parametrize(
    "where",
    [
        "entropy < 1.3",
        "mass > .85 and positions >= 4",
        "not (length == 6) or tail > 0.15",
        "-hard_log_prob * 2 < 5 or perplexity < 3",
        "1 < positions < 5",
        "hard_log_prob != 0",
        "length - positions <= 0 and entropy / 2 + 1 > 1.65",
    ],
)
def test_records_are_chosen_by_what_their_labels_show(
    source: sl.LabelSet, tmp_path: Path, where: str, shard_records: int | None
) -> None:
    values = [shown(source, number) for number in range(len(source))]
    # Of a number that is not known no comparison holds; in Python != does.
    holds = [
        eval(where, {}, v) and not (where.startswith("hard") and math.isnan(v["hard_log_prob"]))
        for v in values
    ]
    expected = [r for r, held in zip(everything(source), holds, strict=True) if held]
    assert 0 < len(expected) < len(source)
    derived = sl.derive(source, tmp_path / "set", where=where, shard_records=shard_records)
    assert everything(derived) == expected
    keys = {record["key"] for record in expected}
    assert sorted(rejects(derived)) == sorted(r for r in rejects(source) if r[0] in keys)
    assert verify(derived.root).findings == ()


def test_a_fraction_is_a_function_of_seed_and_key_alone(
    source: sl.LabelSet, label: Precompute, tmp_path: Path
) -> None:
    def keys(labels: sl.LabelSet, name: str, **options: Any) -> set[str]:
        derived = sl.derive(labels, tmp_path / name, **options)
        return {record["key"] for record in everything(derived)}

    other = label(tmp_path / "other", old_rows()[::-1][:9], unit_rows=2)
    half = keys(source, "half", fraction=0.5)
    assert keys(source, "less", fraction=0.2) < half
    assert keys(source, "seed", fraction=0.5, seed=1) != half
    here = {record["key"] for record in everything(other)}
    assert keys(other, "of the other", fraction=0.5) == half & here


def test_keys_come_from_a_file_too(source: sl.LabelSet, tmp_path: Path) -> None:
    chosen = ["a1", "a3", "a12"]
    expected = [record for record in everything(source) if record["key"] in chosen]
    (tmp_path / "keys.txt").write_text("a12\r\na1\n\na3\n")
    pq.write_table(pa.table({"n": [1, 2, 3], "key": chosen}), tmp_path / PARQUET_OF_KEYS)
    pq.write_table(pa.table({"id": chosen}), tmp_path / "only.parquet")
    plans = []
    for name in ("keys.txt", PARQUET_OF_KEYS, "only.parquet"):
        derived = sl.derive(source, tmp_path / f"of {name}", keys=tmp_path / name)
        assert everything(derived) == expected
        plans.append(derived.plan)
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize("options", [{"keys": ["a0", "a14"]}, {"where": "length == 3"}])
def test_units_of_which_nothing_is_taken_are_there_in_another_codec_too(
    source: sl.LabelSet, tmp_path: Path, options: dict[str, Any]
) -> None:
    derived = sl.derive(source, tmp_path / "set", codec="compact", k=2, **options)
    assert [receipt.rows for receipt in derived.receipts].count(0) > 0
    whole = sl.derive(source, tmp_path / "whole", codec="compact", k=2)
    assert derived.plan.codec == whole.plan.codec
    mine = {(r["key"], r["part"]): r for r in everything(derived)}
    assert (
        mine == {key: r for r in everything(whole) if (key := (r["key"], r["part"])) in mine} != {}
    )
    assert verify(derived.root).findings == ()


def test_whole_numbers_are_keys_too(label: Precompute, tmp_path: Path) -> None:
    rows = [{**row, "id": 7 - i} for i, row in enumerate(new_rows())]
    source = label(tmp_path / "source", rows)
    (tmp_path / "keys").write_text("3\n5\n")
    by_file = sl.derive(source, tmp_path / "by file", keys=str(tmp_path / "keys"))
    assert everything(by_file) == [r for r in everything(source) if r["key"] in (3, 5)]
    half = sl.derive(source, tmp_path / "half", fraction=0.5)
    assert everything(half) == [r for r in everything(source) if by_hash(r["key"], 0.5, 0)]
    with pytest.raises(InputError, match=r"not all int64"):
        sl.derive(source, tmp_path / "no", keys=["3"])
    with pytest.raises(InputError, match=r"not all int64"):
        sl.derive(source, tmp_path / "no", keys=[3.0])


def test_samples_that_lost_their_end_are_counted_where_they_go(
    label: Precompute, tmp_path: Path
) -> None:
    rows = [sample(f"s{i}", length, i) for i, length in enumerate([9, 3, 6, 7, 12, 5])]
    source = label(tmp_path / "source", rows, on_long="truncate")
    assert source.totals.truncated == 3
    for keys, count in [(["s0", "s1", "s2"], 1), (["s3", "s4"], 2), (["s5", "s2"], 0)]:
        derived = sl.derive(source, tmp_path / f"{count}", keys=keys, shard_records=2)
        assert derived.totals.truncated == count


@pytest.mark.parametrize("shard_records", [None, 5])
def test_new_labels_appended_to_old_ones_are_what_labelling_all_at_once_gives(
    label: Precompute, tmp_path: Path, shard_records: int | None
) -> None:
    old = label(tmp_path / "old", old_rows(), codec="plain", probes=0)
    new = label(tmp_path / "new", new_rows(), codec="plain", probes=0, unit_rows=2)
    both = label(tmp_path / "both", [*old_rows(), *new_rows()], codec="plain", probes=0)
    merged = sl.derive(old, tmp_path / "all", merge=[new.root], shard_records=shard_records)
    assert everything(merged) == everything(both)
    assert rejects(merged) == rejects(both)
    assert merged.totals.source_rows == both.totals.source_rows
    assert verify(merged.root).findings == ()
    for key in ("a0", "b5"):
        assert numbers(merged.get(key).log_probs) == numbers(both.get(key).log_probs)


def test_sets_are_merged_in_the_order_given_and_the_plan_says_which(
    source: sl.LabelSet, label: Precompute, tmp_path: Path
) -> None:
    name = str(source.plan.codec["name"])
    new = label(tmp_path / "new", new_rows(), codec=name)
    half = sl.derive(new, tmp_path / "half", fraction=0.5)
    one = label(tmp_path / "one", [sample("c", 9, 8)], codec=name, probes=0)
    last = sl.derive(one, tmp_path / "last", shard_records=3)
    merged = sl.derive(half, tmp_path / "all", merge=[source, last])
    got, given = everything(merged), [r for s in (half, source, last) for r in everything(s)]
    exact = ("key", "part", "token_ids", "wanted", "logsumexp", "log_tails", "probes")
    assert [[r[n] for n in exact] for r in got] == [[r[n] for n in exact] for r in given]
    assert got[: len(half)] == given[: len(half)]
    if name == "plain":  # the ids of others come in the order of the first set's table
        assert [r["log_probs"] for r in got] == [r["log_probs"] for r in given]
    first, origin = merged.plan.derived_from
    assert first == half.plan.derived_from[0]
    assert first.fraction == 0.5
    assert [m.derived_from for m in origin.merged] == [(), last.plan.derived_from]
    assert last.plan.derived_from[0].shard_records == 3
    assert json.loads((merged.root / "plan.json").read_text())["derived_from"][1].keys() == {
        "plan_sha256", "shards_sha256", "codec", "k", "writer", "merged",
    }  # fmt: skip
    assert verify(merged.root).findings == ()


def test_what_compact_rounds_again_stays_within_a_step(label: Precompute, tmp_path: Path) -> None:
    sets = [
        label(tmp_path / n, rows, codec="compact")
        for n, rows in [("a", old_rows()), ("b", new_rows())]
    ]
    assert sets[0].plan.codec != sets[1].plan.codec
    merged = sl.derive(sets[0], tmp_path / "all", merge=sets[1:])
    for record in range(len(sets[1])):
        ours, theirs = (
            y.sorted()
            for y in (merged.take([len(sets[0]) + record]).labels, sets[1].take([record]).labels)
        )
        roots = [44 * 4 ** (1 / 3) * (y.log_probs / 3).exp() for y in (ours, theirs)]
        assert float((roots[0] - roots[1]).abs().max()) <= 1
        assert torch.equal(ours.log_tails, theirs.log_tails)


def test_with_codec_and_entries_kept_no_value_is_rounded_again(
    precompute: Precompute, tmp_path: Path
) -> None:
    table = torch.randn(512, 512, generator=torch.Generator().manual_seed(3)) * 3
    wide = sl.teachers.from_callable(lambda ids: table[ids], name="w", version="1", classes=512)
    rows = [
        {"id": f"s{i}", "ids": np.random.default_rng(i).integers(0, 512, 100).tolist()}
        for i in range(40)
    ]
    options = {"teacher": wide, "selection": sl.TopK(8), "codec": "compact", "max_length": 100}
    source = precompute(tmp_path / "source", rows, **options)
    records = join(list(source.groups()))
    columns = source.codec.encode(records.labels, records.label_offsets)
    positions = pa.array(np.diff(records.label_offsets).astype(np.int32))
    again, _ = source.codec.decode(pa.table({"positions": positions, **columns}))
    assert not torch.equal(again.log_probs, records.labels.log_probs)
    for options in ({"fraction": 1.0}, {"where": "positions > 1"}, {"shard_records": 7}):
        derived = sl.derive(source, tmp_path / str(options), **options)
        assert everything(derived) == everything(source)


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"teacher": "other"}, r'teacher\.revision is "1" and "2"'),
    "preparation": ({"max_length": 5}, r"preparation\.max_length is 6 and 5"),
    "selection": ({"selection": sl.TopK(3)}, r"selection\.k is 4 and 3"),
    "codec": ({"codec": "lossless"}, r'codec\.name is "plain" and "lossless"'),
    "temperatures": ({"temperatures": (1.0,)}, r"temperatures is \[1.0, 2.0\] and \[1.0\]"),
    "inputs": ({"store_inputs": False}, "store_inputs is True and False"),
    "keys": ({"key": None}, r'data\.key is "id" and None'),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_sets_of_two_recipes_are_not_merged_and_what_differs_is_named(
    label: Precompute, precompute: Precompute, tmp_path: Path, name: str
) -> None:
    options, words = DIFFERENT[name]
    old = label(tmp_path / "old", old_rows(), codec="plain")
    if "teacher" in options:
        other = sl.teachers.from_callable(
            lambda ids: torch.ones(*ids.shape, 16), name="t", version="2", classes=16
        )
        new = precompute(tmp_path / "new", new_rows(), selection=sl.TopK(4), teacher=other)
    else:
        new = label(tmp_path / "new", new_rows(), **({"codec": "plain"} | options))
    with pytest.raises(InputError, match=f"old and .*new cannot be merged: .*{words}"):
        sl.derive(old, tmp_path / "all", merge=[new])
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("key", ["a3", "a6", "a9"])  # labelled, rejected, and both
def test_a_key_in_two_sets_is_named_with_both_of_them(
    source: sl.LabelSet, label: Precompute, tmp_path: Path, key: str
) -> None:
    twice = {**sample("", 4, 1), "id": key}
    name = str(source.plan.codec["name"])
    new = label(tmp_path / "new", [*new_rows(), twice], codec=name)
    void = label(tmp_path / "void", [{"id": key, "ids": [99]}], codec=name)
    for sets in ([source, new], [new, source], [source, void], [void, source], [void, new]):
        with pytest.raises(DuplicateKeyError, match=f'"{key}" is in .* and in ') as caught:
            sl.derive(sets[0], tmp_path / "all", merge=sets[1:])
        assert all(str(each.root) in str(caught.value) for each in sets)
    assert not (tmp_path / "all").exists()
    keys = [f"b{i}" for i in range(6)] + ["a0", "a1"]
    apart = sl.derive(source, tmp_path / "apart", merge=[new], keys=keys)
    assert {record["key"] for record in everything(apart)} == set(keys)


def test_row_numbers_as_keys_cannot_be_merged(label: Precompute, tmp_path: Path) -> None:
    sets = [label(tmp_path / n, new_rows(), key=None) for n in "ab"]
    with pytest.raises(DuplicateKeyError, match=r'"0" is in .*row numbers.*a key column'):
        sl.derive(sets[0], tmp_path / "all", merge=sets[1:])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keys": []}, "there are no keys"),
    ({"keys": ["a1", "nobody", "void"]}, r'2 of 3 are not in .*set, "nobody" for one'),
    ({"keys": [1, 2]}, "not all string"),
    ({"keys": ["a1", None]}, "not all string"),
    ({"keys": 7}, "a list of keys, or a file"),
    ({"keys": "nowhere.txt"}, "no such file"),
    ({"fraction": 0}, "above 0 and at most 1"),
    ({"fraction": 1.5}, "above 0 and at most 1"),
    ({"fraction": math.nan}, "above 0 and at most 1"),
    ({"fraction": 0.5, "seed": -1}, "seed is -1"),
    ({"where": "entropy"}, "a number, not a condition"),
    ({"shard_records": 0}, "shard_records is 0"),
    ({"shard_records": True}, "shard_records is True"),
    ({"shard_records": 10**9}, "more than 2 GiB: choose at most"),
    ({"workers": 0}, "workers is 0"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_a_wrong_argument_is_refused_before_anything_is_written(
    source: sl.LabelSet, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        sl.derive(source, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_records_of_a_sampled_set_are_copied_as_they_are(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    records, receipt = next(source.groups()), source.receipts[0]
    labels = replace(
        records.labels, log_probs=torch.full_like(records.labels.log_probs, -np.log(8)),
        log_tails=None, temperatures=(), logits=None, sampled=True,
    )  # fmt: skip
    codec = Sampled(16, 4, (), IdTable(16, ()), draws=8)
    update = {"codec": codec.to_json(), "temperatures": (), "probes": 0}
    plan = source.plan.model_copy(update=update)
    with begin(tmp_path / "sampled", plan, save_tokenizer=None) as writer:
        summary = UnitSummary(0, receipt.source_rows, receipt.input_digest)
        writer.publish(replace(records, labels=labels), summary)
        writer.finish(1)
    drawn = sl.LabelSet.open(tmp_path / "sampled")
    derived = sl.derive(drawn, tmp_path / "set", keys=["a1", "a3"])
    assert everything(derived) == [r for r in everything(drawn) if r["key"] in ("a1", "a3")]
    assert derived.take([0]).labels.sampled


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_units_may_be_derived_in_any_order_and_again(
    source: sl.LabelSet, label: Precompute, tmp_path: Path
) -> None:
    new = label(tmp_path / "new", new_rows(), codec=str(source.plan.codec["name"]))
    expected = sl.derive(source, tmp_path / "set", merge=[new], shard_records=5).root
    sources = Sources((source, new))
    places = bounds(sources, Choice(), shard_records=5, workers=1)
    recipe = Recipe(sources, Choice(), places, source.plan.selection.k)
    assert len(recipe) > 3
    plan = sl.LabelSet.open(expected).plan
    with begin(tmp_path / "other", plan, save_tokenizer=None) as writer:
        for unit in [*range(len(recipe))[::-1], 1, 0]:
            derive_unit(recipe, unit, writer)
        writer.finish(len(recipe))
    assert contents(tmp_path / "other") == contents(expected)


@pytest.mark.parametrize("source", ["compact"], indirect=True)
@pytest.mark.parametrize("count", [1, 5])
def test_a_killed_merge_goes_on_to_the_same_set_and_no_other_recipe_does(
    source: sl.LabelSet, label: Precompute, tmp_path: Path, count: int
) -> None:
    new = label(tmp_path / "new", new_rows(), codec=str(source.plan.codec["name"]))
    recipe: dict[str, Any] = {"merge": [new], "where": "positions>1", "shard_records": 4}
    whole = contents(sl.derive(source, tmp_path / "whole", workers=1, **recipe).root)
    out = tmp_path / "set"
    again = recipe | {"merge": [new.root], "where": "positions > 1"}
    killed("before", "os.link", count, partial(sl.derive, source.root, out, workers=2, **again))
    if count > 1:
        for changed, words in [
            ({"where": "positions > 2"}, r'0\.where was "positions > 1", is now "positions > 2"'),
            ({"shard_records": 5}, r"0\.shard_records was 4, is now 5"),
            ({"merge": []}, r"0\.merged.* is now null"),
            ({"fraction": 0.5}, r"0\.fraction was null, is now 0\.5"),
            ({"keys": ["a1"]}, r"0\.keys was null, is now 1"),
        ]:
            with pytest.raises(PlanMismatchError, match=words):
                sl.derive(source, out, **(recipe | changed))
    sl.derive(source, out, **recipe)
    assert contents(out) == whole


def last_first(function: Callable[[Any], Any], items: Any, *, workers: int) -> Any:
    """As `in_order`, whose threads may begin in any order, and here in the worst."""
    listed = list(items)
    return iter([function(item) for item in reversed(listed)][::-1])


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_row_groups_keep_their_own_labels_in_whatever_order_they_are_written(
    codec: str, label: Precompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one length: labels of another row group would fit, and nobody would notice."""
    rows = [sample(f"a{i}", 6, i) for i in range(12)]
    monkeypatch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 12)
    source = label(tmp_path / "source", rows, codec=codec, unit_rows=12, probes=0)
    assert len(source.receipts[0].group_rows) == 6
    monkeypatch.setattr(shard_writing, "in_order", last_first)
    fewer = sl.derive(source, tmp_path / "fewer", k=2)
    some = sl.derive(source, tmp_path / "some", keys=[row["id"] for row in rows[:7]])
    for number, labels in enumerate(source):
        kept, expected = fewer[number].ids, labels.top(2).ids  # in any order where they are equal
        assert kept.sort().values.equal(expected.sort().values)
        if number < 7:
            assert some[number].ids.equal(labels.ids)
            assert some[number].log_probs.equal(labels.log_probs)

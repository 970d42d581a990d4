"""derive: what labelling with it would have given, where it came from, and kill -9 anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import killed

import softlabels as sl
from softlabels.codecs import Sampled, curves
from softlabels.codecs.idtable import IdTable
from softlabels.errors import CorruptShardError, InputError, LabelSetError, PlanMismatchError
from softlabels.format.summary import UnitSummary
from softlabels.labels import concatenate
from softlabels.labelset.writer import begin
from softlabels.verifying.verify import repair, verify

Precompute = Callable[..., sl.LabelSet]
Label = Callable[[Path, str, int], sl.LabelSet]

FIRST, SECOND = "data/train-00000.parquet", "data/train-00001.parquet"
WIDE = 320
# Two float32 values of up to 16, rounded in another order: two units in their last place.
ROUNDING = 2 * 2**-20


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, place: int) -> bytes:
    """Flip a bit; returns the bytes as they were."""
    good = path.read_bytes()
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    return good


def flat(labels: sl.LabelSet) -> sl.SoftLabels:
    """Every labelled position, entries by ascending id: codecs differ in their order."""
    found = concatenate([records.labels for records in labels.groups()])
    order = found.ids.argsort(-1)
    return replace(
        found,
        ids=found.ids.gather(-1, order),
        log_probs=found.log_probs.gather(-1, order),
        logits=None if found.logits is None else found.logits.gather(-1, order),
    )


def same(ours: sl.SoftLabels, theirs: sl.SoftLabels) -> bool:
    """Bit for bit, but for the payload of NaN."""
    for name in sl.SoftLabels.FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        if (a is None) != (b is None):
            return False
        if a is not None and not (a.dtype == b.dtype and torch.allclose(a, b, 0, 0, True)):
            return False
    return True


@pytest.fixture
def source(tmp_path: Path, precompute: Precompute) -> sl.LabelSet:
    """Two shards of eight of sixteen classes, lossless, with probes."""
    return precompute(tmp_path / "source", selection=sl.TopK(8), codec="lossless", probes=4)


@pytest.fixture(scope="module")
def llama_set(
    tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path, rows: list[dict[str, Any]]
) -> Path:
    """Three shards by the small Llama, with a tokenizer, probes, a reject and cut samples."""
    data = [*rows[:7], {"id": "void", "text": ""}]
    return sl.precompute(
        data, teacher_dir, tmp_path_factory.mktemp("llama") / "set", selection=sl.TopK(16),
        key="id", max_length=48, on_long="truncate", on_error="skip", unit_rows=3, probes=9,
        codec="lossless", progress=False,
    ).root  # fmt: skip


@pytest.fixture(params=["bfloat16", "float16", "float32", "llama"])
def label(request: pytest.FixtureRequest, precompute: Precompute, rows: Any) -> Label:
    """Label some records of a teacher of hundreds of classes with a codec and k."""
    if request.param == "llama":
        teacher, data = request.getfixturevalue("teacher_dir"), rows[1:13]
        options: dict[str, Any] = {"column": "text", "max_length": 64}
    else:
        noise = torch.randn(WIDE, WIDE, generator=torch.Generator().manual_seed(1))
        table = (3 * noise).to(getattr(torch, request.param))
        teacher = sl.teachers.from_callable(
            lambda ids: table[ids], name="table", version="1", classes=WIDE
        )
        rng = np.random.default_rng(1)
        lengths = rng.integers(1, 40, 24)
        data = [{"id": f"w{n}", "ids": rng.integers(0, WIDE, n).tolist()} for n in lengths]
        data = [{**row, "id": f"{row['id']}-{i}"} for i, row in enumerate(data)]
        options = {"max_length": 16, "unit_rows": 8}

    def run(out: Path, codec: str, k: int) -> sl.LabelSet:
        selection = sl.TopK(k)
        return precompute(
            out, data, teacher=teacher, codec=codec, selection=selection,
            temperatures=(1.0, 2.0, 4.0), **options,
        )  # fmt: skip

    return run


def test_compact_of_lossless_is_what_labelling_with_compact_gives(
    label: Label, tmp_path: Path
) -> None:
    """Codes are equal but for a few, one cell apart.

    The total of all classes is summed in float32 as kept + unkept, so its last bit depends on
    where k cuts, and the tail's on it; a number that close to the edge of a cell falls beside it.
    """
    wide = label(tmp_path / "source", "lossless", 128)
    ours = flat(sl.derive(wide, tmp_path / "derived", codec="compact", k=32))
    theirs = flat(label(tmp_path / "direct", "compact", 32))
    few = len(theirs) // 100
    assert torch.equal(ours.ids, theirs.ids)
    codes = [curves.tail_codes(each.log_tails.numpy()).astype(int) for each in (ours, theirs)]
    apart = torch.from_numpy(np.abs(codes[0] - codes[1]))
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= few
    for name in ("logsumexp", "hard_log_probs"):
        steps = (getattr(ours, name) - getattr(theirs, name)).nan_to_num().abs() * 1024
        assert float(steps.max()) <= 1 + 1e-2  # float32 of a multiple of 2⁻¹⁰
        assert int((steps > 0.5).sum()) <= few
    assert torch.equal(ours.hard_log_probs.isnan(), theirs.hard_log_probs.isnan())
    comparable = apart[:, 0] == 0
    unequal = (ours.log_probs != theirs.log_probs)[comparable].any(-1)
    assert int(unequal.sum()) <= few


def test_plain_of_lossless_is_what_labelling_with_plain_gives(label: Label, tmp_path: Path) -> None:
    wide = label(tmp_path / "source", "lossless", 128)
    derived = sl.derive(wide, tmp_path / "derived", codec="plain", k=32)
    ours, theirs = flat(derived), flat(label(tmp_path / "direct", "plain", 32))
    assert torch.equal(ours.ids, theirs.ids)
    # The logits are the teacher's, bit for bit; the logsumexp is off by its last bit at most.
    for name in ("log_probs", "logsumexp", "hard_log_probs"):
        apart = (getattr(ours, name) - getattr(theirs, name)).nan_to_num().abs()
        assert float(apart.max()) <= ROUNDING
    assert float((ours.log_tails.exp() - theirs.log_tails.exp()).abs().max()) <= 1e-6
    assert float((ours.log_tails - theirs.log_tails).abs().max()) <= ROUNDING
    assert all(
        torch.equal(records.labels.log_probs, records.labels.sorted().log_probs)
        for records in derived.groups()
    )


ALLOWED = [
    *((source, target) for source in ("plain", "compact") for target in ("plain", "compact")),
    *(("lossless", target) for target in ("plain", "compact", "lossless")),
]


@pytest.mark.parametrize("k", [3, 8, None])
@pytest.mark.parametrize(("codec", "target"), ALLOWED)
def test_a_derived_set_holds_the_likeliest_entries_as_its_codec_writes_them(
    precompute: Precompute, tmp_path: Path, codec: str, target: str, k: int | None
) -> None:
    source = precompute(tmp_path / "source", selection=sl.TopK(8), codec=codec, overlap=2)
    derived = sl.derive(source.root, tmp_path / "set", codec=target, k=k)
    assert (derived.plan.codec["name"], derived.plan.selection.k) == (target, k or 8)
    assert verify(derived.root).findings == ()
    for ours, theirs in zip(derived.groups(), source.groups(), strict=True):
        fewer = theirs.labels.top(k or 8)
        columns = derived.codec.encode(fewer, theirs.label_offsets)
        positions = pa.array(np.diff(theirs.label_offsets).astype(np.int32))
        expected, _ = derived.codec.decode(pa.table({"positions": positions, **columns}))
        assert same(ours.labels, expected)


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_lossless_comes_from_lossless_alone(
    precompute: Precompute, tmp_path: Path, codec: str
) -> None:
    source = precompute(tmp_path / "source", codec=codec)
    with pytest.raises(InputError, match=f"the codec {codec}.*derived from lossless alone"):
        sl.derive(source, tmp_path / "set", codec="lossless")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("k", [0, -1, 9, True, 3.0, "3"])
def test_entries_that_cannot_be_kept_are_refused_before_anything_is_written(
    source: sl.LabelSet, tmp_path: Path, k: Any
) -> None:
    with pytest.raises(InputError, match=rf"k is {k!r}; the source holds 8 entries"):
        sl.derive(source, tmp_path / "set", k=k)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("codec", ["zip", "sampled", "Compact"])
def test_a_codec_that_there_is_not_is_refused_before_anything_is_written(
    source: sl.LabelSet, tmp_path: Path, codec: str
) -> None:
    with pytest.raises(InputError, match=rf"{codec}.*choose from tiny, compact, lossless, plain"):
        sl.derive(source, tmp_path / "set", codec=codec)
    assert not (tmp_path / "set").exists()


@pytest.fixture
def sampled_set(source: sl.LabelSet, tmp_path: Path) -> Path:
    """The records of the first shard, as a sampled selection of eight draws would leave them."""
    records, receipt = next(source.groups()), source.receipts[0]
    labels = replace(
        records.labels, log_probs=torch.full_like(records.labels.log_probs, -np.log(8)),
        log_tails=None, temperatures=(), logits=None, sampled=True,
    )  # fmt: skip
    codec = Sampled(16, 8, (), IdTable(16, ()), draws=8)
    update = {"codec": codec.to_json(), "temperatures": (), "probes": 0}
    root = tmp_path / "sampled"
    with begin(root, source.plan.model_copy(update=update), save_tokenizer=None) as writer:
        summary = UnitSummary(0, receipt.source_rows, receipt.input_digest)
        writer.publish(replace(records, labels=labels), summary)
        writer.finish(1)
    assert verify(root).findings == ()
    return root


@pytest.mark.parametrize(
    ("codec", "k"),
    [
        (None, 3),
        ("compact", None),
        ("tiny", 3),
        ("plain", None),
    ],
)
def test_sampled_labels_are_refused_and_nothing_is_begun(
    sampled_set: Path, tmp_path: Path, codec: str | None, k: int | None
) -> None:
    with pytest.raises(InputError, match="sampled"):
        sl.derive(sampled_set, tmp_path / "set", codec=codec, k=k)
    assert contents(tmp_path / "set") == {}


def test_a_source_that_is_unfinished_and_a_folder_that_is_taken_are_refused(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        sl.derive(source, tmp_path)
    (source.root / "manifest.json").unlink()
    with pytest.raises(LabelSetError, match="unfinished"):
        sl.derive(source.root, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_unfinished_source_that_was_opened_is_refused_too(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    (source.root / SECOND).unlink()
    repair(source.root, verify(source.root))
    part = sl.LabelSet.open(source.root, unfinished=True)
    with pytest.raises(LabelSetError, match="unfinished"):
        sl.derive(part, tmp_path / "set")


COMES_ALONG: dict[str, dict[str, Any]] = {
    "windows that overlap": {"overlap": 2},
    "cut samples": {"on_long": "truncate"},
    "no token ids": {"store_inputs": False},
    "integer keys": {"key": "number"},
    "row numbers": {"key": None},
}


def of_the_samples(root: Path) -> list[Any]:
    """Columns and footers of every shard, but for labels and the plan's digest."""
    found: list[Any] = []
    for path in sorted((root / "data").iterdir()):
        table = pq.ParquetFile(path).read()
        names = table.schema.names
        found.append(table.select(names[: names.index("next_id") + 1]).to_pylist())
        keys = {k: v for k, v in pq.read_metadata(path).metadata.items() if b"softlabels." in k}
        assert keys.pop(b"softlabels.plan").decode() == sha256(root / "plan.json")
        found.append((path.name, keys))
    return found


@pytest.mark.parametrize("name", COMES_ALONG)
def test_records_rejects_and_probes_come_along_unchanged(
    precompute: Precompute, id_rows: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    rows = [{**row, "number": -i} for i, row in enumerate([*id_rows, {"id": "void", "ids": []}])]
    source = precompute(
        tmp_path / "source", rows, on_error="skip", probes=5, **COMES_ALONG[name]
    ).root
    derived = sl.derive(source, tmp_path / "set", codec="compact", k=2).root
    ours, theirs = contents(derived), contents(source)
    assert of_the_samples(derived) == of_the_samples(source)
    changed = {"plan.json", "shards.parquet", "manifest.json", "README.md"}
    for file in theirs.keys() - changed:
        assert file.startswith("data/") or ours[file] == theirs[file], file
    assert ours.keys() == theirs.keys()
    assert {"rejects.parquet", "probes/train-00000.parquet"} <= ours.keys()
    totals = [sl.LabelSet.open(root).totals for root in (derived, source)]
    assert totals[0].entries == 2 * totals[0].positions
    varying = {"bytes": 0, "entries": 0}
    assert totals[0].model_copy(update=varying) == totals[1].model_copy(update=varying)
    assert (totals[0].truncated > 0) == (name == "cut samples")


def test_the_tokenizer_comes_along(llama_set: Path, tmp_path: Path) -> None:
    derived = sl.derive(llama_set, tmp_path / "set", codec="tiny").root
    assert contents(derived / "tokenizer") == contents(llama_set / "tokenizer") != {}
    assert contents(derived / "probes") == contents(llama_set / "probes") != {}
    assert of_the_samples(derived) == of_the_samples(llama_set)
    assert verify(derived).findings == ()


@pytest.mark.parametrize(("codec", "target"), ALLOWED)
def test_a_unit_of_rejects_and_a_set_of_nothing_else_can_be_derived(
    precompute: Precompute, tmp_path: Path, codec: str, target: str
) -> None:
    void = [{"id": f"void{i}", "ids": [99]} for i in range(3)]  # there is no class 99
    some = [{"id": "good", "ids": [1, 2, 3]}]
    for name, rows in {"half": [*void, *some], "empty": void}.items():
        source = precompute(tmp_path / name, rows, codec=codec, on_error="skip", probes=2)
        derived = sl.derive(source, tmp_path / f"{name}-derived", codec=target, k=2)
        assert derived.receipts[0].group_rows == ()
        assert (derived.totals.rejects, len(derived)) == (3, len(source))
        assert verify(derived.root).findings == ()
        rejects = [contents(each.root)["rejects.parquet"] for each in (source, derived)]
        assert rejects[0] == rejects[1]


def test_a_set_says_where_it_came_from_through_every_derivation(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    middle = sl.derive(source, tmp_path / "middle", codec="plain", k=5)
    last = sl.derive(middle, tmp_path / "last", codec="compact", k=3)
    assert source.plan.derived_from == ()
    assert middle.plan.derived_from == last.plan.derived_from[:1]
    assert json.loads((last.root / "plan.json").read_text())["derived_from"] == [
        {
            "plan_sha256": sha256(before.root / "plan.json"),
            "shards_sha256": sha256(before.root / "shards.parquet"),
            "codec": codec,
            "k": k,
            "writer": before.plan.writer,
        }
        for before, codec, k in [(source, "lossless", 8), (middle, "plain", 5)]
    ]
    changed = {"writer", "selection", "codec", "derived_from"}
    plans = [each.plan.model_dump(exclude=changed) for each in (source, middle, last)]
    assert plans[0] == plans[1] == plans[2]
    assert [verify(each.root).findings for each in (middle, last)] == [(), ()]
    assert same(flat(last), flat(sl.derive(middle.root, tmp_path / "again", codec="compact", k=3)))


def test_a_student_learns_from_a_derived_set(source: sl.LabelSet, tmp_path: Path) -> None:
    derived = sl.derive(source, tmp_path / "set", codec="compact", k=4)
    student = torch.nn.Embedding(16, 16)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.3)
    losses = []
    for _ in range(20):
        for batch in sl.loader(derived, batch_size=3, seed=0):
            labels = batch["soft_labels"]
            kl = sl.losses.kl_divergence(student(batch["input_ids"]), labels, temperature=2.0)
            assert torch.isfinite(kl).all()
            losses.append(float(kl.detach()[labels.mask].mean()))
            optimiser.zero_grad()
            kl.sum().backward()
            optimiser.step()
    assert losses[-1] < losses[0] / 4


REPLACE = "softlabels.stores.directory.Directory.replace"
KILLS = [
    ("after", "os.link", 1),  # plan.json
    ("after", "shutil.copyfile", 1),  # the tokenizer's first file
    ("before", "os.link", 2),  # the first unit's probes
    ("after", "os.link", 2),
    ("after", "softlabels.format.shard_writing.to_table", 1),  # its shard
    ("before", "os.link", 4),  # its receipt, after its shard
    ("before", "os.link", 6),  # the second unit's shard
    ("before", REPLACE, 1),  # shards.parquet
    ("before", REPLACE, 5),  # manifest.json
    ("after", REPLACE, 5),
]


@pytest.fixture(scope="module")
def uninterrupted(llama_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sl.derive(llama_set, tmp_path_factory.mktemp("whole") / "set", codec="compact", k=4).root


@pytest.mark.parametrize(("moment", "function", "count"), KILLS)
def test_a_killed_derivation_goes_on_to_the_same_set(
    llama_set: Path, uninterrupted: Path, tmp_path: Path, moment: str, function: str, count: int
) -> None:
    out = tmp_path / "set"
    job = partial(sl.derive, llama_set, out, codec="compact", k=4, workers=1)
    killed(moment, function, count, job)
    before = times(out / "data")
    sl.derive(llama_set, out, codec="compact", k=4)
    assert contents(out) == contents(uninterrupted)
    assert before.items() <= times(out / "data").items()
    assert not any(path.name.startswith(".") for path in out.iterdir())


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"k": 3}, r"selection\.k was 4, is now 3"),
        ({"codec": "plain"}, r'codec\.name was "compact", is now "plain"'),
        ({"codec": "lossless", "k": 4}, r'codec\.name was "compact", is now "lossless"'),
    ],
)
def test_another_k_or_codec_into_the_same_folder_is_refused_by_name(
    source: sl.LabelSet, tmp_path: Path, finished: bool, changed: dict[str, Any], words: str
) -> None:
    out = sl.derive(source, tmp_path / "set", codec="compact", k=4).root
    if not finished:
        (out / SECOND).unlink()
        (out / "manifest.json").unlink()
    before = contents(out)
    with pytest.raises(PlanMismatchError, match=words) as caught:
        sl.derive(source, out, **({"codec": "compact", "k": 4} | changed))
    assert "derived_from" not in str(caught.value)
    assert contents(out) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_source_that_changed_meanwhile_is_refused(
    precompute: Precompute, tmp_path: Path, finished: bool
) -> None:
    source = precompute(tmp_path / "source").root
    out = sl.derive(source, tmp_path / "set", k=2).root
    if not finished:
        (out / SECOND).unlink()
        (out / "manifest.json").unlink()
    before, plan = contents(out), (source / "plan.json").read_bytes()
    shutil.rmtree(source)
    other = sl.teachers.from_callable(
        lambda ids: torch.ones(*ids.shape, 16), name="table", version="1", classes=16
    )
    precompute(source, teacher=other)
    assert (source / "plan.json").read_bytes() == plan
    with pytest.raises(PlanMismatchError, match=r"derived_from\.0\.shards_sha256 was"):
        sl.derive(source, out, k=2)
    assert contents(out) == before


def test_a_damaged_shard_of_the_source_is_named_and_whole_ones_stay(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    whole = contents(sl.derive(source, tmp_path / "whole", codec="compact", k=4).root)
    good = flip(source.root / SECOND, 300)
    out = tmp_path / "set"
    # The codec learns from a sample of every shard, so not even a plan is written.
    with pytest.raises(CorruptShardError, match="train-00001"):
        sl.derive(source.root, out, codec="compact", k=4)
    assert contents(out) == {}
    with pytest.raises(CorruptShardError, match="train-00001"):
        sl.derive(source.root, out, codec="plain", k=4)
    assert {name for name in contents(out) if name.startswith("data")} == {FIRST}
    assert verify(out).findings == ()
    with pytest.raises(LabelSetError, match="unfinished"):
        sl.LabelSet.open(out)
    (source.root / SECOND).write_bytes(good)
    assert sl.derive(source.root, out, codec="plain", k=4).finished
    assert contents(sl.derive(source.root, tmp_path / "last", codec="compact", k=4).root) == whole


def test_the_source_s_codec_stays_and_a_second_run_keeps_it(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    for codec in ("lossless", "plain", "compact"):
        first = sl.derive(source, tmp_path / codec, codec=codec, k=5)
        out = sl.derive(first, tmp_path / f"of {codec}", k=4).root
        plan, shard = (out / "plan.json").read_bytes(), (out / SECOND).read_bytes()
        assert sl.LabelSet.open(out).plan.codec["name"] == codec
        (out / SECOND).unlink()
        sl.derive(first, out, k=4)
        assert (out / "plan.json").read_bytes() == plan
        assert (out / SECOND).read_bytes() == shard


def test_tiny_keeps_eight_entries_where_there_are_more(
    precompute: Precompute, tmp_path: Path
) -> None:
    source = precompute(tmp_path / "source", selection=sl.TopK(12), codec="plain")
    tiny = sl.derive(source, tmp_path / "tiny", codec="tiny")
    assert (tiny.plan.codec["name"], tiny.plan.selection.k) == ("compact", 8)
    assert sl.derive(source, tmp_path / "tiny", codec="tiny").plan == tiny.plan
    for k, kept in [(3, 3), (12, 12)]:
        assert sl.derive(source, tmp_path / f"{k}", codec="tiny", k=k).plan.selection.k == kept
    five = sl.derive(source, tmp_path / "five", k=5)
    assert sl.derive(five, tmp_path / "less", codec="tiny").plan.selection.k == 5


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"codec": "plain"}])
def test_a_set_is_not_derived_into_itself(source: sl.LabelSet, options: dict[str, Any]) -> None:
    before = times(source.root)
    with pytest.raises(PlanMismatchError, match="another recipe"):
        sl.derive(source, source.root, **options)
    assert times(source.root) == before
    assert verify(source.root).findings == ()


def test_a_finished_derivation_is_left_as_it_is(llama_set: Path, uninterrupted: Path) -> None:
    before = times(uninterrupted)
    assert len(sl.derive(llama_set, uninterrupted, codec="compact", k=4)) == 7
    assert times(uninterrupted) == before


def test_a_repaired_derivation_is_made_whole_by_the_same_call(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    out = sl.derive(source, tmp_path / "set", codec="compact", k=4).root
    before = contents(out)
    for file in (FIRST, "probes/train-00001.parquet"):
        flip(out / file, 300)
        assert {finding.file for finding in verify(out).findings} == {file}
        repair(out, verify(out))
        sl.derive(source, out, codec="compact", k=4)
        assert contents(out) == before


def test_damaged_probes_of_the_source_are_named_and_not_published(
    source: sl.LabelSet, tmp_path: Path
) -> None:
    name = "probes/train-00000.parquet"
    good = flip(source.root / name, 300)
    with pytest.raises(CorruptShardError, match=name):
        sl.derive(source, tmp_path / "set", k=4)
    (source.root / name).write_bytes(good)
    assert sl.derive(source, tmp_path / "set", k=4).finished


def test_probes_of_the_source_are_held_to_their_digest(source: sl.LabelSet, tmp_path: Path) -> None:
    name = "probes/train-00000.parquet"
    flip(source.root / name, 0)
    with pytest.raises(CorruptShardError, match=name):
        sl.derive(source, tmp_path / "set", k=4)


def test_missing_probes_of_the_source_are_named(source: sl.LabelSet, tmp_path: Path) -> None:
    (source.root / "probes" / "train-00000.parquet").unlink()
    with pytest.raises(CorruptShardError, match=r"probes/train-00000\.parquet"):
        sl.derive(source, tmp_path / "set", k=4)


def test_a_damaged_tokenizer_of_the_source_is_named(llama_set: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(llama_set, tmp_path / "source"))
    flip(source / "tokenizer" / "tokenizer.json", 50)
    with pytest.raises(CorruptShardError, match=r"tokenizer\.json"):
        sl.derive(source, tmp_path / "set", k=4)

"""Sets of independent classes and of vectors: made, checked, looked at, derived, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import softlabels as sl
from softlabels.cli import main
from softlabels.errors import InputError, KindError, LabellingError, PlanMismatchError
from softlabels.verifying.verify import repair, verify

WIDTH, CLASSES = 12, 20
Row = dict[str, Any]


def rows(count: int = 40) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        {"id": i, "frames": _short(rng.normal(size=(2 + i % 3, WIDTH))).astype(np.float32)}
        for i in range(count)
    ]


def _short(values: Any) -> Any:
    """Of few bits: what a teacher makes of them is exact, in whatever order it is summed."""
    return (values * 256).round() / 256


def teacher(kind: str) -> Any:
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_short(parameter))
    return sl.teachers.from_callable(
        layer, classes=CLASSES, takes="arrays", kind=kind, positions="every"
    )  # type: ignore[arg-type]


def label(out: Path, kind: str, **options: Any) -> sl.LabelSet:
    settings = {"column": "frames", "key": "id", "unit_rows": 16} | options
    return sl.precompute(rows(), teacher(kind), out, **settings)


def exact(kind: str, array: np.ndarray) -> torch.Tensor:
    (found,) = teacher(kind).logits(
        torch.from_numpy(array)[None],
        torch.ones(1, len(array), dtype=torch.bool),
        padding=torch.zeros(1, len(array), dtype=torch.bool),
    )
    return found


@pytest.mark.parametrize("codec", ["binary", "binary_plain"])
@pytest.mark.parametrize("k", [5, CLASSES])
def test_independent_classes_are_what_the_teacher_gave(codec: str, k: int, tmp_path: Path) -> None:
    labels = label(tmp_path / "a", "binary", codec=codec, selection=sl.TopK(k))
    assert (labels.plan.kind, labels.plan.selection.name) == ("binary", "top_odds")
    assert labels.totals.entries == labels.totals.positions * k
    loader = sl.loader(labels, rows(), batch_size=7, seed=0)
    for batch in loader:
        y = batch["soft_labels"]
        assert isinstance(y, sl.BinaryLabels)
        for key, array, length, one in zip(
            batch["key"], batch["inputs"], batch["lengths"].tolist(), y, strict=True
        ):
            logits = exact("binary", rows()[key]["frames"])
            assert torch.equal(array[:length], torch.from_numpy(rows()[key]["frames"]))
            found = logits.gather(-1, one.ids[:length])
            bound = 0.0 if codec == "binary_plain" else 0.01
            assert float((found - one.log_odds[:length]).abs().max()) <= bound
            assert (one.floors is None) == (k == CLASSES)
        loss = sl.losses.binary_kl_divergence(torch.zeros(*y.shape, CLASSES), y)
        assert float(sl.losses.reduce(loss, y.mask)) > 0
    assert not verify(tmp_path / "a").findings
    assert float(labels.get(3).log_odds.amax()) == pytest.approx(
        float(exact("binary", rows()[3]["frames"]).amax()), abs=0.01
    )


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_vectors_are_what_the_teacher_gave(codec: str, tmp_path: Path) -> None:
    labels = label(tmp_path / "a", "embedding", codec=codec)
    assert (labels.plan.kind, labels.plan.temperatures) == ("embedding", ())
    bound = {"float32": 0.0, "float16": 2e-3, "int8": 0.02}[codec]
    for number, found in enumerate(labels[:]):
        assert isinstance(found, sl.Embeddings)
        vectors = exact("embedding", rows()[number]["frames"])
        assert float((found.vectors - vectors).abs().max()) <= bound
    batch = next(iter(sl.loader(labels, rows(), batch_size=3)))
    distance = sl.losses.cosine_distance(torch.ones(3, 4, CLASSES), batch["soft_labels"])
    assert float(sl.losses.reduce(distance, batch["soft_labels"].mask)) > 0
    assert not verify(tmp_path / "a").findings
    assert labels.to_dataset().num_rows == len(labels)


def test_another_codec_is_derived_without_the_teacher(tmp_path: Path) -> None:
    source = label(tmp_path / "a", "embedding", codec="float32")
    found = sl.derive(source, tmp_path / "b", codec="int8")
    straight = label(tmp_path / "c", "embedding", codec="int8")
    for one, other in zip(found[:], straight[:], strict=True):
        assert torch.equal(one.vectors, other.vectors)
    with pytest.raises(InputError, match="kind categorical, and these are embedding"):
        sl.derive(source, tmp_path / "d", codec="compact")
    odds = label(tmp_path / "e", "binary", codec="binary_plain", selection=sl.TopK(5))
    packed = sl.derive(odds, tmp_path / "f", codec="binary")
    assert not verify(tmp_path / "f").findings
    for one, other in zip(packed[:], odds[:], strict=True):
        assert torch.equal(one.ids.sort(-1)[0], other.ids.sort(-1)[0])
    with pytest.raises(InputError, match="labels of the kind binary are kept as they are"):
        sl.derive(odds, tmp_path / "g", k=3)


def test_a_book_is_learnt_from_the_data_or_refused(tmp_path: Path) -> None:
    many = [{"id": i, "frames": row["frames"]} for i, row in enumerate(rows(300))]
    by = teacher("embedding")
    labels = sl.precompute(many, by, tmp_path / "a", column="frames", key="id", codec="product")
    assert labels.plan.codec["parts"] == 2
    error = torch.cat([y.vectors for y in labels[:]]) - torch.cat(
        [exact("embedding", row["frames"]) for row in many]
    )
    assert float(error.square().mean()) == pytest.approx(labels.plan.codec["error"], rel=0.3)
    with pytest.raises(InputError, match="at least 256 vectors"):
        sl.precompute(iter(many), by, tmp_path / "b", column="frames", key="id", codec="product")


@pytest.mark.parametrize("kind", ["binary", "embedding"])
def test_it_goes_on_after_a_crash_and_in_two_processes(kind: str, tmp_path: Path) -> None:
    whole = label(tmp_path / "a", kind)
    shards = sorted((tmp_path / "a" / "data").iterdir())
    label(tmp_path / "b", kind, workers=2)
    for mine, other in zip(shards, sorted((tmp_path / "b" / "data").iterdir()), strict=True):
        assert mine.read_bytes() == other.read_bytes()
    shards[1].unlink()
    assert verify(tmp_path / "a").findings
    assert repair(tmp_path / "a", verify(tmp_path / "a"))
    again = label(tmp_path / "a", kind)
    assert again.receipts.texts("sha256") == whole.receipts.texts("sha256")


@pytest.mark.parametrize("kind", ["binary", "embedding"])
def test_every_command_that_looks_says_what_it_is(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(tmp_path / "a", kind, selection=None if kind == "embedding" else sl.TopK(5))

    def run(*command: Any) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, command)))
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert kind in run("info", tmp_path / "a")
    assert "ok" in run("verify", tmp_path / "a").lower()
    told = json.loads(run("show", tmp_path / "a", "3", "--json"))
    expected = exact(kind, rows()[3]["frames"])[0]
    if kind == "embedding":
        assert told["positions"][0]["vector"] == pytest.approx(expected.tolist(), abs=2e-3)
        assert told["positions"][0]["length"] == pytest.approx(float(expected.norm()), rel=1e-3)
    else:
        prob = float(expected.sigmoid().amax())
        assert max(np.exp(told["positions"][0]["log_probs"])) == pytest.approx(prob, abs=2e-3)
    text = run("show", tmp_path / "a", "3")
    assert ("length: the teacher's vector" if kind == "embedding" else "first guesses") in text
    page = tmp_path / "record.html"
    run("show", tmp_path / "a", "3", "--html", page)
    audit = json.loads(run("audit", tmp_path / "a", "--json", "--out", tmp_path / "audit.html"))
    given = audit["distributions"]
    assert given["positions"] == audit["positions"] == sum(len(r["frames"]) for r in rows())
    title = "Length of vectors" if kind == "embedding" else "Expected labels"
    assert title in (tmp_path / "audit.html").read_text()
    assert "alignment" in run("audit", tmp_path / "a")


def test_what_only_distributions_have_is_refused_by_name(tmp_path: Path) -> None:
    from softlabels.verifying.against import against

    labels = label(tmp_path / "a", "embedding")
    with pytest.raises(KindError, match="labels of arrays"):
        against(labels, teacher("embedding"))
    with pytest.raises(InputError, match="kept whole"):
        label(tmp_path / "b", "embedding", selection=sl.TopK(3))
    with pytest.raises(InputError, match="independent of each other"):
        label(tmp_path / "b", "binary", selection=sl.TopP(0.9, 5))
    with pytest.raises(InputError, match="probes are dense logits"):
        label(tmp_path / "b", "binary", probes=4)
    other = label(tmp_path / "c", "embedding")
    with pytest.raises(InputError):
        sl.loader([labels, other], rows(), fuse="mixture")


def test_columns_are_there_for_whoever_reads_plain_parquet(tmp_path: Path) -> None:
    label(tmp_path / "a", "embedding", codec="float16")
    table = pq.read_table(tmp_path / "a" / "data")
    assert str(table.schema.field("vectors").type).startswith("list<element: halffloat")
    first = np.asarray(table["vectors"][0].as_py(), np.float32).reshape(-1, CLASSES)
    np.testing.assert_allclose(first, exact("embedding", rows()[0]["frames"]), atol=2e-3)


def test_two_sets_of_a_kind_are_compared_to_the_bit(tmp_path: Path) -> None:
    from softlabels.looking.difference import difference

    one, same = label(tmp_path / "a", "embedding"), label(tmp_path / "b", "embedding")
    found = difference(one, same)
    assert not found.any
    assert (found.values.first_guess, found.values.mean_kl) == (None, None)
    other = difference(one, label(tmp_path / "c", "embedding", codec="int8"))
    assert other.any
    assert other.values.same < other.values.positions == one.totals.positions
    with pytest.raises(KindError, match="plan compares what k and codecs keep"):
        sl.plan(rows(), teacher("binary"), column="frames", key="id")


@pytest.mark.parametrize("kind", ["binary", "embedding"])
def test_a_batch_of_a_kind_comes_back_from_its_tensors(kind: str, tmp_path: Path) -> None:
    from softlabels.integrations import from_tensors, to_tensors

    labels = label(tmp_path / "a", kind)
    batch = next(iter(sl.loader(labels, rows(), batch_size=4)))
    y, back = batch["soft_labels"], from_tensors(to_tensors(batch))["soft_labels"]
    assert type(back) is type(y)
    for name, tensor in y.tensors().items():
        assert torch.equal(tensor, getattr(back, name))
    leaves = torch.utils._pytree.tree_leaves(y)
    assert len(leaves) == len(y.tensors())


def test_the_card_says_how_a_set_of_each_kind_is_read(tmp_path: Path) -> None:
    odds = label(tmp_path / "a", "binary", selection=sl.TopK(5))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "the 5 likeliest of 20 independent classes at every position, a floor" in card
    assert 'sl.loader(sl.LabelSet.open("."), data, batch_size=8, seed=0)' in card
    assert 'batch["inputs"], batch["soft_labels"]' in card
    assert odds.totals.bytes
    label(tmp_path / "b", "embedding", codec="int8")
    card = (tmp_path / "b" / "README.md").read_text()
    assert "vectors of 20 numbers at every position |" in card
    assert "`scales`" in card


def test_bits_and_parts_of_a_codec_are_chosen_by_a_number(tmp_path: Path) -> None:
    many = [{"id": i, "frames": row["frames"]} for i, row in enumerate(rows(300))]
    settings: dict[str, Any] = {"column": "frames", "key": "id", "unit_rows": 150}
    by = teacher("embedding")
    sizes = []
    for name, parts in (("product", 2), ("product:4", 4), ("product:20", 20)):
        labels = sl.precompute(many, by, tmp_path / name, codec=name, **settings)
        assert labels.plan.codec["parts"] == parts
        sizes.append(labels.plan.codec["error"])
        # The same call, or one that leaves the codec to the set, finds it done.
        assert len(sl.precompute(many, by, tmp_path / name, codec=name, **settings)) == 300
        assert len(sl.precompute(many, by, tmp_path / name, **settings)) == 300
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(PlanMismatchError, match="another recipe: codec"):
        sl.precompute(many, by, tmp_path / "product", codec="product:4", **settings)
    odds = label(tmp_path / "b", "binary", codec="binary:8", selection=sl.TopK(5))
    assert odds.plan.codec["bits"] == 8
    coarse = sl.derive(odds, tmp_path / "c", codec="binary:4")
    assert coarse.plan.codec["bits"] == 4
    assert coarse.totals.bytes < odds.totals.bytes


@pytest.mark.parametrize(
    ("kind", "codec", "words"),
    [
        ("binary", "binary:3", "binary:3: a class takes 4 to 16 bits"),
        (
            "binary",
            "binary:",
            "follow some names: binary:bits and product:parts",
        ),
        (
            "embedding",
            "product:0",
            "follow some names: binary:bits and product:parts",
        ),
        (
            "embedding",
            "int8:4",
            'the codec "int8:4": a number from 1 on may follow some names',
        ),
        ("embedding", "product:7", "20 numbers do not make 7 equal parts"),
        ("embedding", "binary:8", "the codec binary writes labels of the kind binary"),
    ],
)
def test_a_number_that_a_codec_cannot_have_is_refused_before_anything_is_labelled(
    kind: str, codec: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        label(tmp_path / "a", kind, codec=codec)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("codec", "far"), [("float16", 7e4), ("product", 1e17), ("int8", np.inf)])
def test_a_vector_that_the_codec_cannot_hold_is_its_sample_s_fault_alone(
    codec: str, far: float, tmp_path: Path
) -> None:
    many = [{"id": i, "x": row["frames"][:1]} for i, row in enumerate(rows(300))]
    many[7]["x"] = np.full((1, WIDTH), far, np.float32)
    by = sl.teachers.from_callable(
        lambda x: x,
        classes=WIDTH,
        takes="arrays",
        kind="embedding",
        positions="every",
        name="identity",
        version="1",
    )
    settings: dict[str, Any] = {"column": "x", "key": "id", "codec": codec}
    with pytest.raises(LabellingError, match=f'key "7", .* more than the codec {codec} holds'):
        sl.precompute(many, by, tmp_path / "a", **settings)
    labels = sl.precompute(many, by, tmp_path / "b", on_error="skip", **settings)
    assert (len(labels), labels.rejected) == (299, {7})
    assert not verify(tmp_path / "b").findings


def test_numbers_of_a_byte_take_little_more_in_a_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = [{"id": i, "x": rng.normal(size=384).astype(np.float32)} for i in range(512)]
    by = sl.teachers.from_callable(
        lambda x: x,
        classes=384,
        takes="arrays",
        kind="embedding",
        positions="first",
        name="identity",
        version="1",
    )
    for codec in ("int8", "product"):
        labels = sl.precompute(many, by, tmp_path / codec, column="x", key="id", codec=codec)
        width = 384 if codec == "int8" else labels.plan.codec["parts"]
        found = pq.ParquetFile(tmp_path / codec / labels.receipts[0].path).metadata.row_group(0)
        at = [found.column(i).path_in_schema for i in range(found.num_columns)]
        column = found.column(
            at.index("vectors.list.element" if codec == "int8" else "codes.list.element")
        )
        assert column.total_compressed_size < 1.1 * 256 * width

"""Other layouts: what goes out comes back within their precision; what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import softlabels as sl
from softlabels.errors import InputError
from softlabels.sharing.formats import Arrays, Axolotl, DistillKit, FloatLists, Format
from softlabels.sharing.formats.compression import (
    Compression,
    compressed,
    expanded,
    packed,
    unpacked,
)
from softlabels.sharing.imports import Imported, Origin, import_set
from softlabels.verifying.verify import verify

CLASSES, K, TOKENS = 64, 4, 12
PROBS = np.asarray([0.7, 0.1, 0.05, 0.05])
LAYOUTS = {"distillkit": DistillKit, "lists": FloatLists, "axolotl": Axolotl, "numpy": Arrays}
Precompute = Callable[..., sl.LabelSet]


def bring(source: Format, out: Path, **options: Any) -> Imported:
    origin = Origin(data="captured", teacher="theirs", classes=source.classes or CLASSES)
    return import_set(source, out, origin=origin, codec="plain", **options)


def captured(rows: int = 40, *, late: int = 0) -> dict[str, list[Any]]:
    """A set of lists by a teacher that guesses the next token, its labels `late` tokens later."""
    rng = np.random.default_rng(0)
    made: dict[str, list[Any]] = {"input_ids": [], "token_ids": [], "top_values": []}
    for _ in range(rows):
        tokens = rng.integers(0, CLASSES, TOKENS)
        about = np.roll(tokens, late - 1)
        ids = (about[:, None] + np.arange(K) * 7) % CLASSES
        made["input_ids"].append(tokens.tolist())
        made["token_ids"].append(ids.tolist())
        made["top_values"].append(np.log(np.tile(PROBS, (TOKENS, 1))).tolist())
    return made


def write(folder: Path, columns: dict[str, Any], name: str = "data_0.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder


@pytest.fixture(scope="module")
def labels(finished_set: Path) -> sl.LabelSet:
    return sl.LabelSet.open(finished_set)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_goes_out_comes_back(labels: sl.LabelSet, tmp_path: Path, layout: str) -> None:
    target = LAYOUTS[layout](tmp_path / "theirs")
    assert target.write(labels, tmp_path / "theirs") == len(labels)
    origin = Origin(teacher="tiny", classes=labels.plan.teacher.classes)
    made = import_set(
        LAYOUTS[layout](tmp_path / "theirs"), tmp_path / "back", origin=origin,
        codec="plain",
    )  # fmt: skip
    assert not verify(tmp_path / "back").findings
    assert len(made.labels) == len(labels)
    # The one after the last token has no place in these.
    cut = layout in ("distillkit", "axolotl")
    for before, after in zip(labels[:], made.labels[:], strict=True):
        there = slice(0, len(before) - 1 if cut else len(before))
        assert torch.equal(after.ids[there], before.ids[there])
        assert torch.equal(after.log_probs[there], before.log_probs[there])
        assert after.mask is not None
        assert int(after.mask.sum()) == len(before) - cut
        tail, ours = after.log_tail(1.0)[there].exp(), before.log_tail(1.0)[there].exp()
        assert float((tail - ours).abs().max()) < 1e-5
        assert after.hard_log_probs is not None
        known = ~after.hard_log_probs.isnan()
        assert torch.equal(after.hard_log_probs[known], before.hard_log_probs[known])


@pytest.mark.parametrize("layout", ["lists", "axolotl", "numpy"])
def test_entries_that_are_not_used_and_positions_without_labels_stay_so(
    tmp_path: Path, precompute: Precompute, layout: str
) -> None:
    # What is labelled at its end alone has nothing that axolotl's columns can say.
    overlap = 0 if layout == "axolotl" else 2
    labels = precompute(tmp_path / "set", selection=sl.TopP(0.8, 8), overlap=overlap)
    LAYOUTS[layout](tmp_path).write(labels, tmp_path / "theirs")
    origin = Origin(classes=16)
    source = LAYOUTS[layout](tmp_path / "theirs")
    back = import_set(source, tmp_path / "back", origin=origin, codec="plain").labels
    assert not verify(tmp_path / "back").findings
    for before, after in zip(labels[:], back[:], strict=True):
        assert before.mask is not None
        assert after.mask is not None
        wanted = before.mask.clone()
        wanted[-1] &= layout != "axolotl"
        assert torch.equal(after.mask, wanted)
        k = min(before.k, after.k)
        assert torch.equal(after.ids[wanted, :k], before.ids[wanted, :k])
        assert torch.equal(after.log_probs[wanted, :k], before.log_probs[wanted, :k])
        assert not before.log_probs[wanted, k:].isfinite().any()


@pytest.mark.parametrize(
    ("settings", "worst"),
    [
        ({"exact_k": 16, "exact_dtype": "bfloat16", "delta_encoding": False}, 2**-8),
        ({"exact_k": 16, "exact_dtype": "float32", "delta_encoding": True}, 1e-6),
        (
            {"exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"], "delta_encoding": False},
            0.1,
        ),
        (
            {
                "exact_k": 4,
                "polynomial_terms": [0, 1, 2],
                "normalize_t": True,
                "delta_encoding": False,
            },
            0.1,
        ),
    ],
)
def test_distillkit_compresses_within_its_own_precision(
    labels: sl.LabelSet, tmp_path: Path, settings: dict[str, Any], worst: float
) -> None:
    config = {"d": labels.plan.teacher.classes, "k": 16, "residual_bins": [], **settings}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "theirs"
    DistillKit(out, tmp_path / "config.yaml").write(labels, out)
    back = import_set(DistillKit(out), tmp_path / "back", codec="plain").labels
    for before, after in zip(labels[:4], back[:4], strict=True):
        ids, places = before.ids[:-1].sort(-1)
        same, others = after.ids[:-1].sort(-1)
        assert torch.equal(ids, same)
        expected = before.log_probs[:-1].gather(-1, places)
        error = after.log_probs[:-1].gather(-1, others) - expected
        assert float((error / expected.abs().clamp(min=1)).abs().max()) <= worst


def test_residual_bins_bring_the_curve_back_to_the_values() -> None:
    config = Compression(
        d=1000, k=8, exact_k=2, exact_dtype="float32", polynomial_terms=(0, 1),
        delta_encoding=False,
        residual_bins=({"scale_dtype": "float32", "element_bits": 8, "num_elements": 6},),
    )  # fmt: skip
    values = -torch.arange(1, 9, dtype=torch.float32).sqrt()[None] * 2
    plain = config.model_copy(update={"residual_bins": ()})
    curve = compressed(values, plain)
    rest = values[:, 2:] - expanded(curve, plain)[:, 2:]
    scale = rest.abs().amax(-1, keepdim=True) / 128
    codes = (rest / scale).round().clamp(-128, 127) + 128
    data = torch.cat([curve, scale.view(torch.uint8), codes.to(torch.uint8)], -1)
    # Half a step, a whole one at the clamped end; and float32 of values about 5.
    assert float((expanded(data, config) - values).abs().max()) <= float(scale.max()) + 1e-6


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 17])
def test_ids_as_bits_come_back(bits: int) -> None:
    ids = np.random.default_rng(bits).integers(0, 1 << bits, (5, 3))
    data = packed(ids, bits)
    assert data.shape == (5, -(-3 * bits // 8))
    assert np.array_equal(unpacked(data, bits, 3), ids)
    # Highest bit first, one id after another: 5 of 3 bits, then 1.
    assert packed(np.asarray([[5, 1]]), 3).tolist() == [[0b10100100]]


@pytest.mark.parametrize("layout", ["lists", "axolotl", "numpy"])
@pytest.mark.parametrize(("late", "shift"), [(1, -1), (-1, 1)])
def test_labels_one_position_off_are_found_and_refused_unless_shift_says_otherwise(
    tmp_path: Path, late: int, shift: int, layout: str
) -> None:
    columns = captured(late=late)
    if layout == "lists":
        source: Format = FloatLists(write(tmp_path / "theirs", columns))
    elif layout == "axolotl":
        columns["target_token_ids"] = columns.pop("token_ids")
        columns["target_logprobs"] = columns.pop("top_values")
        columns["target_mask"] = [[[1] * K] * TOKENS] * len(columns["input_ids"])
        source = Axolotl(write(tmp_path / "theirs", columns))
    else:
        arrays = {name: np.asarray(rows) for name, rows in columns.items()}
        np.savez(
            tmp_path / "a.npz", input_ids=arrays["input_ids"], ids=arrays["token_ids"],
            log_probs=arrays["top_values"],
        )  # fmt: skip
        source = Arrays(tmp_path / "a.npz")
    with pytest.raises(InputError, match=rf"one position nearer.*--shift={shift}\)"):
        bring(source, tmp_path / "refused")
    assert not (tmp_path / "refused" / "plan.json").exists()
    mended = bring(source, tmp_path / "mended", shift=shift)
    assert mended.alignment is not None
    assert mended.alignment.verdict == "aligned"
    straight = bring(FloatLists(write(tmp_path / "straight", captured())), tmp_path / "plain")
    assert straight.alignment is not None
    assert straight.alignment.verdict == "aligned"
    for ours, theirs in zip(straight.labels[:], mended.labels[:], strict=True):
        inner = slice(1, TOKENS - 2)
        assert torch.equal(ours.ids[inner], theirs.ids[inner])
    assert bring(source, tmp_path / "left", shift=0).labels.totals.positions == 40 * TOKENS


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    source = FloatLists(write(tmp_path / "theirs", captured(600)))
    bring(source, tmp_path / "set")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "set" / "data").iterdir()}
    assert len(whole) == 3
    (tmp_path / "set" / "manifest.json").unlink()
    (tmp_path / "set" / "data" / "train-00001.parquet").unlink()
    bring(source, tmp_path / "set")
    assert {p.name: p.read_bytes() for p in (tmp_path / "set" / "data").iterdir()} == whole
    assert not verify(tmp_path / "set").findings


def test_ids_kept_as_floats_and_probabilities_are_taken_for_what_they_are(tmp_path: Path) -> None:
    columns = captured()
    straight = bring(FloatLists(write(tmp_path / "a", columns)), tmp_path / "straight").labels
    columns["token_ids"] = [[[float(i) for i in p] for p in row] for row in columns["token_ids"]]
    columns["top_values"] = [np.exp(row).tolist() for row in columns["top_values"]]
    back = bring(FloatLists(write(tmp_path / "b", columns)), tmp_path / "floats").labels
    for ours, theirs in zip(straight[:], back[:], strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.allclose(ours.log_probs, theirs.log_probs, atol=1e-6)


def test_a_set_scaled_over_its_kept_classes_says_so(tmp_path: Path) -> None:
    columns = captured()
    assert not bring(FloatLists(write(tmp_path / "a", columns)), tmp_path / "calm").notes
    scaled = np.log(PROBS / PROBS.sum()).tolist()
    columns["top_values"] = [[scaled] * TOKENS for _ in columns["top_values"]]
    made = bring(FloatLists(write(tmp_path / "b", columns)), tmp_path / "set")
    assert "sum to 1 at every position" in made.notes[0]


def spoilt(what: str) -> dict[str, list[Any]]:
    columns = captured()
    ids, values, tokens = columns["token_ids"], columns["top_values"], columns["input_ids"]
    match what:
        case "class":
            ids[30][2][1] = CLASSES
        case "token":
            tokens[30][0] = CLASSES
        case "fraction":
            ids[30][2] = [0.5, 1, 2, 3]
        case "negative":
            ids[30][2][1] = -1
        case "twice":
            ids[30][2][1] = ids[30][2][0]
        case "nan":
            values[30][2][1] = float("nan")
        case "sum":
            values[30][2] = [-0.1] * K
        case "logits":
            values[30][2] = [12.0, 11.0, 10.0, 9.0]
        case "lengths":
            values[30][2].pop()
        case "rows":
            ids[30], values[30] = ids[30][:5], values[30][:5]
        case "empty":
            ids[30], values[30] = [[]] * TOKENS, [[]] * TOKENS
        case "wide":
            ids.extend(ids[:256])
            tokens.extend(tokens[:256])
            values.extend(values[:256])
    return columns


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("class", r"row 30: class id 64 is none of 64"),
        ("token", r"row 30: token id 64 is none of 64"),
        ("fraction", r"0.5 is no whole number"),
        ("negative", r"-1 is no id"),
        ("twice", r"row 30: a class is kept twice"),
        ("nan", r"a value is NaN"),
        ("sum", r"row 30: the probabilities at a position sum to 3.6.*--rescale"),
        ("logits", r"values from .* to 12 are no log-probs, as those before.*logsumexp"),
        ("lengths", r"lists of different lengths"),
        ("rows", r"row 30: 5 rows of labels for 12 tokens; expected"),
        ("empty", r"row 30: none of its positions has labels"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, what: str, words: str) -> None:
    source = FloatLists(write(tmp_path / "theirs", spoilt(what)))
    with pytest.raises(InputError, match=words):
        bring(source, tmp_path / "set")


def test_samples_that_cannot_be_used_are_counted_when_they_are_skipped(tmp_path: Path) -> None:
    source = FloatLists(write(tmp_path / "theirs", spoilt("class")))
    labels = bring(source, tmp_path / "set", on_error="skip").labels
    assert (len(labels), labels.totals.rejects, labels.totals.source_rows) == (39, 1, 40)
    assert labels.rejected == {30}
    assert not verify(tmp_path / "set").findings


def test_rescale_takes_what_sums_above_one(tmp_path: Path) -> None:
    source = FloatLists(write(tmp_path / "theirs", spoilt("sum")))
    labels = bring(source, tmp_path / "set", rescale=True).labels
    mass = labels[30].log_probs[2].double().exp().sum()
    assert float(mass) == pytest.approx(1, abs=1e-6)


def test_fewer_entries_can_be_kept_and_their_mass_joins_the_tail(tmp_path: Path) -> None:
    source = FloatLists(write(tmp_path / "theirs", captured()))
    labels = bring(source, tmp_path / "set", k=2).labels
    assert labels[0].k == 2
    assert float(labels[0].log_tail(1.0)[0].exp()) == pytest.approx(0.2, abs=1e-6)


def test_more_entries_than_the_first_samples_had_are_not_cut_unseen(tmp_path: Path) -> None:
    columns = captured(300)
    columns["token_ids"][299][0] = [1, 2, 3, 4, 5]
    columns["top_values"][299][0] = [-3.0] * 5
    source = FloatLists(write(tmp_path / "theirs", columns))
    with pytest.raises(InputError, match=r"row 299: 5 classes at a position.*first samples have 4"):
        bring(source, tmp_path / "set")


def test_keys_come_along_and_must_be_unique(tmp_path: Path) -> None:
    columns = captured() | {"id": [f"doc-{row}" for row in range(40)]}
    source = FloatLists(write(tmp_path / "theirs", columns), key="id")
    assert bring(source, tmp_path / "set").labels.get("doc-7").ids.shape == (TOKENS, K)
    columns["id"][9] = "doc-3"
    with pytest.raises(InputError, match=r'key "doc-3" is in row 3 and again in row 9'):
        bring(FloatLists(write(tmp_path / "b", columns), key="id"), tmp_path / "twice")


def test_an_imported_set_is_one_like_any_other(tmp_path: Path) -> None:
    made = bring(FloatLists(write(tmp_path / "theirs", captured())), tmp_path / "set")
    batch = next(iter(sl.loader(made.labels, batch_size=4)))
    logits = torch.randn(4, TOKENS, CLASSES, generator=torch.Generator().manual_seed(0))
    loss = sl.losses.kl_divergence(logits, batch["soft_labels"])
    assert loss.shape == (4, TOKENS)
    assert loss.isfinite().all()
    plan = made.labels.plan
    assert (plan.teacher.name, plan.teacher.logits_known) == ("theirs", False)
    assert made.labels[0].logsumexp is None
    compact = sl.derive(tmp_path / "set", tmp_path / "compact", codec="compact", progress=False)
    assert len(compact) == len(made.labels)


def test_files_of_numbers_are_read_in_their_order(tmp_path: Path) -> None:
    for name in (10, 9, 2):
        columns = {n: rows[:1] for n, rows in captured().items()}
        columns["input_ids"] = [[name] * TOKENS]
        write(tmp_path / "theirs", columns, f"data_{name}.parquet")
    found = [int(sample.token_ids[0]) for sample in FloatLists(tmp_path / "theirs").read()]
    assert found == [2, 9, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store_inputs": False}, "does not store its token ids"),
        (
            {"selection": sl.Sampled(4), "codec": "sampled", "temperatures": ()},
            "weights of a sample",
        ),
    ],
)
def test_what_a_layout_cannot_say_is_refused(
    tmp_path: Path, precompute: Precompute, options: dict[str, Any], words: str
) -> None:
    labels = precompute(tmp_path / "set", **options)
    for layout in LAYOUTS.values():
        with pytest.raises(InputError, match=words):
            layout(tmp_path / "out").write(labels, tmp_path / "out")


def test_distillkit_has_no_place_for_what_is_not_labelled(
    tmp_path: Path, precompute: Precompute
) -> None:
    for number, options in enumerate([{"overlap": 2}, {"selection": sl.TopP(0.8, 8)}]):
        labels = precompute(tmp_path / f"set {number}", **options)
        with pytest.raises(InputError, match="DistillKit has no way to say so"):
            DistillKit(tmp_path).write(labels, tmp_path / "out")


def test_distillkits_config_is_needed_and_must_be_that_of_the_files(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    out = tmp_path / "theirs"
    DistillKit(out).write(labels, out)
    config = yaml.safe_load((out / "compression_config.yaml").read_text())
    (out / "compression_config.yaml").write_text(yaml.safe_dump(config | {"k": 15, "exact_k": 15}))
    with pytest.raises(InputError, match="this config belongs to another set"):
        bring(DistillKit(out), tmp_path / "a")
    (out / "compression_config.yaml").write_text("k: [1")
    with pytest.raises(InputError, match="this is no YAML"):
        bring(DistillKit(out), tmp_path / "b")
    (out / "compression_config.yaml").unlink()
    with pytest.raises(InputError, match="name DistillKit's config with --settings"):
        bring(DistillKit(out), tmp_path / "c")


def test_arrays_that_do_not_fit_or_are_pickled_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    np.save(folder / "input_ids.npy", np.zeros((2, 5), np.int64))
    np.save(folder / "ids.npy", np.zeros((2, 4, 3), np.int64))
    np.save(folder / "log_probs.npy", np.zeros((2, 4, 3), np.float32))
    with pytest.raises(InputError, match=r"do not fit each other.*\(2, 4, 3\)"):
        bring(Arrays(folder), tmp_path / "a")
    np.save(folder / "ids.npy", np.asarray([{}, {}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        bring(Arrays(folder), tmp_path / "b")
    (folder / "ids.npy").unlink()
    with pytest.raises(InputError, match='no array "ids"'):
        bring(Arrays(folder), tmp_path / "c")


def test_padding_of_rectangular_arrays_is_left_out(tmp_path: Path) -> None:
    columns = {name: np.asarray(rows) for name, rows in captured().items()}
    mask = np.arange(TOKENS) < np.arange(40)[:, None] % 5 + 7
    np.savez(
        tmp_path / "a.npz", input_ids=columns["input_ids"], ids=columns["token_ids"],
        log_probs=columns["top_values"], attention_mask=mask,
    )  # fmt: skip
    labels = bring(Arrays(tmp_path / "a.npz"), tmp_path / "set").labels
    assert [len(record) for record in labels[:]] == mask.sum(1).tolist()


def test_files_that_are_not_there_or_not_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no Parquet file"):
        bring(FloatLists(tmp_path / "empty"), tmp_path / "a")
    (tmp_path / "empty" / "x.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x.parquet cannot be read"):
        bring(FloatLists(tmp_path / "empty"), tmp_path / "b")
    folder = write(tmp_path / "theirs", {"input_ids": [[1]], "token_ids": [[[1]]]})
    with pytest.raises(InputError, match=r'no column "top_values"; it has "input_ids"'):
        bring(FloatLists(folder), tmp_path / "c")
    folder = write(
        tmp_path / "flat", {"input_ids": [[1]], "token_ids": [[1]], "top_values": [[1.0]]}
    )
    with pytest.raises(InputError, match=r'column "token_ids" is .*expected lists of lists'):
        bring(FloatLists(folder), tmp_path / "d")

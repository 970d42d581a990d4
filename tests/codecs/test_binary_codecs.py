"""Codecs of independent classes: what comes back, and how far it may be from what was given."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from softlabels import codecs
from softlabels.codecs import Binary, BinaryPlain, Needs
from softlabels.codecs.binary import code_odds, odds_codes
from softlabels.codecs.idtable import IdTable
from softlabels.errors import CorruptShardError, InputError
from softlabels.labels import BinaryLabels
from softlabels.losses import binary_kl_divergence
from softlabels.selection import TopOdds

TEMPERATURES = (1.0, 4.0)


def labels_of(logits: NDArray[Any], k: int) -> BinaryLabels:
    given = torch.from_numpy(np.asarray(logits, np.float32))
    return TopOdds(k)(given, torch.full((len(given),), -1), temperatures=TEMPERATURES)


def stored(
    codec: codecs.Codec, labels: BinaryLabels, lengths: list[int]
) -> tuple[pa.Table, BinaryLabels]:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns = codec.encode(labels, offsets)
    assert list(columns) == [field.name for field in codec.fields]
    table = pa.table({"positions": pa.array(lengths, pa.int32()), **columns})
    found, ends = codec.decode(table)
    assert isinstance(found, BinaryLabels)
    assert ends.tolist() == offsets.tolist()
    return table, found


def by_id(labels: BinaryLabels) -> tuple[torch.Tensor, torch.Tensor]:
    order = labels.ids.argsort(-1)
    return labels.ids.gather(-1, order), labels.log_odds.gather(-1, order)


def bound(log_odds: torch.Tensor, bits: int) -> torch.Tensor:
    """How far log-odds may come back from what they were, as the codec says."""
    return (log_odds.square() + 4).sqrt() * math.expm1(4.86 / (2**bits - 2))


@st.composite
def some_labels(draw: st.DrawFn) -> tuple[BinaryLabels, list[int]]:
    classes = draw(st.sampled_from([1, 2, 5, 255, 256, 257, 300]))
    k = draw(st.sampled_from([1, classes, max(1, classes // 2)]))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 100]), min_size=1, max_size=3))
    seed = draw(st.integers(0, 100))
    scale = draw(st.sampled_from([0.0, 1.0, 10.0, 90.0]))
    logits = np.random.default_rng(seed).normal(0, scale, (sum(lengths), classes))
    return labels_of(logits, k), lengths


@settings(deadline=None, max_examples=60)
@given(some_labels(), st.sampled_from([4, 8, 12, 16]))
def test_log_odds_come_back_within_the_bound_and_ids_as_they_were(
    case: tuple[BinaryLabels, list[int]], bits: int
) -> None:
    labels, lengths = case
    classes = labels.classes or 0
    table = IdTable.count(classes, labels.ids.numpy())
    codec = Binary(classes, labels.k, TEMPERATURES, table, False, bits=bits)
    _, found = stored(codec, labels, lengths)
    (ids, expected), (found_ids, odds) = by_id(labels), by_id(found)
    assert torch.equal(ids, found_ids)
    held = expected.double().clamp(-128, 128)
    assert bool(((odds.double() - held).abs() <= bound(held, bits)).all())
    assert (found.floors is None) == (labels.floors is None)
    if labels.floors is not None and found.floors is not None:
        held = labels.floors.double().clamp(-128, 128)
        assert bool(((found.floors.double() - held).abs() <= bound(held, 16)).all())


@settings(deadline=None, max_examples=30)
@given(some_labels())
def test_plain_ones_come_back_bit_for_bit_in_their_order(
    case: tuple[BinaryLabels, list[int]],
) -> None:
    labels, lengths = case
    _, found = stored(BinaryPlain(labels.classes or 0, TEMPERATURES), labels, lengths)
    assert len(found) == len(labels)
    if not len(labels):
        return  # of no positions no list says how many entries they have
    for name, tensor in labels.tensors().items():
        assert torch.equal(tensor, getattr(found, name))
    assert found.temperatures == labels.temperatures


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-128, 128, width=32) | st.floats(-3, 3, width=32), min_size=1),
    st.integers(4, 16),
    st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 16.0]),
)
def test_no_class_adds_more_kl_than_the_codec_says(
    log_odds: list[float], bits: int, temperature: float
) -> None:
    # Errors are largest beside the middles between codes: these are never left out.
    codes = code_odds(bits).astype(np.float64)
    given = np.append(np.asarray(log_odds), (codes[1:] + codes[:-1])[:: 2 ** max(0, bits - 9)] / 2)
    found = codes[odds_codes(given.astype(np.float32), bits)]
    teacher, student = (
        torch.from_numpy(z.astype(np.float32)).double() / temperature for z in (given, found)
    )
    yes, no = torch.sigmoid(teacher), torch.sigmoid(-teacher)
    softplus = torch.nn.functional.softplus
    added = yes * (softplus(-student) - softplus(-teacher))
    added += no * (softplus(student) - softplus(teacher))
    most = (3.5 * max(1.0, temperature) / (2**bits - 2)) ** 2
    assert float(temperature**2 * added.max()) <= most + 1e-12


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_kl_that_storing_adds_is_below_what_the_codec_says(
    bits: int, temperature: float
) -> None:
    logits = np.random.default_rng(0).normal(-4, 4, (400, 200)).astype(np.float32)
    labels = labels_of(logits, 200)
    table = IdTable.count(200, labels.ids.numpy())
    _, found = stored(Binary(200, 200, TEMPERATURES, table, False, bits=bits), labels, [400])
    student = torch.zeros(400, 200, dtype=torch.float64)
    student.scatter_(-1, found.ids, found.log_odds.double())
    added = binary_kl_divergence(student, labels, temperature=temperature)
    assert float(added.mean()) / 200 < (3.5 * temperature / (2**bits - 2)) ** 2
    assert float(added.min()) >= -1e-6


def test_all_classes_cost_no_ids_and_a_code_each() -> None:
    logits = np.random.default_rng(0).normal(-3, 3, (512, 360))
    labels = labels_of(logits, 360)
    codec = codecs.resolve(
        "binary", Needs(360, 360, TEMPERATURES, kind="binary"), pilot=lambda: labels[:200]
    )
    table, _ = stored(codec, labels, [512])
    assert len(table["packed"][0].as_py()) < 512 * 360 * 1.6


def test_codes_are_what_the_format_says() -> None:
    odds = np.asarray([0.0, 2.0, -2.0, 8.0, 128.0, 1e9, -math.inf], np.float32)
    scale = 2047 / math.asinh(64)
    expected = [2047 + round(scale * math.asinh(x / 2)) for x in (0, 2, -2, 8, 128)]
    assert odds_codes(odds, 12).tolist() == [*expected, 4094, 0]
    assert code_odds(12)[[0, 2047, 4094]].tolist() == [-128.0, 0.0, 128.0]


def test_a_codec_comes_back_from_its_json() -> None:
    labels = labels_of(np.random.default_rng(0).normal(size=(300, 40)), 8)
    needs = Needs(40, 8, TEMPERATURES, kind="binary")
    for name in ("binary", "binary_plain"):
        codec = codecs.resolve(name, needs, pilot=lambda: labels)
        assert codecs.from_json(json.loads(json.dumps(codec.to_json()))) == codec
        assert codec.kind == "binary"
    assert codecs.default(sampled=False, kind="binary") == "binary"


@pytest.mark.parametrize("bad", [3, 17])
def test_bits_out_of_range_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Binary(4, 2, (), IdTable(4), False, bits=bad)


def test_what_the_codec_was_not_made_for_is_refused() -> None:
    labels = labels_of(np.zeros((2, 6)), 3)
    with pytest.raises(InputError, match="was made for 2"):
        Binary(6, 2, TEMPERATURES, IdTable(6), False).encode(labels, np.asarray([0, 2]))
    with pytest.raises(InputError, match="made for 4, no fewer"):
        Binary(6, 4, TEMPERATURES, IdTable(6), False).encode(labels, np.asarray([0, 2]))
    for codec in (Binary(6, 3, (1.0,), IdTable(6), False), BinaryPlain(6, (1.0,))):
        with pytest.raises(
            InputError, match=r"floors at \(1\.0, 4\.0\), the codec writes \(1\.0,\)"
        ):
            codec.encode(labels, np.asarray([0, 2]))
    nan = labels.with_tensors({"log_odds": labels.log_odds * torch.nan})
    with pytest.raises(InputError, match="NaN"):
        Binary(6, 3, TEMPERATURES, IdTable(6), False).encode(nan, np.asarray([0, 2]))
    with pytest.raises(InputError, match="class id 5 is outside the 4"):
        BinaryPlain(4, TEMPERATURES).encode(
            labels.with_tensors({"ids": labels.ids + 3}), np.asarray([0, 2])
        )
    with pytest.raises(InputError, match=r"kind categorical, and these are binary; choose from"):
        codecs.check("compact", Needs(6, 3, (), kind="binary"))


def test_a_record_with_a_place_that_holds_no_class_is_no_shard() -> None:
    labels = labels_of(np.random.default_rng(0).normal(size=(3, 6)), 2)
    two, three = (Binary(6, k, TEMPERATURES, IdTable(6), False) for k in (2, 3))
    columns = three.layout.pack(two.to_planes(labels), np.asarray([0, 3]))
    table = pa.table({"positions": pa.array([3], pa.int32()), **columns})
    with pytest.raises(CorruptShardError, match="entries of a record do not fit its positions"):
        three.decode(table)


def test_a_name_that_no_codec_has_is_refused_before_anything_is_labelled() -> None:
    def pilot() -> BinaryLabels:
        raise AssertionError("the pilot was asked for")

    for kind, fitting in (("binary", "binary, binary_plain"), ("embedding", "float16, float32")):
        with pytest.raises(InputError, match=f'no codec "zip"; choose from {fitting}'):
            codecs.resolve("zip", Needs(6, 3, (), kind=kind), pilot=pilot)


@pytest.mark.parametrize("column", ["ids", "log_odds", "floors"])
def test_lists_of_another_length_are_no_shard(column: str) -> None:
    labels = labels_of(np.random.default_rng(0).normal(size=(3, 6)), 2)
    codec = BinaryPlain(6, TEMPERATURES)
    table, _ = stored(codec, labels, [1, 2])
    short = [values[:-1] for values in table[column].to_pylist()]
    at = table.column_names.index(column)
    field = table.schema.field(column)
    broken = table.set_column(at, field, pa.array(short, field.type))
    with pytest.raises(CorruptShardError, match="do not fit"):
        codec.decode(broken)

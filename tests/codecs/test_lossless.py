"""The lossless codec: logits and scalars bit for bit; what it cannot hold refused, damage found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from softlabels import SoftLabels, TopK, codecs
from softlabels.codecs import Lossless, packed
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.lossless import DTYPES, from_ordered_bits, ordered_bits
from softlabels.errors import CorruptShardError, InputError, UnsupportedFormatError

# At which a gap may need another byte, and two to the 8 and 16; and too many to list.
WIDTHS = [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_791, 65_792, (1 << 24) + 256]
TEMPERATURES = (1.0, 2.0)
SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
# Bits of the largest finite value of each dtype.
LARGEST = {"bfloat16": 0x7F7F, "float16": 0x7BFF, "float32": 0x7F7FFFFF}
SUBNORMAL = {"bfloat16": 0x007F, "float16": 0x03FF, "float32": 0x007FFFFF}
NAN = 0x7FC00000


@dataclass(frozen=True)
class Case:
    codec: Lossless
    labels: SoftLabels
    offsets: np.ndarray

    @property
    def table(self) -> pa.Table:
        positions = pa.array(np.diff(self.offsets).astype(np.int32))
        return pa.table({"positions": positions, **self.codec.encode(self.labels, self.offsets)})

    def decoded(self) -> SoftLabels:
        return self.codec.decode(self.table)[0]


def floats(bits: np.ndarray, dtype: str) -> Tensor:
    """Floats of these bits, which are unsigned."""
    signed = {2: np.int16, 4: np.int32}[SIZES[dtype]]
    return torch.from_numpy(bits.view(signed)).view(DTYPES[dtype])


def bits(values: Tensor) -> np.ndarray:
    kind = {2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
    return values.contiguous().view(kind).numpy()


def edges(dtype: str) -> list[int]:
    """0, the smallest and the largest subnormal, 1 and its neighbour, the largest; and negated."""
    one = int(bits(torch.ones(1, dtype=DTYPES[dtype]))[0])
    positive = [0, 1, SUBNORMAL[dtype], SUBNORMAL[dtype] + 1, one, one + 1, LARGEST[dtype]]
    return [*positive, *(value | 1 << (8 * SIZES[dtype] - 1) for value in positive)]


def unknowns(shape: Any, *, finite: bool = True) -> st.SearchStrategy[Tensor]:
    """float32 tensors of any bits; without NaN and infinities, or with NaN and −∞."""
    extra = [] if finite else [NAN, 0xFF800000]
    given = st.one_of(st.integers(0, LARGEST["float32"]), st.sampled_from(edges("float32") + extra))
    return hnp.arrays(np.uint32, shape, elements=given).map(lambda b: floats(b, "float32"))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    classes = draw(st.sampled_from(WIDTHS[:-1]))
    k = classes if classes <= 257 and draw(st.booleans()) else draw(st.integers(1, min(classes, 6)))
    counts = draw(st.lists(st.sampled_from([0, 1, 3]), max_size=4))
    temperatures = draw(st.sampled_from([(), (2.0,), (1.0, 2.0, 4.0)]))
    positions, size = sum(counts), 8 * SIZES[dtype]
    signed = st.integers(0, LARGEST[dtype]) | st.integers(0, LARGEST[dtype]).map(
        lambda b: b | 1 << (size - 1)
    )
    some = st.one_of(signed, st.sampled_from(edges(dtype)))
    # Half the positions hold few values, so that many are equal.
    if draw(st.booleans()):
        some = st.sampled_from(draw(st.lists(some, min_size=1, max_size=2)))
    kind = {16: np.uint16, 32: np.uint32}[size]
    logits = floats(draw(hnp.arrays(kind, (positions, k), elements=some, fill=some)), dtype)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    if draw(st.booleans()):
        logits[torch.from_numpy(rng.random((positions, k)) < 0.4)] = -torch.inf
    logsumexp = draw(unknowns(positions))
    ids = np.stack([rng.choice(classes, k, replace=False) for _ in range(positions)] or [[0] * k])
    labels = SoftLabels(
        ids=torch.from_numpy(ids[:positions].astype(np.int64)),
        log_probs=logits.float() - logsumexp.unsqueeze(-1),
        logits=logits,
        logsumexp=logsumexp,
        log_tails=draw(unknowns((positions, len(temperatures)))) if temperatures else None,
        temperatures=temperatures,
        hard_log_probs=draw(st.none() | unknowns(positions, finite=False)),
    )
    table = IdTable(
        classes, tuple(rng.permutation(min(classes, 300))[: rng.integers(300)].tolist())
    )
    codec = Lossless(classes, k, temperatures, table, dtype=dtype)
    return Case(codec, labels, np.cumsum([0, *counts], dtype=np.int64))


def kept(labels: SoftLabels, row: int) -> dict[int, tuple[int, int]]:
    """Bits of the logit and the log-prob of every used class, without order."""
    assert labels.logits is not None
    both = zip(bits(labels.logits[row]).tolist(), bits(labels.log_probs[row]).tolist(), strict=True)
    used = (labels.log_probs[row] != -torch.inf).tolist()
    found = zip(labels.ids[row].tolist(), both, used, strict=True)
    return {index: values for index, values, is_used in found if is_used}


def check_same(found: SoftLabels, expected: SoftLabels) -> None:
    assert found.logits is not None
    assert expected.logits is not None
    assert len(found) == len(expected)
    assert found.logits.dtype == expected.logits.dtype
    assert found.temperatures == expected.temperatures
    for row in range(len(expected)):
        assert kept(found, row) == kept(expected, row)
    unused = found.log_probs == -torch.inf
    assert (found.logits[unused] == -torch.inf).all()
    assert not found.ids[unused].any()
    for name in ("logsumexp", "log_tails", "hard_log_probs"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is not None:
            assert ours.dtype == torch.float32
            assert bits(ours).tolist() == bits(theirs).tolist(), name
    assert (found.log_tails is None) == (expected.log_tails is None)
    assert found.hard_log_probs is not None
    assert expected.hard_log_probs is not None or found.hard_log_probs.isnan().all()


def teacher(
    dtype: str, *, classes: int = 1000, k: int = 8, positions: int = 7, seed: int = 0
) -> SoftLabels:
    """What TopK gives for a random teacher; of a narrow dtype, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(positions, classes, generator=generator) * 3).to(DTYPES[dtype])
    hard = torch.arange(positions) % (classes + 1) - 1
    return TopK(k)(logits, hard, temperatures=TEMPERATURES)


def case_of(labels: SoftLabels, dtype: str, *, classes: int = 1000, cuts: Any = ()) -> Case:
    table = IdTable.count(classes, labels.ids.numpy())
    codec = Lossless(classes, labels.k, labels.temperatures, table, dtype=dtype)
    return Case(codec, labels, np.asarray([0, *cuts, len(labels)]))


@given(cases())
@settings(deadline=None, max_examples=150)
def test_every_bit_comes_back(case: Case) -> None:
    found, offsets = case.codec.decode(case.table)
    assert offsets.tolist() == case.offsets.tolist()
    check_same(found, case.labels)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_log_probs_are_logits_less_the_logsumexp_in_float32(case: Case) -> None:
    found = case.decoded()
    assert found.logits is not None
    assert found.logsumexp is not None
    again = found.logits.float() - found.logsumexp.unsqueeze(-1)
    assert bits(again).tolist() == bits(found.log_probs).tolist()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("classes", WIDTHS)
def test_edges_of_the_dtype_come_back_at_every_width_of_an_id(dtype: str, classes: int) -> None:
    some = np.asarray(edges(dtype), {2: np.uint16, 4: np.uint32}[SIZES[dtype]])
    logits = floats(some, dtype)
    k = min(classes, len(some))
    logits = torch.stack([logits[:k], logits[-k:], logits[:1].expand(k)])
    ids = torch.cat([torch.arange(k - k // 2), torch.arange(classes - k // 2, classes)])
    logsumexp = torch.tensor([0.0, -1e30, 20.0])
    labels = SoftLabels(
        ids=ids.expand(3, -1),
        log_probs=logits.float() - logsumexp.unsqueeze(-1),
        logits=logits,
        logsumexp=logsumexp,
    )
    codec = Lossless(classes, k, (), IdTable(classes), dtype=dtype)
    check_same(Case(codec, labels, np.asarray([0, 1, 3])).decoded(), labels)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_ordered_bits_ascend_as_the_floats_do(dtype: str) -> None:
    size = 8 * SIZES[dtype]
    count = min(1 << size, 1 << 16)
    # All of a half's, and of float32's an even choice.
    raw = (np.arange(count, dtype=np.uint64) * ((1 << size) // count)).astype(
        {16: np.uint16, 32: np.uint32}[size]
    )
    values = floats(np.concatenate([raw, np.asarray(edges(dtype), raw.dtype)]), dtype)
    values = values[~values.isnan()]
    ordered = ordered_bits(values)
    assert bits(from_ordered_bits(ordered, values.dtype)).tolist() == bits(values).tolist()
    in_order = values[torch.from_numpy(np.argsort(ordered, kind="stable"))].double()
    assert bool((in_order.diff()[in_order.diff().isfinite()] >= 0).all())
    # −0 stands right before 0.
    minus, plus = ordered_bits(torch.tensor([-0.0, 0.0], dtype=values.dtype)).tolist()
    assert plus - minus == 1


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_sorted_gives_back_the_order_of_the_selection(dtype: str) -> None:
    labels = teacher(dtype, positions=50, k=40)
    assert labels.logits is not None
    ties = (labels.logits.diff(dim=-1) == 0).any(-1)
    assert dtype == "float32" or ties.float().mean() > 0.5
    decoded = case_of(labels, dtype, cuts=(3, 20)).decoded()
    assert not torch.equal(decoded.ids, labels.ids)
    found = decoded.sorted()
    for name in ("ids", "log_probs", "logits", "logsumexp", "log_tails"):
        assert torch.equal(getattr(found, name), getattr(labels, name)), name


def test_two_logits_of_one_log_prob_come_back_in_the_order_of_the_logits() -> None:
    logits = torch.full((1, 16), -100.0)
    logits[0, 3], logits[0, 9], logits[0, 1] = 0.25, 0.25 + 2**-24, 10.0
    labels = TopK(3)(logits, torch.tensor([0]), temperatures=())
    assert labels.log_probs[0, 1] == labels.log_probs[0, 2]
    found = case_of(labels, "float32", classes=16).decoded().sorted()
    assert found.ids.tolist() == labels.ids.tolist() == [[1, 9, 3]]


def test_entries_that_are_not_used_are_not_stored() -> None:
    logits = torch.full((3, 300), -torch.inf).bfloat16()
    logits[0, [7, 200]], logits[1], logits[2, 0] = 1.5, 0.0, -0.0
    labels = TopK(4)(logits, torch.tensor([-1, 299, 5]), temperatures=TEMPERATURES)
    case = case_of(labels, "bfloat16", classes=300, cuts=(1,))
    assert case.table["entries"].to_pylist() == [2, 5]
    check_same(case.decoded(), labels)


def test_positions_may_hold_fewer_entries_than_the_codec_was_made_for() -> None:
    labels = teacher("float32", k=3)
    codec = replace(case_of(labels, "float32").codec, k=5)
    found = Case(codec, labels, np.asarray([0, 7])).decoded()
    assert found.k == 5
    check_same(found, labels)


def test_a_position_may_have_no_entry_at_all() -> None:
    nothing = torch.full((2, 3), -torch.inf)
    labels = replace(teacher("float32", k=3, positions=2), log_probs=nothing, logits=nothing)
    found = case_of(labels, "float32").decoded()
    assert (found.log_probs == -torch.inf).all()
    check_same(found, labels)


def test_where_every_class_is_kept_the_tails_come_back_as_minus_infinity() -> None:
    labels = teacher("bfloat16", classes=256, k=256)
    found = case_of(labels, "bfloat16", classes=256, cuts=(2,)).decoded()
    assert found.log_tails is not None
    assert (found.log_tails == -torch.inf).all()
    check_same(found, labels)


def test_hard_labels_that_are_missing_are_nan_and_forbidden_ones_minus_infinity() -> None:
    labels = teacher("float32", positions=3)
    hard = torch.tensor([torch.nan, -torch.inf, -0.0])
    found = case_of(replace(labels, hard_log_probs=hard), "float32").decoded()
    assert found.hard_log_probs is not None
    assert bits(found.hard_log_probs).tolist() == bits(hard).tolist()
    without = case_of(replace(labels, hard_log_probs=None), "float32").decoded()
    assert without.hard_log_probs is not None
    assert without.hard_log_probs.isnan().all()


def test_records_without_positions_stand_between_others() -> None:
    labels = teacher("float16")
    case = case_of(labels, "float16", cuts=(0, 0, 3, 3))
    found, offsets = case.codec.decode(case.table)
    assert offsets.tolist() == [0, 0, 0, 3, 3, 7]
    check_same(found, labels)
    nothing, _ = case.codec.decode(case.table.slice(0, 0))
    assert nothing.shape == (0,)
    check_same(case.codec.decode(case.table.take(pa.array([0, 3])))[0], labels[:0])


@given(cases(), st.data())
@settings(deadline=None, max_examples=30)
def test_a_choice_of_records_decodes_to_those_records(case: Case, data: st.DataObject) -> None:
    rows = len(case.offsets) - 1
    chosen = data.draw(st.lists(st.integers(0, rows - 1), max_size=5)) if rows else []
    found, _ = case.codec.decode(case.table.take(pa.array(chosen, pa.int64())))
    wanted = [np.arange(case.offsets[row], case.offsets[row + 1]) for row in chosen]
    index = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *wanted]))
    check_same(found, case.labels[index])


def test_a_narrower_logit_is_written_by_a_wider_codec() -> None:
    labels = teacher("bfloat16")
    assert labels.logits is not None
    found = case_of(labels, "float32").decoded()
    check_same(found, replace(labels, logits=labels.logits.float()))


@pytest.mark.parametrize(
    ("given", "codec"), [("float32", "bfloat16"), ("float32", "float16"), ("float16", "bfloat16")]
)
def test_a_logit_that_the_codec_cannot_hold_is_refused_and_not_rounded(
    given: str, codec: str
) -> None:
    with pytest.raises(InputError, match=rf"torch\.{given}, which {codec} cannot hold"):
        case_of(teacher(given), codec).table
    whole = replace(teacher(given), logits=torch.full((7, 8), 2.0, dtype=DTYPES[given]))
    assert case_of(whole, codec).decoded().logits.dtype == DTYPES[codec]


def test_what_the_codec_was_not_made_for_is_refused() -> None:
    labels = teacher("float32")
    codec = case_of(labels, "float32").codec
    sampled = replace(labels, sampled=True, log_tails=None, temperatures=())
    twice = labels.ids.clone()
    twice[2, :2] = twice[2, 0]
    for changed, words in [
        (replace(labels, logits=None), "writes logits, and the labels hold none"),
        (sampled, "weights of a sampled selection.*lossless writes probabilities"),
        (replace(labels, temperatures=(1.0, 4.0)), r"at \(1\.0, 4\.0\).*writes \(1\.0, 2\.0\)"),
        (replace(labels, temperatures=(2.0, 1.0)), r"at \(2\.0, 1\.0\).*writes \(1\.0, 2\.0\)"),
        (replace(labels, log_tails=None, temperatures=()), r"at \(\).*writes"),
        (replace(labels, logsumexp=None), "logsumexp"),
        (replace(labels, ids=labels.ids + 1000), "not within"),
        (replace(labels, ids=twice), "twice"),
        (teacher("float32", k=9), "9 entries at a position; the codec was made for 8"),
    ]:
        with pytest.raises(InputError, match=words):
            codec.encode(changed, np.asarray([0, 7]))


@pytest.mark.parametrize("name", ["logsumexp", "log_tails", "hard_log_probs"])
def test_a_scalar_of_another_dtype_comes_back_or_is_refused(name: str) -> None:
    labels = teacher("float32")
    case = case_of(replace(labels, **{name: getattr(labels, name).double()}), "float32")
    try:
        table = case.table
    except InputError:
        return
    check_same(case.codec.decode(table)[0], labels)


def test_tails_that_the_codec_does_not_write_are_left_out_or_refused() -> None:
    labels = teacher("float32")
    case = case_of(labels, "float32")
    case = replace(case, codec=replace(case.codec, temperatures=()))
    try:
        table = case.table
    except InputError:
        return
    check_same(case.codec.decode(table)[0], replace(labels, log_tails=None, temperatures=()))


def test_a_logit_that_is_nan_is_refused_as_nan() -> None:
    labels = teacher("float32")
    spoilt = replace(labels, logits=torch.full_like(labels.log_probs, torch.nan))
    with pytest.raises(InputError, match="NaN"):
        case_of(spoilt, "float32").table


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_codec_comes_back_from_its_json(dtype: str) -> None:
    codec = case_of(teacher(dtype, positions=200), dtype).codec
    for made in (codec, replace(codec, dictionary=b"\0\xff"), replace(codec, temperatures=())):
        again = codecs.from_json(json.loads(json.dumps(made.to_json())))
        assert again == made
        assert again.logits_dtype == DTYPES[dtype]
    assert (codec.to_json()["dtype"], codec.to_json()["logits_known"]) == (dtype, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "float64"),
        ("dtype", None),
        ("logits_known", False),
        ("table", "!"),
        ("dictionary", "!"),
        ("k", 0),
        ("classes", 2),
        ("temperatures", 1.0),
    ],
)
def test_settings_that_no_codec_wrote_are_refused(name: str, value: Any) -> None:
    data = case_of(teacher("float32"), "float32").codec.to_json()
    with pytest.raises(UnsupportedFormatError, match="lossless"):
        codecs.from_json({**data, name: value})


@pytest.mark.parametrize("trained", [False, True])
def test_every_flipped_bit_of_a_record_is_found(trained: bool) -> None:
    labels = teacher("bfloat16", positions=100, k=4)
    case = case_of(labels, "bfloat16", cuts=(2,))
    if trained:
        long = teacher("bfloat16", positions=4000, k=4, seed=1)
        case = replace(case, codec=case.codec.trained(long))
        assert case.codec.dictionary
    expected, table = case.decoded(), case.table
    blobs = table["packed"].to_pylist()
    # All bits of a short record, and some of one whose planes have blocks of their own.
    places = [(0, place, bit) for place in range(len(blobs[0]) - 1) for bit in range(8)]
    places += [(1, place, place % 8) for place in range(0, len(blobs[1]) - 1, 13)]
    found = 0
    for row, place, bit in places:
        damaged = bytearray(blobs[row])
        damaged[place] ^= 1 << bit
        changed = [bytes(damaged) if i == row else blob for i, blob in enumerate(blobs)]
        bad = table.set_column(2, "packed", pa.array(changed, pa.binary()))
        try:
            check_same(case.codec.decode(bad)[0], expected)
        except CorruptShardError:
            found += 1
    # A few bits of zstd's own headers bear on nothing that is read.
    assert found > 0.98 * len(places)


@pytest.mark.parametrize(
    ("name", "value"),
    [("positions", [3, 4]), ("entries", [16, 39]), ("entries", [17, 40]), ("positions", [-1, 5])],
)
def test_columns_that_contradict_each_other_are_corrupt(name: str, value: list[int]) -> None:
    case = case_of(teacher("float32"), "float32", cuts=(2,))
    index = case.table.schema.get_field_index(name)
    with pytest.raises(CorruptShardError):
        case.codec.decode(case.table.set_column(index, name, pa.array(value, pa.int32())))


# Records as docs/FORMAT.md has them, worked out by hand. Ranks: 7 is the 0th, 0 to 6 the 1st to
# 7th, all others their own. In bfloat16, 1 is 3F80, its ordered bits BF80; 3 is 4040, so C040;
# −2 is C000, so 3FFF; −0 is 8000, so 7FFF.
GAPS = [0, 3, 1, 255], [42]  # ranks 0 and 4; 1 and 299, whose gap of 297 is large
LOGITS = [0xC0, 0x00, 0x00, 0x00], [0x00, 0x00, 0x40, 0x00]  # 3 and 1; −0 and −2
FLOORS = [0x80, 0xFF], [0xBF, 0x3F]  # 1 and −2
TAILS = [0, 0], [0, 0], [0x80, 0x00], [0xFF, 0xBF]  # −∞ and −½
LOGSUMEXPS = [0, 0], [0, 0], [0x80, 0x20], [0x3F, 0xC0]  # 1 and −2.5
HARD = [0, 0], [0, 0], [0xC0, 0xC0], [0x7F, 0xBF]  # none and −1.5
FULL = [*GAPS, *LOGITS, *FLOORS, *TAILS, *LOGSUMEXPS, *HARD]
# One position with one of two entries, rank 6 and logit 1; its tail and logsumexp are 0, its hard
# label −∞; its count. A second one has none.
RAGGED = [
    *([6], [0], [0], [0x80, 0], [0xBF, 0]),
    *([0, 0] for _ in range(8)),
    *([0, 0], [0, 0], [0x80, 0x80], [0xFF, 0xFF]),
    *([1, 0], [0, 0], [0, 0], [0, 0]),
]


def test_the_bytes_of_a_record_are_those_of_the_format() -> None:
    codec = Lossless(300, 2, (1.0,), IdTable(300, (7,)), dtype="bfloat16")
    no = -torch.inf
    logits = torch.tensor([[3.0, 1.0], [-2.0, -0.0], [1.0, no], [no, no]]).bfloat16()
    logsumexp = torch.tensor([1.0, -2.5, 0.0, 0.0])
    labels = SoftLabels(
        ids=torch.tensor([[7, 3], [299, 0], [5, 0], [0, 0]]),
        log_probs=logits.float() - logsumexp.unsqueeze(-1),
        logits=logits,
        logsumexp=logsumexp,
        log_tails=torch.tensor([[no], [-0.5], [0.0], [0.0]]),
        temperatures=(1.0,),
        hard_log_probs=torch.tensor([torch.nan, -1.5, no, no]),
    )
    case = Case(codec, labels, np.asarray([0, 2, 4]))
    assert case.table["entries"].to_pylist() == [4, 1]
    for blob, planes in zip(case.table["packed"].to_pylist(), (FULL, RAGGED), strict=True):
        assert blob[-1:] == b"\x01"
        assert zstandard.get_frame_parameters(blob).has_checksum
        expected = [byte for plane in planes for byte in plane]
        assert list(zstandard.decompress(blob[:-1])) == expected
    check_same(case.decoded(), labels)


@given(cases())
@example(case_of(teacher("float16", positions=5, k=2), "float16", cuts=(0, 2, 2)))
@settings(deadline=None, max_examples=30)
def test_in_blocks_the_bytes_are_those_of_all_at_once(case: Case) -> None:
    whole = case.table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_BLOCK_ENTRIES", 3 * case.codec.k)
        assert case.table.equals(whole)

"""The compact codec: ids exact, every other field within its stated bound, damage found."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels import SoftLabels, codecs
from softlabels.codecs import (
    Compact,
    curves,
    engines,
    packed,
    unpack_numba,
    unpack_numpy,
    unpack_torch,
)
from softlabels.codecs.idtable import IdTable
from softlabels.errors import CorruptShardError, InputError, UnsupportedFormatError

# At which a gap may need another byte, and two to the 8 and 16; and too many to list.
WIDTHS = [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_791, 65_792, (1 << 24) + 256]
TEMPERATURES = (1.0, 2.0)


@dataclass(frozen=True)
class Case:
    codec: Compact
    labels: SoftLabels
    offsets: np.ndarray

    @property
    def table(self) -> pa.Table:
        positions = pa.array(np.diff(self.offsets).astype(np.int32))
        return pa.table({"positions": positions, **self.codec.encode(self.labels, self.offsets)})


def make(
    classes: int, k: int, counts: list[int], *, seed: int, unused: float = 0.0, **options: Any
) -> Case:
    """Labels of a random teacher: distinct ids, and what is kept and not kept summing to 1."""
    rng = np.random.default_rng(seed)
    positions = sum(counts)
    ids = np.stack([rng.choice(classes, k, replace=False) for _ in range(positions)] or [[0] * k])
    ids = ids[:positions]
    weights = rng.exponential(size=(positions, k + 1)) ** rng.choice([1, 8], (positions, 1))
    # The likeliest class of a teacher is no rarer than 1 in V.
    weights[:, 0] += 1e-6 * weights.sum(1)
    drop = rng.random((positions, k)) < unused
    drop[:, 0] = False
    weights[:, :k][drop] = 0
    if k == classes:
        weights[:, -1] = 0
    weights /= weights.sum(1, keepdims=True) if positions else 1
    with np.errstate(divide="ignore"):
        log_probs = np.log(weights).astype(np.float32)
    hard = np.where(rng.random(positions) < 0.3, np.nan, -rng.exponential(3, positions))
    labels = SoftLabels(
        ids=torch.from_numpy(np.where(drop, 0, ids).astype(np.int64)),
        log_probs=torch.from_numpy(np.ascontiguousarray(log_probs[:, :k])),
        logsumexp=torch.from_numpy(rng.normal(20, 9, positions).astype(np.float32)),
        log_tails=torch.from_numpy(np.repeat(log_probs[:, -1:], len(TEMPERATURES), 1)),
        temperatures=TEMPERATURES,
        hard_log_probs=torch.from_numpy(hard.astype(np.float32)),
    )
    frequent = rng.permutation(min(classes, 300))[: rng.integers(0, 300)]
    table = IdTable(classes, tuple(frequent.tolist()))
    codec = Compact(classes, k, TEMPERATURES, table, **options)
    return Case(codec, labels, np.cumsum([0, *counts], dtype=np.int64))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    classes = draw(st.sampled_from(WIDTHS[:-1]))
    k = classes if classes <= 257 and draw(st.booleans()) else draw(st.integers(1, min(classes, 9)))
    counts = draw(st.lists(st.sampled_from([0, 1, 3, 95, 96, 97]), max_size=4))
    unused = draw(st.sampled_from([0.0, 0.4]))
    return make(classes, k, counts, seed=draw(st.integers(0, 1 << 20)), unused=unused)


def entries(labels: SoftLabels, row: int) -> dict[int, float]:
    """What is kept at a position, without order."""
    pairs = zip(labels.ids[row].tolist(), labels.log_probs[row].tolist(), strict=True)
    return {index: value for index, value in pairs if value != -np.inf}


def check_same(found: SoftLabels, expected: SoftLabels) -> None:
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.numpy().tobytes() == b.numpy().tobytes(), name


def nearest(root: float) -> float:
    """Log of the value that a scaled cube root is stored as, by docs/FORMAT.md."""
    if root >= 2.5:
        return 3 * np.log(round(root))
    steps = round(3 * np.log(root / 3)) if root else -34
    return 3 * np.log(3) + max(-34, steps)


@given(cases())
@example(make(WIDTHS[-1], 4, [2, 100], seed=1))
@example(make(256, 256, [1], seed=2))
@settings(deadline=None, max_examples=60)
def test_ids_come_back_and_every_value_within_its_bound(case: Case) -> None:
    found, offsets = case.codec.decode(case.table)
    labels, scale = case.labels, case.codec.scale
    assert offsets.tolist() == case.offsets.tolist()
    for row in range(len(labels)):
        ours, theirs = entries(found, row), entries(labels, row)
        assert ours.keys() == theirs.keys()
        roots = {i: scale * np.exp(v / 3) for i, v in theirs.items()}
        exact = {i: nearest(root) for i, root in roots.items()}
        kept = 1 - np.exp(float(found.log_tails[row, 0]))
        total = sum(np.exp(value) for value in exact.values())
        for index, value in ours.items():
            # The oracle rounds halves to even in float64, the codec in float32.
            close = [nearest(roots[index] * factor) for factor in (1 - 1e-5, 1, 1 + 1e-5)]
            off = np.asarray(close) - np.log(total) + np.log(kept) - value
            assert np.abs(off).min() < 1e-2 * len(exact)
        assert np.exp(list(ours.values())).sum() == pytest.approx(kept, abs=1e-5)
    angle = np.arcsin(np.exp(np.stack([labels.log_tails.double(), found.log_tails.double()]) / 2))
    assert np.abs(angle[0] - angle[1]).max(initial=0) < 0.0047
    assert torch.equal(labels.log_tails == -torch.inf, found.log_tails == -torch.inf)
    assert (
        (labels.logsumexp - found.logsumexp).abs().max().item() <= 2**-11 + 1e-5
        if len(labels)
        else True
    )
    assert torch.equal(labels.hard_log_probs.isnan(), found.hard_log_probs.isnan())
    worst = (labels.hard_log_probs - found.hard_log_probs).nan_to_num().abs()
    assert not len(labels) or worst.max().item() <= 2**-11 + 1e-6


@given(cases(), st.data())
@settings(deadline=None, max_examples=30)
def test_a_choice_of_records_decodes_to_those_records(case: Case, data: st.DataObject) -> None:
    rows = len(case.offsets) - 1
    chosen = data.draw(st.lists(st.integers(0, rows - 1), max_size=5)) if rows else []
    whole, _ = case.codec.decode(case.table)
    found, offsets = case.codec.decode(case.table.take(pa.array(chosen, pa.int64())))
    wanted = [np.arange(case.offsets[row], case.offsets[row + 1]) for row in chosen]
    index = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *wanted]))
    assert torch.equal(found.ids, whole.ids[index])
    assert torch.equal(found.log_probs, whole.log_probs[index])
    assert offsets.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()


@pytest.mark.parametrize("classes", WIDTHS)
def test_the_largest_gap_that_there_can_be_comes_back(classes: int) -> None:
    case = make(classes, 1, [3], seed=17)
    table = case.codec.table
    case.labels.ids[:, 0] = torch.from_numpy(table.to_ids(np.asarray([classes - 1, 0, 0])))
    assert torch.equal(case.codec.decode(case.table)[0].ids, case.labels.ids)


def test_the_tail_at_1_scales_log_probs_wherever_it_stands_among_the_temperatures() -> None:
    case = make(500, 8, [3, 4], seed=21)
    assert case.labels.log_tails is not None
    tails = case.labels.log_tails.clone()
    tails[:, 0] = -0.3  # of another temperature: not what is left of these log-probs
    turned = (2.0, 1.0)
    codec = replace(case.codec, temperatures=turned)
    labels = replace(case.labels, log_tails=tails, temperatures=turned)
    table = Case(codec, labels, case.offsets).table
    compiled, _ = codec.decode(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "cpu", lambda: unpack_numpy)
        plain, _ = codec.decode(table)
    assert torch.equal(compiled.log_probs, plain.log_probs)
    kept = compiled.log_probs.double().exp().sum(-1)
    expected = 1 - case.labels.log_tails[:, 0].double().exp()
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.01)


@given(cases())
@settings(deadline=None, max_examples=30)
def test_compiled_and_plain_unpacking_give_equal_arrays(case: Case) -> None:
    assert engines.cpu() is unpack_numba, "numba belongs to the test extra"
    compiled, _ = case.codec.decode(case.table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "cpu", lambda: unpack_numpy)
        patch.setattr(unpack_numpy, "_ROWS", 7)  # blocks that end anywhere
        plain, _ = case.codec.decode(case.table)
    for name in ("ids", "log_probs", "log_tails", "logsumexp", "hard_log_probs"):
        one, other = getattr(compiled, name), getattr(plain, name)
        assert (one is None) == (other is None), name
        assert one is None or one.numpy().tobytes() == other.numpy().tobytes(), name
    planes = case.codec.layout.unpack(case.codec.layout.open(case.codec.layout.seal(case.table)))
    starts, k = torch.from_numpy(planes.starts), case.codec.k
    first = torch.from_numpy(planes.gaps.first)
    rest = torch.from_numpy(planes.gaps.rest.astype(np.int64))
    table = torch.from_numpy(case.codec.table.ids)
    assert torch.equal(compiled.ids, unpack_torch.ids(first, rest, starts, k, of_rank=table))
    codes = planes.by_entry[0] + np.repeat(planes.by_position[0], planes.counts)
    kept = curves.code_log_kept()[planes.by_position[1]]
    on_device = unpack_torch.log_probs(torch.from_numpy(codes), starts, k, torch.from_numpy(kept))
    assert torch.equal(compiled.log_probs, on_device)


@pytest.mark.parametrize("engine", [unpack_numba, unpack_numpy, unpack_torch])
def test_damaged_gaps_never_come_round_to_a_rank_that_exists(engine: ModuleType) -> None:
    first, starts = np.full(9, 255, np.uint8), np.asarray([0, 0, 9])
    for rest in (0, 2**31 - 1, 2**32 - 1):
        large = np.full(9, rest, np.uint32)
        arrays: list[Any] = [first, large, starts]
        of_rank: Any = np.arange(256)
        if engine is unpack_torch:
            arrays = [torch.from_numpy(a.astype(np.int64)) for a in arrays]
            of_rank = torch.from_numpy(of_rank)
        with pytest.raises(CorruptShardError, match="beyond the classes"):
            engine.ids(*arrays, 9, of_rank=of_rank)
        if rest and engine is not unpack_torch:
            with pytest.raises(CorruptShardError, match="beyond the classes"):
                engine.ranks(*arrays, 9, classes=1 << 31)


def test_the_added_kl_of_a_peaked_and_a_flat_teacher_is_small() -> None:
    case = make(50_000, 64, [400], seed=3)
    found, _ = case.codec.decode(case.table)
    ours, order = found.ids.sort(-1)
    theirs, by = case.labels.ids.sort(-1)
    assert torch.equal(ours, theirs)
    p = case.labels.log_probs_at(1.0).double().gather(-1, by)
    q = found.log_probs_at(1.0).double().gather(-1, order)
    rest_p, rest_q = case.labels.log_tail(1.0).double(), found.log_tail(1.0).double()
    kl = (p.exp() * (p - q)).sum(-1) + rest_p.exp() * (rest_p - rest_q)
    assert 0 <= kl.mean().item() < 1.5e-4


def test_every_flipped_bit_of_a_record_is_found() -> None:
    case = make(1000, 4, [100, 2], seed=4)
    table = case.table
    blobs = table["packed"].to_pylist()
    for row, blob in enumerate(blobs):
        for place in range(0, len(blob) - 1, 1 + len(blob) // 60):
            damaged = bytearray(blob)
            damaged[place] ^= 1 << place % 8
            changed = [bytes(damaged) if i == row else b for i, b in enumerate(blobs)]
            bad = table.set_column(2, "packed", pa.array(changed, pa.binary()))
            try:
                found, _ = case.codec.decode(bad)
            except CorruptShardError:
                continue
            assert torch.equal(found.ids, case.codec.decode(table)[0].ids), place


@pytest.mark.parametrize(
    ("name", "value"),
    [("positions", [3, 2]), ("entries", [399, 8]), ("entries", [401, 8]), ("positions", [-1, 2])],
)
def test_columns_that_contradict_each_other_are_corrupt(name: str, value: list[int]) -> None:
    table = make(1000, 4, [100, 2], seed=5).table
    index = table.schema.get_field_index(name)
    with pytest.raises(CorruptShardError):
        make(1000, 4, [1], seed=5).codec.decode(
            table.set_column(index, name, pa.array(value, pa.int32()))
        )


@pytest.mark.parametrize("counts", [[3, 0], [1, 1], [2, 2], [0, 2**32 - 1], [4, 2**32 - 1]])
def test_counts_that_do_not_fit_the_entries_are_corrupt(counts: list[int]) -> None:
    case = make(1000, 2, [2], seed=5)
    case.labels.log_probs[1, 1] = -torch.inf
    table = case.table
    assert table["entries"].to_pylist() == [3]
    frame = zstandard.decompress(table["packed"][0].as_py()[:-1])

    def decoded(counts: list[int]) -> SoftLabels:
        # Four planes, lowest byte first, at the end of the frame.
        planes = np.asarray(counts, "<u4").view(np.uint8).reshape(2, 4).T.tobytes()
        blob = zstandard.compress(frame[:-8] + planes) + b"\x01"
        return case.codec.decode(table.set_column(2, "packed", pa.array([blob], pa.binary())))[0]

    check_same(decoded([2, 1]), case.codec.decode(table)[0])
    with pytest.raises(CorruptShardError, match="entries of a record do not fit its positions"):
        decoded(counts)


def test_a_record_without_a_frame_is_corrupt() -> None:
    case = make(1000, 4, [2, 2], seed=5)
    blobs = [b"", case.table["packed"][1].as_py()]
    bad = case.table.set_column(2, "packed", pa.array(blobs, pa.binary()))
    with pytest.raises(CorruptShardError):
        case.codec.decode(bad)


def test_a_dictionary_that_zstd_cannot_read_is_refused_in_words() -> None:
    case = trained(make(1000, 4, [2], seed=15))
    cut = base64.b64encode(case.codec.dictionary[:60]).decode()
    with pytest.raises(UnsupportedFormatError, match="compact"):
        codecs.from_json({**case.codec.to_json(), "dictionary": cut}).decode(case.table)


def test_a_rank_beyond_the_classes_is_corrupt_and_reads_no_other_memory() -> None:
    case = make(511, 4, [3], seed=6)
    smaller = replace(case.codec, classes=400, table=IdTable(400))
    case.labels.ids[0] = torch.tensor([507, 508, 509, 510])
    table = replace(case, codec=replace(case.codec, table=IdTable(511))).table
    with pytest.raises(CorruptShardError, match="beyond"):
        smaller.decode(table)


def test_a_frame_whose_large_gaps_take_another_number_of_bytes_is_corrupt() -> None:
    case = make(1000, 4, [3], seed=6)
    case.labels.ids[:, 0] = torch.tensor([999, 998, 997])
    for classes in (256, 511, 70_000):  # 0, 1 and 3 in place of 2
        other = replace(case.codec, classes=classes, table=IdTable(classes))
        with pytest.raises(CorruptShardError, match=r"large gaps|its record from"):
            other.decode(case.table)


def test_what_cannot_be_written_is_refused() -> None:
    case = make(1000, 4, [3], seed=7)
    twice = case.labels.ids.clone()
    twice[0, :2] = twice[0, 0]
    beyond = case.labels.ids + 1000
    for changed, words in [
        (replace(case.labels, ids=twice), "twice"),
        (replace(case.labels, ids=beyond), "not within"),
        (replace(case.labels, logsumexp=None), "logsumexp"),
        (replace(case.labels, log_tails=None, temperatures=()), "temperatures|log tails"),
        (replace(case.labels, logsumexp=torch.full((3,), 1e9)), "outside"),
    ]:
        with pytest.raises(InputError, match=words):
            case.codec.encode(changed, case.offsets)


def test_normalised_labels_have_no_logsumexp() -> None:
    case = make(1000, 4, [3], seed=8, logits_known=False)
    found, _ = case.codec.decode(replace(case, labels=replace(case.labels, logsumexp=None)).table)
    assert found.logsumexp is None


@pytest.mark.parametrize("k", [1, 4])
def test_a_codec_comes_back_from_its_json(k: int) -> None:
    codec = make(70_000, k, [], seed=9).codec
    assert codecs.from_json(json.loads(json.dumps(codec.to_json()))) == codec


def trained(case: Case) -> Case:
    """The same, with a dictionary learnt from other labels of that kind."""
    many = make(case.codec.classes, case.codec.k, [3000], seed=99).labels
    return replace(case, codec=case.codec.trained(many))


@pytest.mark.parametrize("k", [8, 64])
@pytest.mark.parametrize("positions", [1, 2, 4, 8, 16])
def test_short_records_are_smaller_with_a_dictionary_and_hold_the_same(
    positions: int, k: int
) -> None:
    without = make(50_000, k, [positions] * (200 // positions), seed=11, unused=0.05 * (k == 8))
    case = trained(without)
    assert 0 < len(case.codec.dictionary) <= 4096
    table, plain = case.table, without.table
    assert sum(map(len, table["packed"].to_pylist())) < sum(map(len, plain["packed"].to_pylist()))
    assert table["entries"].equals(plain["entries"])
    check_same(case.codec.decode(table)[0], without.codec.decode(plain)[0])


def test_a_dictionary_is_for_records_of_fewer_than_96_positions() -> None:
    counts = [95, 96, 0, 8]
    without = make(300, 4, counts, seed=12)
    case = trained(without)
    assert case.codec.dictionary
    with_dictionary, plain = case.table["packed"].to_pylist(), without.table["packed"].to_pylist()
    same = [a == b for a, b in zip(with_dictionary, plain, strict=True)]
    assert (same[0], same[1], same[3]) == (False, True, False)
    check_same(case.codec.decode(case.table)[0], without.codec.decode(without.table)[0])
    # Read as docs/FORMAT.md says, by zstd alone.
    given = zstandard.ZstdCompressionDict(case.codec.dictionary)
    for blob, alone, positions in zip(with_dictionary, plain, counts, strict=True):
        assert zstandard.get_frame_parameters(blob).dict_id == 0
        reader = zstandard.ZstdDecompressor(dict_data=given if positions < 96 else None)
        assert reader.decompress(blob[:-1]) == zstandard.decompress(alone[:-1])
    # The frame's checksum tells that it was read without.
    with pytest.raises(CorruptShardError):
        without.codec.decode(case.table)


@given(cases())
@settings(deadline=None, max_examples=20)
def test_with_a_dictionary_the_same_labels_come_back(case: Case) -> None:
    dictionary = trained(make(300, 4, [], seed=13)).codec.dictionary
    learnt = replace(case, codec=replace(case.codec, dictionary=dictionary))
    found, offsets = learnt.codec.decode(learnt.table)
    assert offsets.tolist() == case.offsets.tolist()
    check_same(found, case.codec.decode(case.table)[0])


@pytest.mark.parametrize("positions", [0, 1, 3, 4, 5, 7])
def test_of_too_few_labels_there_is_no_dictionary(positions: int) -> None:
    case = make(1000, 4, [positions], seed=14)
    codec = case.codec.trained(case.labels)
    assert codec == case.codec
    codec.decode(replace(case, codec=codec).table)


def test_a_dictionary_survives_json_and_without_one_older_json_still_reads() -> None:
    case = trained(make(1000, 4, [2, 3], seed=15))
    again = codecs.from_json(json.loads(json.dumps(case.codec.to_json())))
    assert again == case.codec
    check_same(again.decode(case.table)[0], case.codec.decode(case.table)[0])
    plain = make(1000, 4, [2, 3], seed=15)
    older = plain.codec.to_json()
    assert older.pop("dictionary") == ""
    read = codecs.from_json(older)
    assert read == plain.codec
    check_same(read.decode(plain.table)[0], plain.codec.decode(plain.table)[0])


@given(cases())
@settings(deadline=None, max_examples=30)
def test_in_blocks_the_bytes_are_those_of_all_at_once(case: Case) -> None:
    whole = case.table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_BLOCK_ENTRIES", 3 * case.codec.k)
        assert case.table.equals(whole)


@pytest.mark.parametrize("counts", [[3], [6], [7], [2, 2], [1, 5, 0, 1], [0], []])
@pytest.mark.parametrize("unused", [0.0, 0.5])
def test_a_block_may_end_inside_a_record_or_with_it(
    counts: list[int], unused: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(70_000, 5, counts, seed=16, unused=unused)
    whole = case.table
    monkeypatch.setattr(packed, "_BLOCK_ENTRIES", 3 * case.codec.k)
    assert case.table.equals(whole)
    check_same(case.codec.decode(case.table)[0], case.codec.decode(whole)[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("table", "!"),
        ("table", "AAAA"),
        ("scale", 0),
        ("scale", 256),
        ("k", 0),
        ("classes", 2),
        ("dictionary", "!"),
    ],
)
def test_settings_that_no_codec_wrote_are_refused(name: str, value: Any) -> None:
    data = make(1000, 4, [], seed=10).codec.to_json()
    with pytest.raises(UnsupportedFormatError, match="compact"):
        codecs.from_json({**data, name: value})


def test_tail_codes_are_monotonic_and_reach_both_ends() -> None:
    tails = curves.code_log_tails()
    assert tails[0] == -np.inf
    assert (np.diff(tails[1:]) > 0).all()
    assert curves.tail_codes(tails).tolist() == list(range(256))
    assert np.exp(tails[1]) < 1e-8
    assert -np.expm1(tails[255].astype(np.float64)) > 0


# Two records as docs/FORMAT.md has them, worked out by hand. Ranks: 7 is the 0th, 0 to 6 the 1st to
# 7th, all others their own.
GAPS = [0, 3, 1, 255], [42]  # ranks 0 and 4; 1 and 299, whose gap of 297 is large
CODES = [137 - 108, 0, 86 - 17, 0]  # p = ½ and ¼; ⅛ and 10⁻³
FLOORS, TAILS = [32 + 108, 32 + 17], [0, 128]  # no tail; a tail of ½
LOGSUMEXPS = [0, 0], [4, 0xF6], [0, 0xFF], [0x80, 0x7F]  # 1 and −2.5
HARD = [0, 2], [0, 6], [0, 0], [0, 0]  # none; −1.5
FULL = [GAPS[0], GAPS[1], CODES, FLOORS, TAILS, *LOGSUMEXPS, *HARD]
# One position with one of two entries, rank 6, p = 1; logsumexp 0, hard label −∞; its count.
RAGGED = [[6], [0], [32 + 172], [0], [0, 0, 0, 0x80], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_the_bytes_of_a_record_are_those_of_the_format() -> None:
    codec = Compact(300, 2, (1.0,), IdTable(300, (7,)), scale=172)
    kept = torch.tensor([[0.5, 0.25], [0.001, 0.125], [1.0, 0.0]]).log()
    labels = SoftLabels(
        ids=torch.tensor([[7, 3], [299, 0], [5, 0]]),
        log_probs=kept,
        logsumexp=torch.tensor([1.0, -2.5, 0.0]),
        log_tails=torch.tensor([[0.0], [0.5], [0.0]]).log(),
        temperatures=(1.0,),
        hard_log_probs=torch.tensor([torch.nan, -1.5, -torch.inf]),
    )
    columns = codec.encode(labels, np.asarray([0, 2, 3]))
    assert columns["entries"].to_pylist() == [4, 1]
    for blob, planes in zip(columns["packed"].to_pylist(), (FULL, RAGGED), strict=True):
        assert blob[-1:] == b"\x01"
        assert zstandard.get_frame_parameters(blob).has_checksum
        expected = [byte for plane in planes for byte in plane]
        assert list(zstandard.decompress(blob[:-1])) == expected


@pytest.mark.parametrize("gap", [8.0, 15.0, 20.0, 30.0])
def test_where_the_teacher_is_sure_the_stored_temperatures_hold_too(gap: float) -> None:
    logits = -torch.arange(1.0, 2001).log().expand(32, -1).clone()
    logits[:, 7] = gap
    labels = sl.TopK(64)(logits, torch.full((32,), -1), temperatures=(1.0, 2.0, 4.0))
    codec = codecs.resolve("compact", codecs.Needs(2000, 64, (1.0, 2.0, 4.0)), pilot=lambda: labels)
    table = pa.table(
        {"positions": pa.array([32], pa.int32()), **codec.encode(labels, np.asarray([0, 32]))}
    )
    found, _ = codec.decode(table)
    for temperature in (1.0, 2.0, 4.0):
        dense = (logits.double() / temperature).log_softmax(-1)
        kept = found.log_probs_at(temperature).double()
        off = (dense.gather(-1, found.ids).exp() - kept.exp()).abs().sum(-1)
        assert off.max() < 0.02, temperature
    assert found.top(8).ids.tolist() == labels.top(8).ids.tolist()


def test_without_a_tail_at_one_no_more_than_everything_is_kept() -> None:
    logits = -1.5 * torch.arange(1.0, 2001).log().expand(4, -1).clone()
    labels = sl.TopK(64)(logits, torch.full((4,), -1), temperatures=())
    codec = codecs.resolve("compact", codecs.Needs(2000, 64, ()), pilot=lambda: labels)
    table = pa.table(
        {"positions": pa.array([4], pa.int32()), **codec.encode(labels, np.asarray([0, 4]))}
    )
    found, _ = codec.decode(table)
    assert found.log_probs.exp().sum(-1).max() <= 1 + 1e-6
    assert torch.isfinite(sl.losses.kl_divergence(logits, found)).all()


def test_a_tail_that_is_nan_is_refused() -> None:
    case = make(1000, 4, [3], seed=7)
    case.labels.log_tails[1, 0] = torch.nan
    with pytest.raises(InputError, match="log tail"):
        _ = case.table

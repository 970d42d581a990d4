"""The sampled codec: counts of draws exact, other weights within their bound; no tail anywhere."""

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

from softlabels import SoftLabels, TopK, codecs
from softlabels.codecs import Codec, Compact, Lossless, Plain, Sampled
from softlabels.codecs.idtable import IdTable
from softlabels.errors import (
    CorruptShardError,
    InputError,
    MissingTailError,
    UnsupportedFormatError,
)
from softlabels.losses import kl_divergence

# One draw, and those at which a count needs another byte.
DRAWS = [1, 2, 255, 256, 257, 65_535]
# At which a gap may need another byte, and two to the 8 and 16.
WIDTHS = [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_791, 65_792]
# Half a step of 2⁻¹⁰.
BOUND = 2**-11


@dataclass(frozen=True)
class Case:
    codec: Sampled
    labels: SoftLabels
    offsets: np.ndarray

    @property
    def table(self) -> pa.Table:
        positions = pa.array(np.diff(self.offsets).astype(np.int32))
        return pa.table({"positions": positions, **self.codec.encode(self.labels, self.offsets)})

    def decoded(self) -> SoftLabels:
        return self.codec.decode(self.table)[0]


def make(
    counts: np.ndarray, draws: int | None, *, classes: int, seed: int = 0, cuts: Any = ()
) -> Case:
    """Labels of so many draws of each entry, (positions, k), of random classes; 0 is unused."""
    rng = np.random.default_rng(seed)
    positions, k = counts.shape
    ids = np.stack([rng.choice(classes, k, replace=False) for _ in range(positions)] or [[0] * k])
    hard = np.where(rng.random(positions) < 0.3, np.nan, -rng.exponential(3, positions))
    labels = SoftLabels(
        ids=torch.from_numpy(ids[:positions].astype(np.int64)),
        # In float32, as a selection on an accelerator would have it.
        log_probs=(torch.from_numpy(counts).float() / (draws or 1)).log(),
        logsumexp=torch.from_numpy(rng.normal(20, 9, positions).astype(np.float32)),
        hard_log_probs=torch.from_numpy(hard.astype(np.float32)),
        sampled=True,
    )
    table = IdTable(
        classes, tuple(rng.permutation(min(classes, 300))[: rng.integers(300)].tolist())
    )
    codec = Sampled(classes, k, (), table, draws=draws)
    return Case(codec, labels, np.asarray([0, *cuts, positions]))


def kept(labels: SoftLabels, row: int) -> dict[int, float]:
    """The log weight of every used class, without order."""
    pairs = zip(labels.ids[row].tolist(), labels.log_probs[row].tolist(), strict=True)
    return {index: value for index, value in pairs if value != -np.inf}


def counts_of(labels: SoftLabels, row: int, draws: int) -> dict[int, int]:
    return {index: round(np.exp(value) * draws) for index, value in kept(labels, row).items()}


def check_scalars(found: SoftLabels, expected: SoftLabels) -> None:
    assert found.logsumexp is not None
    assert expected.logsumexp is not None
    assert found.hard_log_probs is not None
    assert expected.hard_log_probs is not None
    torch.testing.assert_close(found.logsumexp, expected.logsumexp, rtol=0, atol=BOUND + 1e-5)
    torch.testing.assert_close(
        found.hard_log_probs, expected.hard_log_probs, rtol=0, atol=BOUND + 1e-5, equal_nan=True
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Multinomial counts: at each position at most `draws` in all, and some entries unused."""
    classes, draws = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(DRAWS))
    k = classes if classes <= 257 and draw(st.booleans()) else draw(st.integers(1, min(classes, 6)))
    positions = draw(st.lists(st.sampled_from([0, 1, 3]), max_size=4))
    seed = draw(st.integers(0, 1 << 20))
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(k, 0.3), sum(positions))
    counts = np.stack([rng.multinomial(draws, share) for share in shares] or [[0] * k])
    case = make(counts[: sum(positions)], draws, classes=classes, seed=seed)
    return replace(case, offsets=np.cumsum([0, *positions], dtype=np.int64))


@given(cases())
@example(make(np.asarray([[1, 0], [0, 0], [1, 0]]), 1, classes=65_537, cuts=(0, 1)))
@settings(deadline=None, max_examples=100)
def test_classes_and_their_counts_come_back(case: Case) -> None:
    draws = case.codec.draws
    assert draws is not None
    found, offsets = case.codec.decode(case.table)
    assert offsets.tolist() == case.offsets.tolist()
    assert found.sampled
    assert (found.log_tails, found.temperatures, found.logits) == (None, (), None)
    for row in range(len(case.labels)):
        counts = counts_of(case.labels, row, draws)
        logs = {index: float(np.float32(np.log(c / draws))) for index, c in counts.items()}
        assert kept(found, row) == logs
    assert not found.ids[found.log_probs == -torch.inf].any()
    check_scalars(found, case.labels)


@pytest.mark.parametrize("draws", DRAWS)
def test_every_count_up_to_the_number_of_draws_is_exact(draws: int) -> None:
    counts = np.arange(1, draws + 1)
    case = make(counts[:, None], draws, classes=256)
    found = case.decoded()
    assert np.rint(np.exp(found.log_probs[:, 0].double().numpy()) * draws).tolist() == (
        counts.tolist()
    )
    assert torch.equal(found.ids, case.labels.ids)
    # One byte a count up to 255 draws, two above; beside it stand one of the id, and eight.
    size = zstandard.frame_content_size(case.table["packed"][0].as_py()[:-1])
    assert size == draws * (1 + (1 if draws <= 255 else 2) + 8)


@given(st.lists(st.floats(-55.875, 8, width=32), min_size=1, max_size=30))
@example([8.0, -55.999, 0.0, -0.0, 2.0**-12])
@settings(deadline=None, max_examples=100)
def test_other_weights_come_back_within_their_bound(values: list[float]) -> None:
    case = make(np.ones((len(values), 1)), None, classes=70_000)
    log_weights = torch.tensor(values).unsqueeze(1)
    case = replace(case, labels=replace(case.labels, log_probs=log_weights))
    found = case.decoded()
    assert found.sampled
    off = (found.log_probs.double() - log_weights.double()).abs()
    assert off.max().item() <= BOUND + 2**-19
    assert torch.equal(found.ids, case.labels.ids)
    check_scalars(found, case.labels)


def test_weights_of_importance_sampling_may_be_above_one_and_some_unused() -> None:
    case = make(np.ones((3, 4)), None, classes=1000, cuts=(1, 1))
    log_weights = torch.tensor(
        [[1.5, -3.0, -torch.inf, 0.25], [-torch.inf] * 4, [-torch.inf, 7.75, -40.0, 0.0]]
    )
    case = replace(case, labels=replace(case.labels, log_probs=log_weights))
    assert case.table["entries"].to_pylist() == [3, 0, 3]
    found = case.decoded()
    for row in range(3):
        assert kept(found, row) == kept(case.labels, row)


@pytest.mark.parametrize(
    ("draws", "weight"),
    [
        (2, 0.3),
        (2, 0.75),
        (2, 0.1),
        (2, 1e-30),
        (2, 1.5),
        (2, torch.nan),
        (1, 0.5),
        (255, 0.02),
        (256, 100 / 255),
        (65_535, 0.5),
        (65_535, 2.0),
    ],
)
def test_a_weight_that_is_no_count_is_refused(draws: int, weight: float) -> None:
    case = make(np.asarray([[1, 0]]), draws, classes=10)
    log_probs = torch.tensor([[weight, 0.0]]).log()
    with pytest.raises(InputError, match=f"no count of {draws} draws"):
        case.codec.encode(replace(case.labels, log_probs=log_probs), case.offsets)


@pytest.mark.parametrize(("draws", "given"), [(255, 256), (1000, 1001), (65_535, 65_400)])
def test_the_count_of_another_number_of_draws_is_refused(draws: int, given: int) -> None:
    case = make(np.asarray([[1, 2]]), given, classes=10)
    with pytest.raises(InputError, match=f"no count of {draws} draws"):
        replace(case.codec, draws=draws).encode(case.labels, case.offsets)


def test_a_weight_above_one_is_named() -> None:
    case = make(np.asarray([[3, 1]]), 2, classes=10)
    with pytest.raises(InputError, match=r"weight of \[?1\.5"):
        case.codec.encode(case.labels, case.offsets)


def test_a_weight_that_no_float_holds_is_refused_as_any_other() -> None:
    case = make(np.asarray([[1, 0]]), 2, classes=10)
    log_probs = torch.tensor([[0.0, 800.0]])
    with pytest.raises(InputError, match="no count of 2 draws"):
        case.codec.encode(replace(case.labels, log_probs=log_probs), case.offsets)


def test_who_is_refused_is_not_sent_to_a_codec_that_refuses_him_too() -> None:
    case = make(np.asarray([[1, 0]]), None, classes=10)
    log_probs = torch.tensor([[0.0, 9.0]])
    with pytest.raises(InputError) as caught:
        case.codec.encode(replace(case.labels, log_probs=log_probs), case.offsets)
    assert "plain" not in str(caught.value)


@pytest.mark.parametrize("value", [8.01, 30.0, -56.1, -100.0, torch.nan, torch.inf])
def test_a_weight_beyond_the_codec_is_refused_and_not_clamped(value: float) -> None:
    case = make(np.asarray([[1, 0]]), None, classes=10)
    log_probs = torch.tensor([[0.0, value]])
    with pytest.raises(InputError, match="log weight"):
        case.codec.encode(replace(case.labels, log_probs=log_probs), case.offsets)


def probabilities() -> SoftLabels:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    return TopK(3)(logits, torch.arange(4), temperatures=())


def test_probabilities_are_refused_as_weights() -> None:
    labels = probabilities()
    for draws in (None, 4):
        codec = Sampled(100, 3, (), IdTable(100), draws=draws)
        with pytest.raises(InputError, match=r"hold probabilities.*sampled writes weights"):
            codec.encode(labels, np.asarray([0, 4]))


@pytest.mark.parametrize(
    "codec",
    [
        Plain(100, ()),
        Compact(100, 3, (), IdTable(100)),
        Lossless(100, 3, (), IdTable(100)),
    ],
    ids=lambda codec: type(codec).__name__,
)
def test_weights_are_refused_as_probabilities(codec: Codec) -> None:
    labels = probabilities()
    codec.encode(labels, np.asarray([0, 4]))
    with pytest.raises(InputError, match="weights of a sampled selection"):
        codec.encode(replace(labels, sampled=True), np.asarray([0, 4]))


def test_what_the_codec_was_not_made_for_is_refused() -> None:
    case = make(np.asarray([[1, 2, 1]]), 4, classes=10)
    labels = case.labels
    for changed, words in [
        (replace(labels, logsumexp=None), "logsumexp"),
        (replace(labels, ids=labels.ids + 10), "not within"),
        (replace(labels, ids=torch.zeros_like(labels.ids)), "twice"),
        (make(np.ones((1, 4)), 4, classes=10).labels, "4 entries at a position"),
    ]:
        with pytest.raises(InputError, match=words):
            case.codec.encode(changed, case.offsets)


def test_normalised_labels_have_no_logsumexp() -> None:
    case = make(np.asarray([[1, 3]]), 4, classes=10)
    codec = replace(case.codec, logits_known=False)
    labels = replace(case.labels, logsumexp=None)
    found = Case(codec, labels, case.offsets).decoded()
    assert found.logsumexp is None
    assert found.hard_log_probs is not None
    assert kept(found, 0).keys() == kept(labels, 0).keys()


def test_positions_may_hold_fewer_entries_than_the_codec_was_made_for() -> None:
    case = make(np.asarray([[1, 3], [4, 0]]), 4, classes=10)
    found = replace(case, codec=replace(case.codec, k=5)).decoded()
    assert found.k == 5
    assert [counts_of(found, row, 4) for row in range(2)] == [
        counts_of(case.labels, row, 4) for row in range(2)
    ]


@pytest.mark.parametrize("read", ["log_tail", "log_probs_at"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_decoded_weights_have_no_tail_at_any_temperature(read: str, temperature: float) -> None:
    found = make(np.asarray([[1, 3], [4, 0]]), 4, classes=10).decoded()
    with pytest.raises(MissingTailError, match="sampled labels have no tail"):
        getattr(found, read)(temperature)


def test_the_rest_bucket_loss_of_weights_is_refused_in_words_and_not_computed() -> None:
    # Weights that sum to less than 1, as they may: their complement is no tail.
    case = make(np.asarray([[1, 1], [2, 0]]), 4, classes=10)
    for labels in (case.labels, case.decoded()):
        with pytest.raises(MissingTailError, match=r"sampled labels have no tail.*use a loss"):
            kl_divergence(torch.zeros(2, 10), labels)


@pytest.mark.parametrize("draws", [None, *DRAWS])
def test_a_codec_comes_back_from_its_json(draws: int | None) -> None:
    codec = make(np.ones((1, 4)), draws, classes=70_000).codec
    for made in (codec, replace(codec, dictionary=b"\0\xff", logits_known=False)):
        data = json.loads(json.dumps(made.to_json()))
        assert codecs.from_json(data) == made
        assert (data["name"], data["draws"], data["temperatures"]) == ("sampled", draws, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("draws", 0),
        ("draws", -1),
        ("draws", 65_536),
        ("draws", "many"),
        ("temperatures", [1.0]),
        ("dictionary", "!"),
        ("k", 0),
    ],
)
def test_settings_that_no_codec_wrote_are_refused(name: str, value: Any) -> None:
    data = make(np.ones((1, 4)), 4, classes=1000).codec.to_json()
    with pytest.raises(UnsupportedFormatError, match="sampled"):
        codecs.from_json({**data, name: value})
    del data["draws"]
    with pytest.raises(UnsupportedFormatError, match="draws"):
        codecs.from_json(data)


@pytest.mark.parametrize("draws", [None, 9])
def test_every_flipped_bit_of_a_record_is_found(draws: int | None) -> None:
    case = make(np.asarray([[1, 3, 5], [9, 0, 0], [4, 4, 1]]), draws, classes=300, cuts=(2,))
    table, expected = case.table, case.decoded()
    blobs = table["packed"].to_pylist()
    found = 0
    places = [(place, bit) for place in range(len(blobs[0]) - 1) for bit in range(8)]
    for place, bit in places:
        damaged = bytearray(blobs[0])
        damaged[place] ^= 1 << bit
        bad = table.set_column(2, "packed", pa.array([bytes(damaged), blobs[1]], pa.binary()))
        try:
            labels = case.codec.decode(bad)[0]
        except CorruptShardError:
            found += 1
            continue
        assert torch.equal(labels.ids, expected.ids)
        assert torch.equal(labels.log_probs, expected.log_probs)
    # A few bits of zstd's own headers bear on nothing that is read.
    assert found > 0.98 * len(places)


# Records as docs/FORMAT.md has them, worked out by hand. Ranks: 7 is the 0th, 0 to 6 the 1st to
# 7th, all others their own. Ids 7 and 3; 299 and 0, whose gap of 297 is large; then, of another
# record, 5 alone.
GAPS = [0, 3, 1, 255], [42]
SCALARS = [0, 0], [4, 0xF6], [0, 0xFF], [0x80, 0x7F], [0, 2], [0, 6], [0, 0], [0, 0]
LAST = [0], [0], [0], [0x80], [1], [0], [0], [0], [1], [0], [0], [0]


@pytest.mark.parametrize(
    ("draws", "weights", "planes", "last"),
    [
        # Draws of ranks 0 and 4, 1 and 299.
        (255, [[200, 55], [3, 252], [255, 0]], [[200, 55, 252, 3]], [[255]]),
        (
            65_535,
            [[65_000, 535], [1, 256], [65_535, 0]],
            [[0xE8, 0x17, 0x00, 0x01], [0xFD, 0x02, 0x01, 0x00]],
            [[0xFF], [0xFF]],
        ),
        # 1024 · (8 − ln w) of the weights 1, e⁻¹, e⁸ and e⁻²; and of 1.
        (
            None,
            np.exp([[0, -1], [-2, 8], [0, -np.inf]]),
            [[0, 0, 0, 0], [0x20, 0x24, 0x00, 0x28]],
            [[0], [0x20]],
        ),
    ],
)
def test_the_bytes_of_a_record_are_those_of_the_format(
    draws: int | None, weights: Any, planes: list[list[int]], last: list[list[int]]
) -> None:
    labels = SoftLabels(
        ids=torch.tensor([[7, 3], [299, 0], [5, 0]]),
        log_probs=(torch.tensor(weights).double() / (draws or 1)).log().float(),
        logsumexp=torch.tensor([1.0, -2.5, 0.0]),
        hard_log_probs=torch.tensor([torch.nan, -1.5, -torch.inf]),
        sampled=True,
    )
    codec = Sampled(300, 2, (), IdTable(300, (7,)), draws=draws)
    case = Case(codec, labels, np.asarray([0, 2, 3]))
    assert case.table["entries"].to_pylist() == [4, 1]
    wanted = [*GAPS, *planes, *SCALARS], [[6], *last, *LAST]
    for blob, expected in zip(case.table["packed"].to_pylist(), wanted, strict=True):
        flat = [byte for plane in expected for byte in plane]
        assert list(zstandard.decompress(blob[:-1])) == flat

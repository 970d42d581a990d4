"""The limit: order-0 entropies, held to loops that count symbols one by one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels import SoftLabels
from softlabels.codecs import Compact
from softlabels.codecs.compact import scale_of
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.limit import limit

Position = list[tuple[int, float]]


def bits(symbols: Sequence[Hashable]) -> float:
    """Σ −log₂ of each symbol's frequency."""
    counts = Counter(symbols)
    return sum(-math.log2(counts[symbol] / len(symbols)) for symbol in symbols)


def oracle(positions: list[Position], k: int) -> tuple[float, float]:
    """Bytes a position for ids and for values, from (id, log-prob) pairs, unused ones left out."""
    ids, codes, floors, scale = [], [], [], scale_of(k)
    for entries in positions:
        used = [(index, value) for index, value in entries if value > -math.inf]
        ids += [index for index, _ in used]
        of_entries = [code_of(value, scale) for _, value in used]
        floors.append(min(of_entries, default=0))
        codes += [code - floors[-1] for code in of_entries]
    count = max(1, len(positions))
    return set_bits(ids, count) / 8, (bits(codes) + bits(floors)) / 8 / count


def code_of(log_prob: float, scale: int) -> int:
    root = scale * math.exp(log_prob) ** (1 / 3)
    if root >= 2.5:
        return 32 + round(root)
    return 35 + max(-34, round(log_prob - 3 * math.log(3 / scale)))


def set_bits(ids: list[int], positions: int) -> float:
    """Bits of coins that show each class as often, given how many show theirs."""
    coins = [found / positions for found in Counter(ids).values()]
    total = 0.0
    for share in coins:
        for side in (share, 1 - share):
            total -= side * math.log2(side) if side > 0 else 0
    kept = sum(coins)
    narrower = 1 - sum(share * share for share in coins) / kept if coins else 0
    if narrower < 1e-9:
        return total
    likely = math.exp(-kept) * kept**kept / math.gamma(kept + 1) / math.sqrt(narrower)
    return total + min(0.0, math.log2(likely))


def made(positions: list[Position], k: int) -> SoftLabels:
    ids = [[index for index, _ in entries] for entries in positions]
    values = [[value for _, value in entries] for entries in positions]
    return SoftLabels(
        ids=torch.tensor(ids, dtype=torch.int64).view(-1, k),
        log_probs=torch.tensor(values, dtype=torch.float32).view(-1, k),
    )


def middle_of_a_cell(code: int, scale: int) -> float:
    """A log-prob that every rounding puts into this cell."""
    return 3 * math.log(code / scale)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Position], int]:
    k = draw(st.integers(1, 6))
    values = st.integers(3, scale_of(k)).map(lambda code: middle_of_a_cell(code, scale_of(k)))
    values |= st.just(-math.inf) | st.just(-60.0)  # unused, and far below the smallest cell
    positions = draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 9), min_size=k, max_size=k, unique=True),
                st.lists(values, min_size=k, max_size=k),
            ).map(lambda pair: list(zip(*pair, strict=True))),
            max_size=12,
        )
    )
    return positions, k


UNUSED: Position = [(0, -math.inf), (0, -math.inf)]
PAIR: Position = [(7, math.log(0.6)), (3, math.log(0.3))]


@settings(deadline=None)
@given(cases())
@example(([], 2))
@example(([UNUSED], 2))
@example(([PAIR], 2))
@example(([PAIR, UNUSED, [(3, math.log(0.9)), (0, -math.inf)]], 2))
def test_the_limit_is_what_counting_one_by_one_gives(
    case: tuple[list[Position], int],
) -> None:
    positions, k = case
    found = limit(made(positions, k))
    expected = oracle(positions, k)
    # Both are sums of float64 logarithms; lgamma and log2 differ in the last bits.
    assert found.ids == pytest.approx(expected[0], rel=1e-9, abs=1e-9)
    assert found.values == pytest.approx(expected[1], rel=1e-9, abs=1e-9)
    assert found.total == found.ids + found.values
    assert min(found.ids, found.values) > -1e-9


def test_without_positions_or_entries_there_is_nothing_to_write() -> None:
    for positions in ([], [UNUSED], [UNUSED] * 3):
        found = limit(made(positions, 2))
        assert (found.ids, found.values, found.total) == (0, 0, 0)


def test_of_one_position_the_ids_are_known() -> None:
    found = limit(made([PAIR], 2))
    # Two ids that are always there; two codes of one bit.
    assert (found.ids, found.values) == (0, pytest.approx(2 / 8))
    single = limit(made([[(5, math.log(0.5))]] * 40, 1))
    assert (single.ids, single.values) == (0, 0)


def test_the_order_of_entries_and_of_positions_does_not_matter() -> None:
    labels = random_labels(200, k=5, classes=50)
    found = limit(labels)
    turned = replace(labels, ids=labels.ids.flip(-1), log_probs=labels.log_probs.flip(-1))
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    for other in (turned, shuffled):
        assert limit(other).total == pytest.approx(found.total)


def random_labels(positions: int, *, k: int, classes: int) -> SoftLabels:
    """Ids uniform and independent, probabilities of a random softmax, all mass kept."""
    rng = np.random.default_rng(0)
    ids = rng.random((positions, classes)).argsort(-1)[:, :k]
    logits = torch.from_numpy(rng.normal(0, 2, (positions, k)).astype(np.float32))
    return SoftLabels(ids=torch.from_numpy(ids), log_probs=torch.log_softmax(logits, -1))


@pytest.mark.parametrize(("k", "classes"), [(1, 256), (4, 100), (16, 300), (150, 300), (16, 16)])
def test_uniform_ids_take_as_many_bits_as_there_are_sets(k: int, classes: int) -> None:
    positions = 20_000
    found = 8 * limit(random_labels(positions, k=k, classes=classes)).ids
    most = math.log2(math.comb(classes, k))
    # By chance a sample's frequencies are uneven: n / 2N nats an entry too low, says the docstring.
    missing = classes / (2 * positions) / math.log(2)
    assert found == pytest.approx(most - missing, abs=missing + 0.01)


@pytest.mark.parametrize("k", [1, 8, 32])
def test_a_compact_set_takes_no_fewer_bytes_than_the_limit(k: int) -> None:
    labels = random_labels(4000, k=k, classes=500)
    table = IdTable.count(500, labels.ids.numpy().ravel())
    codec = Compact(500, k, (), table, logits_known=False, scale=scale_of(k))
    for offsets in (np.asarray([0, 4000]), np.arange(0, 4001, 100)):
        packed = codec.encode(labels, offsets)["packed"]
        real = sum(len(blob.as_py()) for blob in packed) / len(labels)
        assert limit(labels).total < real
        # What the limit says is near: the bytes are of the same kind, not ten times as many.
        assert real < 1.25 * limit(labels).total + 0.5


@pytest.mark.parametrize(("k", "classes"), [(16, 16), (256, 1000)])
def test_a_compact_set_of_a_large_part_of_the_classes_takes_no_fewer_bytes_either(
    k: int, classes: int
) -> None:
    labels = random_labels(2000, k=k, classes=classes)
    table = IdTable.count(classes, labels.ids.numpy().ravel())
    codec = Compact(classes, k, (), table, logits_known=False, scale=scale_of(k))
    (packed,) = codec.encode(labels, np.asarray([0, 2000]))["packed"]
    assert limit(labels).total < len(packed.as_py()) / 2000

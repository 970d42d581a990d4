"""TopK against a dense float64 oracle: a stable sort of every row, and sums over its rest."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabels import SoftLabels, TopK
from softlabels.errors import InputError
from softlabels.selection import reduce_numba, reduce_torch
from softlabels.selection import top_k as selecting
from softlabels.selection.reduce_torch import block_top, top_k

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# log-sums of up to some thousand terms of order ten, in float32
ATOL = 1e-5


@pytest.fixture(scope="module", autouse=True, params=[reduce_torch, reduce_numba])
def engine(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Every test sees both; numba's is what is chosen."""
    assert selecting.on_cpu()[0] is reduce_numba.reduce
    chosen = selecting.on_cpu
    selecting.on_cpu = lambda: (request.param.reduce, 1 << 22)
    yield request.param
    selecting.on_cpu = chosen


def test_what_is_compiled_is_loaded_in_a_thread_and_once(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Event()
    callers = []

    def largest(logits: Tensor, k: int) -> None:
        callers.append(threading.current_thread())
        called.set()

    monkeypatch.setattr(selecting, "largest", largest)
    selecting.load_compiled.cache_clear()
    selecting.load_compiled()
    selecting.load_compiled()
    assert called.wait(10)
    assert len(callers) == 1
    assert callers[0] is not threading.current_thread()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def oracle(
    logits: Tensor, k: int, hard_labels: Tensor, temperatures: tuple[float, ...]
) -> SoftLabels:
    """Row by row in float64: descending value, then ascending id, then plain sums."""
    rows: list[dict[str, Any]] = []
    for z, hard in zip(logits.double().numpy(), hard_labels.tolist(), strict=True):
        order = np.lexsort((np.arange(len(z)), -z))
        kept, rest = order[:k], order[k:]
        lse = np.logaddexp.reduce(z)
        tails = [
            np.logaddexp.reduce(z[rest] / t) - np.logaddexp.reduce(z / t) for t in temperatures
        ]
        rows.append(
            {
                "ids": kept,
                "log_probs": z[kept] - lse,
                "logsumexp": lse,
                "log_tails": np.asarray(tails),
                "hard_log_probs": z[hard] - lse if hard >= 0 else math.nan,
            }
        )
    columns = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return SoftLabels(**columns, temperatures=temperatures)


def check(
    logits: Tensor,
    k: int,
    hard_labels: Tensor | None = None,
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0),
) -> SoftLabels:
    if hard_labels is None:
        hard_labels = torch.arange(len(logits)) % (logits.shape[-1] + 1) - 1
    found = TopK(k)(logits, hard_labels, temperatures=temperatures)
    # Reduced in float32: the oracle sees the same rounded values, not the float64 ones.
    expected = oracle(logits.float(), k, hard_labels, temperatures)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.temperatures == temperatures
    assert (found.log_tails is None) == (not temperatures)
    for name in ("log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        value = getattr(found, name)
        if value is not None:
            assert value.dtype == torch.float32
            wanted = getattr(expected, name).float()
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=ATOL, equal_nan=True)
    return found


def normal(rows: int, classes: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator) * scale


@given(
    rows=st.integers(1, 4),
    # 1,040 = 16 · 65 columns; the others leave classes over, or have too few for blocks
    classes=st.sampled_from([1, 2, 15, 16, 17, 100, 1039, 1040, 1041, 1055]),
    k=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 0.01, 1.0, 5.0, 30.0]),
    forbidden=st.sampled_from([0.0, 0.5, 0.98]),
    temperatures=st.sampled_from([(1.0, 2.0, 4.0), (1.5,), (), (0.5, 3.0), (4.0, 1.0), (8.0,)]),
    seed=st.integers(0, 2**16),
)
@example(3, 1041, 4, torch.bfloat16, 0.0, 0.0, (1.0, 2.0, 4.0), 0)
@example(3, 1041, 12, torch.bfloat16, 1.0, 0.98, (0.5, 3.0), 1)
@settings(deadline=None, max_examples=200)
def test_labels_are_those_of_a_dense_float64_oracle(
    rows: int,
    classes: int,
    k: int,
    dtype: torch.dtype,
    scale: float,
    forbidden: float,
    temperatures: tuple[float, ...],
    seed: int,
) -> None:
    logits = normal(rows, classes, scale=scale, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    out = torch.rand(rows, classes, generator=generator) < forbidden
    out[:, seed % classes] = False  # a row of nothing has no distribution
    check(logits.masked_fill(out, -math.inf), min(k, classes), temperatures=temperatures)


@pytest.mark.parametrize("classes", [7, 1041])
def test_where_every_class_is_kept_the_tail_is_minus_infinity(classes: int) -> None:
    found = check(normal(3, classes), classes)
    assert found.log_tails is not None
    assert found.log_tails.flatten().tolist() == [-math.inf] * 9


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("classes", [40, 1041, 4096])
def test_of_equal_logits_those_with_the_least_ids_are_kept(k: int, classes: int) -> None:
    found = check(torch.full((2, classes), 1.5), k)
    assert found.ids.tolist() == [list(range(k))] * 2


@pytest.mark.parametrize("k", [1, 3, 8])
def test_equal_logits_at_the_last_place_are_taken_by_id_from_anywhere_in_the_row(k: int) -> None:
    # One value above, and many equal ones in every block and after the last.
    logits = normal(20, 2061).bfloat16().clamp(max=2.0)
    logits[:, 1000] = 9.0
    assert ((logits == 2.0).sum(-1) > 100).all()
    found = check(logits, k)
    assert (found.ids[:, 0] == 1000).all()


def test_most_rows_of_bfloat16_logits_tie_and_are_settled_by_id() -> None:
    logits = normal(48, 4100).bfloat16()
    ordered = logits.sort(-1, descending=True).values
    assert (ordered[:, 31] == ordered[:, 32]).float().mean() > 0.3
    check(logits, 32)


@pytest.mark.parametrize("k", [2, 9])
def test_a_row_with_fewer_allowed_classes_than_k_has_unused_entries(k: int) -> None:
    logits = torch.full((1, 1041), -math.inf)
    logits[0, [7, 900]] = torch.tensor([1.0, 1.0])
    found = check(logits, k, torch.tensor([3]))
    assert found.log_probs[0, :2].exp().tolist() == pytest.approx([0.5, 0.5])
    assert found.log_probs[0, 2:].tolist() == [-math.inf] * (k - 2)
    assert found.hard_log_probs is not None
    assert found.hard_log_probs.tolist() == [-math.inf]


@pytest.mark.parametrize("gap", [16.5, 30.0, 80.0])
def test_the_tail_of_a_peaked_row_is_summed_and_not_what_is_left_of_one(gap: float) -> None:
    logits = torch.cat([torch.full((2, 1), gap), normal(2, 999, scale=0.1)], -1)
    found = check(logits, 1)
    assert found.log_tails is not None
    mass = found.log_tails[:, 0].double().exp()
    assert (mass < 1e-4).all()
    expected = (logits[:, 1:].double().logsumexp(-1) - logits.double().logsumexp(-1)).exp()
    torch.testing.assert_close(mass, expected, rtol=2e-5, atol=0)
    if gap > 20:
        assert (1 - found.log_probs.exp().sum(-1) <= 0).all()


def test_a_small_kept_mass_can_be_read_back_from_the_tail() -> None:
    found = check(normal(4, 100_003, scale=0.01), 2)
    for place, temperature in enumerate(found.temperatures):
        dense = torch.log_softmax(normal(4, 100_003, scale=0.01).double() / temperature, -1)
        expected = dense.gather(-1, found.ids).float()
        # Taken as unkept − total, the tail would be off by an eighth of what is kept.
        torch.testing.assert_close(found.log_probs_at(temperature), expected, rtol=0, atol=1e-5)
        assert found.log_tails is not None
        assert (found.log_tails[:, place] > -1e-4).all()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_in_how_many_rows_at_a_time_changes_no_bit(
    rows: int, dtype: torch.dtype, engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, hard = 50_001, torch.tensor([4, -1, 0, 7, -1, 50_000, 3])
    logits = normal(7, classes).to(dtype)
    whole = TopK(8)(logits, hard, temperatures=(1.0, 2.0, 3.0))
    monkeypatch.setattr(selecting, "on_cpu", lambda: (engine.reduce, rows * classes * 4))
    parts = TopK(8)(logits, hard, temperatures=(1.0, 2.0, 3.0))
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        a, b = getattr(whole, name).numpy(), getattr(parts, name).numpy()
        assert a.tobytes() == b.tobytes(), name


def test_no_rows_give_no_labels() -> None:
    found = TopK(3)(torch.empty(0, 50), torch.empty(0, dtype=torch.int64), temperatures=(1.0, 2.0))
    assert (found.shape, found.k, found.log_tails is None) == ((0,), 3, False)


def test_rows_that_are_no_distribution_spoil_no_other() -> None:
    logits = normal(4, 1041)
    alone = TopK(5)(logits, torch.tensor([0, 1, 2, 3]), temperatures=(1.0, 2.0))
    logits[0], logits[2], logits[3, 1040] = math.nan, -math.inf, math.inf
    found = TopK(5)(logits, torch.tensor([0, 1, 2, 3]), temperatures=(1.0, 2.0))
    assert found.logsumexp is not None
    assert torch.isfinite(found.logsumexp).tolist() == [False, True, False, False]
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        assert torch.equal(getattr(found, name)[1], getattr(alone, name)[1]), name


def test_labels_carry_no_gradient_and_the_logits_are_left_as_they_were() -> None:
    logits = normal(3, 1041).requires_grad_()
    before = logits.detach().clone()
    found = TopK(5)(logits, torch.tensor([-1, 0, 1]), temperatures=(1.0, 2.0))
    assert torch.equal(logits, before)
    assert not any(t.requires_grad for t in (found.log_probs, found.logsumexp, found.log_tails))


@given(
    rows=st.integers(0, 4),
    classes=st.sampled_from([1, 20, 1041]),
    k=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    distinct=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=100)
def test_the_logits_of_the_kept_classes_come_along_bit_for_bit(
    rows: int, classes: int, k: int, dtype: torch.dtype, distinct: bool, seed: int
) -> None:
    logits = (normal(rows, classes, seed=seed) * (1 if distinct else 0)).to(dtype)
    logits[:, ::7] *= -1  # of zeros, −0
    logits[:, 5::50] = torch.finfo(dtype).smallest_normal / 2
    logits[:, 6::50] = -math.inf
    if classes > 1:
        logits[:, 1] = torch.finfo(dtype).max if dtype != torch.float64 else 1.0
    found = TopK(min(k, classes))(logits, torch.zeros(rows).long(), temperatures=(1.0,))
    assert found.logits is not None
    # float64 is reduced in float32, so no more of it is known.
    expected = logits.gather(-1, found.ids).to(torch.float32 if dtype == torch.float64 else dtype)
    assert found.logits.dtype == expected.dtype
    bits = torch.int32 if expected.dtype == torch.float32 else torch.int16
    assert torch.equal(found.logits.view(bits), expected.view(bits))
    assert found.logsumexp is not None
    again = found.logits.float() - found.logsumexp.unsqueeze(-1)
    assert torch.equal(again, found.log_probs)


@given(
    rows=st.integers(0, 4),
    classes=st.sampled_from([1, 16, 33, 640, 1000, 1041, 2047]),
    k=st.integers(1, 40),
    transposed=st.booleans(),
    distinct=st.sampled_from([3, 50, 10**6]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=150)
def test_block_top_is_torch_topk(
    rows: int, classes: int, k: int, transposed: bool, distinct: int, seed: int
) -> None:
    k = min(k, classes)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(distinct, (rows, classes), generator=generator).float()
    if transposed:
        logits = logits.t().contiguous().t()
    values, ids = block_top(logits, k)
    assert torch.equal(values, torch.topk(logits, k).values)
    assert torch.equal(logits.gather(-1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_the_largest_value_that_is_not_kept_comes_with_the_kept_ones() -> None:
    logits = normal(5, 1041)
    ordered = logits.sort(-1, descending=True).values
    assert torch.equal(top_k(logits, 7)[2], ordered[:, 7])
    assert top_k(logits, 1041)[2].tolist() == [-math.inf] * 5


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None, "8"])
def test_a_k_that_is_no_whole_number_above_zero_is_refused(k: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        TopK(k)


@pytest.mark.parametrize(
    ("logits", "hard_labels", "temperatures", "words"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 0]), (1.0,), "k = 5 is more than .* 4 classes"),
        (torch.zeros(2, 9), torch.tensor([0]), (1.0,), r"\(2, 9\).*\(1,\)"),
        (torch.zeros(9), torch.tensor(0), (1.0,), r"expected \(N, V\)"),
        (torch.zeros(2, 3, 9), torch.zeros(2, 3).long(), (1.0,), r"expected \(N, V\)"),
        (torch.zeros(2, 9), torch.tensor([0, 0]), (1.0, 0.0), "temperature 0.0"),
        (torch.zeros(2, 9), torch.tensor([0, 0]), (-1.0,), "temperature -1.0"),
        (torch.zeros(2, 9), torch.tensor([0, 0]), (math.nan,), "temperature nan"),
        (torch.zeros(2, 9), torch.tensor([0, 0]), (math.inf,), "temperature inf"),
    ],
)
def test_what_cannot_be_reduced_is_refused_with_what_was_found(
    logits: Tensor, hard_labels: Tensor, temperatures: tuple[float, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        TopK(5)(logits, hard_labels, temperatures=temperatures)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_keeps_the_classes_that_the_cpu_keeps(dtype: torch.dtype) -> None:
    logits = normal(64, 20_011).to(dtype)
    hard = torch.arange(64) - 1
    here = TopK(32)(logits, hard, temperatures=(1.0, 2.0, 4.0))
    there = TopK(32)(logits.cuda(), hard.cuda(), temperatures=(1.0, 2.0, 4.0)).to("cpu")
    # Up to ties: the logits of the ids are the same, whichever ids they are.
    z = logits.float()
    assert torch.equal(z.gather(-1, there.ids), z.gather(-1, here.ids))
    for name in ("log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        a, b = getattr(there, name), getattr(here, name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=ATOL, equal_nan=True)

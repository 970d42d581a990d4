"""Sampled against its definition: systematic sampling, one class after another, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import softlabels as sl
from softlabels.errors import InputError
from softlabels.selection import draw_numba, sampled
from softlabels.selection.uniforms import uniforms


@pytest.fixture(autouse=True, params=[sampled.draw, draw_numba.draw], ids=["torch", "numba"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every test sees both; numba's is what is chosen."""
    assert sampled.on_cpu() is draw_numba.draw
    chosen = sampled.on_cpu
    sampled.on_cpu = lambda: request.param
    yield request.param
    sampled.on_cpu = chosen


def some_logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3


def no_labels(rows: int) -> Tensor:
    return torch.full((rows,), -1)


def dense(labels: sl.SoftLabels) -> Tensor:
    """The weight of every class, float64, (N, V)."""
    assert labels.classes is not None
    weights = torch.zeros(len(labels), labels.classes, dtype=torch.float64)
    return weights.scatter_add_(-1, labels.ids, labels.log_probs.double().exp())


def oracle(logits: Tensor, n: int, head: int | None, first: Tensor) -> Tensor:
    """Weights of all classes, walking through them one by one."""
    rows = []
    for z, u in zip(logits.double().numpy(), first.tolist(), strict=True):
        p = np.exp(z - np.logaddexp.reduce(z))
        likeliest = np.argsort(-p, kind="stable")
        exact = 0
        if head is not None:
            exact = head
        else:
            while p[likeliest[exact]] > p[likeliest[exact:]].sum() / (n - exact):
                exact += 1
        weights = np.zeros_like(p)
        weights[likeliest[:exact]] = p[likeliest[:exact]]
        rest = p.copy()
        rest[likeliest[:exact]] = 0
        share = rest.sum() / (n - exact)
        ends = rest.cumsum()
        for point in range(n - exact):
            weights[np.searchsorted(ends, (point + u) * share, side="right")] += share
        rows.append(weights)
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("head", [None, 0, 1, 7])
@pytest.mark.parametrize("classes", [12, 255, 256, 257, 1000])
def test_weights_are_those_of_the_definition(classes: int, head: int | None) -> None:
    logits = some_logits(50, classes)
    # Away from where a point falls between two classes to the last bit of float32.
    first = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    found = sl.Sampled(9, head)(logits, no_labels(50), uniforms=first)
    differing = (dense(found) - oracle(logits, 9, head, first)).abs().amax(-1) > 1e-5
    assert int(differing.sum()) <= 1


@pytest.mark.parametrize("head", [None, 0, 3])
def test_the_mean_over_all_first_points_is_the_distribution(head: int | None) -> None:
    logits = some_logits(1, 300)
    steps = 4096
    first = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    found = sl.Sampled(12, head)(logits.expand(steps, -1), no_labels(steps), uniforms=first)
    # A class is drawn on one interval of first points, whose ends a grid of 4,096 misses by half.
    torch.testing.assert_close(
        dense(found).mean(0), logits[0].double().softmax(-1), rtol=0, atol=2 / (12 * steps)
    )


@pytest.mark.parametrize("head", [None, 0, 3])
def test_weights_sum_to_one_and_no_class_stands_twice(head: int | None) -> None:
    found = sl.Sampled(20, head)(
        some_logits(64, 500), no_labels(64), uniforms=torch.rand(64, dtype=torch.float64)
    )
    torch.testing.assert_close(dense(found).sum(-1), torch.ones(64).double(), rtol=0, atol=1e-5)
    used = found.log_probs > -math.inf
    assert used[:, 0].all()
    assert (found.ids[~used] == 0).all()
    for ids, mask in zip(found.ids, used, strict=True):
        assert len(set(ids[mask].tolist())) == int(mask.sum())
    if head == 0:
        counts = 20 * found.log_probs.double().exp()
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-5)


def test_threshold_sampling_has_the_least_squared_error_of_the_three() -> None:
    logits = some_logits(256, 2000, seed=1)
    first = torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = {}
    for head in (None, 0, 4):
        found = sl.Sampled(16, head)(logits, no_labels(256), uniforms=first)
        errors[head] = float((dense(found) - logits.double().softmax(-1)).square().sum(-1).mean())
    assert errors[None] < errors[4] < errors[0]


def test_logsumexp_and_hard_labels_are_those_of_top_k() -> None:
    logits, hard = some_logits(8, 100), torch.arange(8) - 1
    found = sl.Sampled(5)(logits, hard, uniforms=torch.rand(8, dtype=torch.float64))
    top = sl.TopK(5)(logits, hard, temperatures=())
    torch.testing.assert_close(found.logsumexp, top.logsumexp, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.hard_log_probs, top.hard_log_probs, rtol=0, atol=1e-6, equal_nan=True
    )
    assert found.sampled
    assert found.log_tails is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(dtype: torch.dtype) -> None:
    logits = some_logits(8, 100).to(dtype)
    first = torch.rand(8, dtype=torch.float64)
    found = sl.Sampled(5)(logits, no_labels(8), uniforms=first)
    wide = sl.Sampled(5)(logits.float(), no_labels(8), uniforms=first)
    assert torch.equal(found.ids, wide.ids)
    assert torch.equal(found.log_probs, wide.log_probs)


def test_forbidden_classes_are_never_drawn_and_fewer_allowed_ones_are_kept_as_they_are() -> None:
    logits = torch.full((4, 700), -math.inf)
    logits[:, 600:603] = torch.tensor([0.0, 1.0, 2.0])
    logits[3, 5:50] = 0.5
    found = sl.Sampled(6)(logits, no_labels(4), uniforms=torch.tensor([0.0, 0.5, 1 - 2**-53, 0.3]))
    expected = logits[:3].double().softmax(-1)
    torch.testing.assert_close(dense(found)[:3], expected, rtol=0, atol=1e-6)
    assert (dense(found)[3][logits[3] == -math.inf] == 0).all()


def test_rows_of_nan_or_infinity_say_so_and_leave_the_others_alone() -> None:
    logits, first = some_logits(4, 100), torch.rand(4, dtype=torch.float64)
    expected = sl.Sampled(5)(logits, no_labels(4), uniforms=first)
    logits[1, 3], logits[2, 7] = math.nan, math.inf
    found = sl.Sampled(5)(logits, no_labels(4), uniforms=first)
    assert found.logsumexp is not None
    assert found.logsumexp.isfinite().tolist() == [True, False, False, True]
    assert torch.equal(found.ids[[0, 3]], expected.ids[[0, 3]])
    assert int(found.ids.min()) >= 0
    assert int(found.ids.max()) < 100


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    logits, first = some_logits(40, 3000), torch.rand(40, dtype=torch.float64)
    together = sl.Sampled(30)(logits, no_labels(40), uniforms=first)
    for row in (0, 17, 39):
        alone = sl.Sampled(30)(logits[row : row + 1], no_labels(1), uniforms=first[row : row + 1])
        assert torch.equal(alone.ids[0], together.ids[row])
        assert torch.equal(alone.log_probs[0], together.log_probs[row])


def test_numbers_depend_on_seed_key_part_view_and_position_alone() -> None:
    def identity(*rows: tuple[Any, int, int]) -> pa.Table:
        keys, parts, views = zip(*rows, strict=True)
        return pa.table({"key": list(keys), "part": list(parts), "view": list(views)})

    one = uniforms(0, identity(("a", 0, 0), ("b", 0, 0)), np.array([5, 3]))
    assert np.array_equal(uniforms(0, identity(("b", 0, 0)), np.array([3])), one[5:])
    assert np.array_equal(uniforms(0, identity(("a", 0, 0)), np.array([9]))[:5], one[:5])
    others = [
        uniforms(1, identity(("a", 0, 0)), np.array([5])),
        uniforms(0, identity(("a", 1, 0)), np.array([5])),
        uniforms(0, identity(("a", 0, 1)), np.array([5])),
        uniforms(-1, identity((7, 0, 0)), np.array([5])),
    ]
    for other in others:
        assert not np.isin(other, one).any()
    many = uniforms(0, identity(*((n, 0, 0) for n in range(2000))), np.full(2000, 50))
    assert ((many >= 0) & (many < 1)).all()
    # Of 100,000 uniform numbers: five standard errors of the mean, and of neighbours' correlation.
    assert abs(many.mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(many))
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 5 / math.sqrt(len(many))


def test_the_numbers_of_a_seed_stay_what_they_are() -> None:
    identity = pa.table({"key": ["doc-1"], "part": [0], "view": [0]})
    found = uniforms(0, identity, np.array([3])).tolist()
    assert found == [0.9774215903326919, 0.9219117605765529, 0.30237325705203344]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 1.5}, "n is 1.5"),
        ({"n": 70_000}, "65535"),
        ({"n": 5, "head": 5}, "head is 5"),
        ({"n": 5, "head": -1}, "head is -1"),
        ({"n": 5, "seed": 2**63}, "seed is"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sl.Sampled(**arguments)


def test_calls_that_cannot_be_right_are_refused() -> None:
    logits, first = some_logits(2, 10), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(InputError, match="T = 1 alone"):
        sl.Sampled(3)(logits, no_labels(2), temperatures=(1.0,), uniforms=first)
    with pytest.raises(InputError, match="uniforms is None"):
        sl.Sampled(3)(logits, no_labels(2))
    with pytest.raises(InputError, match="uniforms is of shape"):
        sl.Sampled(3)(logits, no_labels(2), uniforms=first[:1])
    with pytest.raises(InputError, match=r"n is 10 of the teacher's 10 classes.*Dense"):
        sl.Sampled(10)(logits, no_labels(2), uniforms=first)


def test_weights_sum_to_one_where_logits_are_large() -> None:
    logits = some_logits(20, 257) + 1e4
    found = sl.Sampled(9)(logits, no_labels(20), uniforms=torch.linspace(0.01, 0.99, 20).double())
    sums = found.log_probs.double().exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        dense(found).max(-1).values, logits.double().softmax(-1).max(-1).values, rtol=1e-5, atol=0
    )

"""SoftLabels: one value, checked when it is made, that indexes and moves as a tensor would."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from softlabels import SoftLabels
from softlabels.errors import InputError, MissingTailError
from softlabels.labels import concatenate

TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "mask")
LAST_AXIS = {"ids", "log_probs", "log_tails"}
TEMPERATURES = (1.0, 2.0)


def make(*shape: int, k: int = 3) -> SoftLabels:
    """Labels of 10 classes at every position of a batch shape, every field given."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    logits = torch.randn(*shape, 10, generator=generator)
    values, ids = logits.topk(k)
    rest = logits.scatter(-1, ids, -math.inf)
    tails = [(rest / t).logsumexp(-1) - (logits / t).logsumexp(-1) for t in TEMPERATURES]
    lse = logits.logsumexp(-1)
    return SoftLabels(
        ids=ids,
        log_probs=values - lse.unsqueeze(-1),
        logsumexp=lse,
        log_tails=torch.stack(tails, -1),
        temperatures=TEMPERATURES,
        hard_log_probs=logits[..., 0] - lse,
        mask=torch.rand(*shape, generator=generator) < 0.7,
    )


def by_hand(probabilities: list[float], *, dtype: torch.dtype = torch.float32) -> SoftLabels:
    log_probs = torch.tensor([probabilities], dtype=torch.float64).log().to(dtype)
    return SoftLabels(ids=torch.arange(len(probabilities)).unsqueeze(0), log_probs=log_probs)


def check_same(found: SoftLabels, expected: SoftLabels) -> None:
    assert found.temperatures == expected.temperatures
    for name in TENSORS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_the_batch_shape_is_that_of_ids_without_the_entries() -> None:
    labels = make(2, 5)
    assert (labels.shape, labels.k, len(labels)) == ((2, 5), 3, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_probs": torch.zeros(2, 5, 4)}, r"\(2, 5, 3\).*\(2, 5, 4\)"),
        ({"ids": torch.tensor(1), "log_probs": torch.tensor(0.0)}, r"\(\.\.\., k\)"),
        ({"log_tails": torch.zeros(2, 5, 3)}, "3 temperatures but 2"),
        ({"log_tails": None}, "0 temperatures but 2"),
        ({"log_tails": torch.tensor(0.0)}, "0 temperatures but 2"),
        ({"temperatures": ()}, "2 temperatures but 0"),
        ({"log_tails": torch.zeros(5, 2)}, "log_tails has batch shape"),
        ({"logsumexp": torch.zeros(2, 1)}, "logsumexp has batch shape"),
        ({"hard_log_probs": torch.zeros(2, 5, 1)}, "hard_log_probs has batch shape"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, "mask has batch shape"),
        ({"mask": torch.ones(2, 5, dtype=torch.int64)}, "mask is of torch.int64.*torch.bool"),
        ({"ids": torch.zeros(2, 5, 3, dtype=torch.int32)}, "ids is of torch.int32.*torch.int64"),
        ({"ids": np.zeros((2, 5, 3), np.int64)}, "ids is a ndarray"),
        ({"log_probs": None}, "log_probs is a NoneType"),
        ({"log_probs": torch.zeros(2, 5, 3).long()}, "log_probs is of torch.int64.*floats"),
    ],
)
def test_fields_that_do_not_fit_are_refused_with_what_was_found(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(make(2, 5), **changes)


def test_a_field_cannot_be_assigned() -> None:
    labels = make(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        labels.ids = labels.ids + 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "index",
    [
        1,
        -1,
        np.int64(1),
        slice(1, 3),
        slice(0, 0),
        [3, 1, 1],
        np.asarray([2, 0]),
        torch.tensor([0, 3]),
        torch.tensor([True, False, True, True]),
        [True, False, False, True],
        None,
        Ellipsis,
        (1, 2),
        (slice(None), 0),
        (..., 2),
        (1, ...),
        (slice(None), [1, 0]),
        ([0, 1], [4, 2]),
        (np.asarray([0, 1]), slice(1, 4)),
        torch.arange(20).view(4, 5) % 3 == 0,
    ],
    ids=repr,
)
def test_an_index_picks_what_it_would_pick_from_a_tensor_of_the_batch_shape(index: Any) -> None:
    labels = make(4, 5)
    where = torch.arange(20).view(4, 5)[index]
    found = labels[index]
    assert found.shape == where.shape
    for name in TENSORS:
        flat = getattr(labels, name).flatten(0, 1)
        assert torch.equal(getattr(found, name), flat[where]), name


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("index", [(0, 0, 0), (0, 0, slice(1)), (..., slice(None), 0, 0), 4])
def test_an_index_never_reaches_into_the_entries(index: Any, full: bool) -> None:
    labels = make(4, 5)
    if not full:
        labels = SoftLabels(ids=labels.ids, log_probs=labels.log_probs)
    with pytest.raises(IndexError):
        labels[index]


def test_a_single_position_has_no_length_as_a_tensor_has_none() -> None:
    with pytest.raises(TypeError):
        len(make(2)[0])
    assert [len(row) for row in make(2, 5)] == [5, 5]


def test_map_changes_every_tensor_and_leaves_the_original() -> None:
    labels = make(2, 5)
    before = copy.deepcopy(labels)
    check_same(labels.map(lambda t: t.flip(0)), labels[[1, 0]])
    check_same(labels, before)


def test_map_that_breaks_the_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="batch shape"):
        make(2, 5).map(lambda t: t.flatten(0, 1) if t.ndim == 3 else t)


def test_to_moves_every_tensor_and_keeps_what_is_not_given() -> None:
    labels = make(2)
    moved = dataclasses.replace(labels, logsumexp=None).to("meta", non_blocking=True)
    assert moved.logsumexp is None
    assert {getattr(moved, name).device.type for name in TENSORS if name != "logsumexp"} == {"meta"}
    assert labels.ids.device.type == "cpu"


def test_to_a_dtype_would_ruin_the_ids_and_is_refused() -> None:
    with pytest.raises(InputError, match=r"ids is of torch\.bfloat16"):
        make(2).to(torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [(), ("logsumexp",), ("mask", "hard_log_probs")])
def test_a_pytree_comes_back_and_its_leaves_are_tensors(missing: tuple[str, ...]) -> None:
    labels = dataclasses.replace(make(2, 5), **dict.fromkeys(missing))
    leaves, spec = pytree.tree_flatten({"soft_labels": labels})
    assert len(leaves) == len(TENSORS) - len(missing)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    check_same(pytree.tree_unflatten(leaves, spec)["soft_labels"], labels)
    check_same(pytree.tree_map(lambda t: t[:1], labels), labels[:1])
    pytree.tree_unflatten([object()] * len(leaves), spec)


def test_labels_survive_a_copy_and_a_file() -> None:
    labels, file = make(2, 5), io.BytesIO()
    check_same(copy.deepcopy(labels), labels)
    with torch.serialization.safe_globals([SoftLabels]):
        torch.save(labels, file)
        file.seek(0)
        check_same(torch.load(file, weights_only=True), labels)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_parts_joined_are_the_whole(lengths: list[int]) -> None:
    labels = make(sum(lengths), 2)
    bounds = np.cumsum([0, *lengths])
    parts = [labels[a:b] for a, b in pairwise(bounds)]
    check_same(concatenate(parts), labels)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_stored_tail_is_given_back_and_kept_entries_sum_to_what_it_leaves(
    temperature: float,
) -> None:
    labels = make(4, 5)
    assert labels.log_tails is not None
    tail = labels.log_tail(temperature)
    assert torch.equal(tail, labels.log_tails[..., TEMPERATURES.index(temperature)])
    log_probs = labels.log_probs_at(temperature)
    torch.testing.assert_close(log_probs.exp().sum(-1) + tail.exp(), torch.ones(4, 5))
    # The ratios between kept entries are those of their logits at that temperature.
    steps = log_probs.diff(dim=-1) - labels.log_probs.diff(dim=-1) / temperature
    torch.testing.assert_close(steps, torch.zeros(4, 5, 2), rtol=0, atol=1e-6)


def test_rounded_entries_are_rescaled_to_the_tail_and_never_the_tail_to_them() -> None:
    exact = make(4, 5)
    rounded = dataclasses.replace(exact, log_probs=exact.log_probs.half())
    kept = rounded.log_probs_at(1.0).double().exp().sum(-1)
    torch.testing.assert_close(kept, 1 - exact.log_tail(1.0).double().exp(), rtol=1e-6, atol=0)


def test_where_every_class_is_kept_there_is_no_tail_and_nothing_is_rescaled() -> None:
    labels = make(4, k=10)
    assert labels.log_tail(2.0).tolist() == [-math.inf] * 4
    torch.testing.assert_close(labels.log_probs_at(1.0), labels.log_probs)


@pytest.mark.parametrize("read", [SoftLabels.log_tail, SoftLabels.log_probs_at])
def test_a_temperature_that_was_not_stored_is_refused(
    read: Callable[[SoftLabels, float], Tensor],
) -> None:
    with pytest.raises(MissingTailError, match=r"temperature 3; stored: 1, 2\."):
        read(make(2), 3.0)
    without_one = dataclasses.replace(
        make(2), log_tails=torch.full((2, 1), -1.0), temperatures=(2.0,)
    )
    with pytest.raises(MissingTailError, match=r"temperature 1; stored: 2\."):
        read(without_one, 1.0)
    with pytest.raises(MissingTailError, match=r"temperature 2; stored: none \(T = 1 is derived\)"):
        read(by_hand([0.5, 0.25]), 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_labels_made_by_hand_have_the_complement_at_t_1_in_at_least_float32(
    dtype: torch.dtype,
) -> None:
    labels = by_hand([0.5, 0.25], dtype=dtype)
    tail, log_probs = labels.log_tail(1.0), labels.log_probs_at(1.0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert tail.dtype == log_probs.dtype == wide
    expected = 1 - labels.log_probs.double().exp().sum(-1)
    torch.testing.assert_close(tail.double().exp(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_probs.exp().sum(-1) + tail.exp(), torch.ones(1, dtype=wide))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_stored_halves_are_computed_with_in_float32(temperature: float) -> None:
    labels = make(4)
    assert labels.log_tails is not None
    half = dataclasses.replace(
        labels, log_probs=labels.log_probs.bfloat16(), log_tails=labels.log_tails.bfloat16()
    )
    wide = half.map(lambda t: t.float() if t.is_floating_point() else t)
    assert torch.equal(half.log_tail(temperature), wide.log_tail(temperature))
    assert torch.equal(half.log_probs_at(temperature), wide.log_probs_at(temperature))


def test_a_sum_above_one_within_rounding_leaves_no_tail_and_beyond_it_is_refused() -> None:
    assert by_hand([0.6, 0.40003]).log_tail(1.0).tolist() == [-math.inf]
    with pytest.raises(InputError, match=r"sum to 1\.1, above 1"):
        by_hand([0.6, 0.5]).log_tail(1.0)
    # bfloat16 rounds −log 11 up, by 0.7 %.
    even = torch.full((1, 11), -math.log(11)).bfloat16()
    assert even.double().exp().sum() > 1 + 1e-3
    labels = SoftLabels(ids=torch.arange(11).unsqueeze(0), log_probs=even)
    assert labels.log_tail(1.0).tolist() == [-math.inf]


def test_garbage_at_a_masked_position_is_not_held_against_the_sum() -> None:
    labels = SoftLabels(
        ids=torch.zeros(2, 1, dtype=torch.int64),
        log_probs=torch.tensor([[-1.0], [5.0]]),
        mask=torch.tensor([True, False]),
    )
    assert labels.log_tail(1.0)[0] == pytest.approx(math.log(1 - math.exp(-1)))


def test_an_unused_entry_has_no_probability_at_any_temperature() -> None:
    labels = SoftLabels(
        ids=torch.tensor([[4, 0, 0]]),
        log_probs=torch.tensor([[-0.5, -math.inf, -math.inf]]),
        log_tails=torch.tensor([[-1.0, -0.5]]),
        temperatures=TEMPERATURES,
    )
    for temperature in TEMPERATURES:
        found = labels.log_probs_at(temperature)
        assert found[0, 1:].tolist() == [-math.inf, -math.inf]
        assert found[0, 0].exp() + labels.log_tail(temperature).exp() == pytest.approx(1)

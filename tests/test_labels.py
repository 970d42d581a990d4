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

from softlabels import SoftLabels, TopK
from softlabels.errors import InputError, MissingTailError
from softlabels.labels import concatenate

TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "logits", "mask")
SETTINGS = [f.name for f in dataclasses.fields(SoftLabels) if f.name not in TENSORS]
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
        logits=values,
        mask=torch.rand(*shape, generator=generator) < 0.7,
    )


def by_hand(probabilities: list[float], *, dtype: torch.dtype = torch.float32) -> SoftLabels:
    log_probs = torch.tensor([probabilities], dtype=torch.float64).log().to(dtype)
    return SoftLabels(ids=torch.arange(len(probabilities)).unsqueeze(0), log_probs=log_probs)


def weights(*shape: int) -> SoftLabels:
    """Sampled labels: three of eight draws at every position."""
    labels = make(*shape)
    log_weights = torch.tensor([0.5, 0.25, 0.25]).log().expand_as(labels.log_probs)
    return dataclasses.replace(
        labels, log_probs=log_weights, log_tails=None, temperatures=(), logits=None, sampled=True
    )


def check_same(found: SoftLabels, expected: SoftLabels) -> None:
    for name in SETTINGS:
        assert getattr(found, name) == getattr(expected, name), name
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
        ({"logits": torch.zeros(2, 5, 4)}, "logits have shape"),
        ({"logits": torch.zeros(2, 3)}, "logits has batch shape"),
        ({"logits": torch.zeros(2, 5, 3).long()}, "logits is of torch.int64.*floats"),
        ({"sampled": True}, "sampled labels have weights and no log_tails"),
        ({"sampled": True, "log_tails": None}, "sampled labels have weights and no log_tails"),
        ({"sampled": True, "temperatures": ()}, "sampled labels have weights and no log_tails"),
        ({"log_probs": torch.zeros(2, 5, 3).long()}, "log_probs is of torch.int64.*floats"),
    ],
)
def test_fields_that_do_not_fit_are_refused_with_what_was_found(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(make(2, 5), **changes)


def test_logits_without_an_axis_are_refused_as_other_shapes() -> None:
    with pytest.raises(InputError, match="logits"):
        dataclasses.replace(by_hand([0.5, 0.25])[0], logits=torch.tensor(0.0))


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


@pytest.mark.parametrize("made", [make, weights])
def test_what_labels_say_of_themselves_travels_with_them(made: Callable[..., SoftLabels]) -> None:
    labels = dataclasses.replace(made(4, 5), classes=10)
    leaves, spec = pytree.tree_flatten(labels)
    again = pytree.tree_unflatten(leaves, spec)
    check_same(again, labels)
    check_same(labels.map(torch.clone), labels)
    check_same(labels.to("cpu"), labels)
    check_same(concatenate([labels[:1], labels[1:]]), labels)
    check_same(concatenate([labels[2:], labels[:2]]), labels[[2, 3, 0, 1]])
    check_same(pytree.tree_map(lambda t: t[1:3], labels), labels[1:3])
    check_same(copy.deepcopy(labels), labels)
    for found in (labels[0], labels[1, 2], labels.to("meta"), labels.sorted(), labels.top(3)):
        assert all(getattr(found, name) == getattr(labels, name) for name in SETTINGS)
        assert (found.logits is None) == (labels.logits is None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_keep_their_own_dtype(dtype: torch.dtype) -> None:
    labels = dataclasses.replace(make(4, 5), logits=make(4, 5).logits.to(dtype))
    for found in (labels[1], labels.sorted(), labels.top(2), concatenate([labels, labels])):
        assert found.logits is not None
        assert found.logits.dtype == dtype
        assert found.log_probs.dtype == torch.float32


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


@pytest.mark.parametrize("read", [SoftLabels.log_tail, SoftLabels.log_probs_at])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_weights_have_no_tail_and_none_is_derived(
    read: Callable[[SoftLabels, float], Tensor], temperature: float
) -> None:
    # By hand, the complement of what is kept would be a tail at T = 1.
    labels = SoftLabels(ids=torch.tensor([[3, 5]]), log_probs=torch.tensor([[-1.0, -2.0]]))
    assert torch.isfinite(labels.log_tail(1.0)).all()
    with pytest.raises(MissingTailError, match=r"sampled labels have no tail.*use a loss"):
        read(dataclasses.replace(labels, sampled=True), temperature)


def dense_logits(
    *shape: int, scale: float, dtype: torch.dtype, forbidden: float, seed: int
) -> Tensor:
    """Logits of a random teacher, of which some classes are forbidden."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(*shape, generator=generator) * scale).to(dtype)
    out = torch.rand(shape, generator=generator) < forbidden
    out[..., seed % shape[-1]] = False  # a row of nothing has no distribution
    return logits.masked_fill(out, -math.inf)


def unkept_mass(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The dense oracle: the mass of the classes that `ids` does not name, in float64."""
    probabilities = (logits.double() / temperature).softmax(-1)
    return probabilities.scatter(-1, ids, 0).sum(-1)


@given(
    shape=st.sampled_from([(5,), (2, 3), (1, 1), (2, 0)]),
    classes=st.sampled_from([9, 60, 300]),
    kept=st.sampled_from([2, 5, 9]),
    k=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([0.0, 0.3, 3.0]),
    forbidden=st.sampled_from([0.0, 0.9]),
    temperatures=st.sampled_from([(1.0, 2.0, 4.0), (4.0, 1.0), (0.5,), ()]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=200)
def test_the_top_of_a_wide_selection_is_the_narrow_one(
    shape: tuple[int, ...],
    classes: int,
    kept: int,
    k: int,
    dtype: torch.dtype,
    scale: float,
    forbidden: float,
    temperatures: tuple[float, ...],
    seed: int,
) -> None:
    k = min(k, kept)
    dense = dense_logits(*shape, classes, scale=scale, dtype=dtype, forbidden=forbidden, seed=seed)
    flat, hard = dense.view(-1, classes), torch.arange(math.prod(shape)) - 1
    places = torch.arange(math.prod(shape)).view(shape)
    wide = TopK(kept)(flat, hard, temperatures=temperatures)[places]
    narrow = TopK(k)(flat, hard, temperatures=temperatures)[places]
    # In the order that a codec gives, which is another.
    any_order = torch.rand(*shape, kept, generator=torch.Generator().manual_seed(seed))
    shuffled = wide._entries(any_order.argsort(-1))
    for labels in (wide, shuffled):
        found = labels.top(k)
        assert (found.shape, found.k, found.temperatures) == (shape, k, temperatures)
        assert torch.equal(found.ids, narrow.ids)
        assert torch.equal(found.logits, narrow.logits)
        assert torch.equal(found.log_probs, wide.log_probs[..., :k])
        # The same sum over the classes, taken in two other parts: float32 of up to 16.
        torch.testing.assert_close(found.log_probs, narrow.log_probs, rtol=0, atol=2e-6)
        for name in ("logsumexp", "hard_log_probs"):
            assert getattr(found, name) is getattr(labels, name), name
        for temperature in temperatures:
            tail = found.log_tail(temperature).double().exp()
            expected = unkept_mass(dense, found.ids, temperature)
            torch.testing.assert_close(tail, expected, rtol=0, atol=1e-6)
            narrow_tail = narrow.log_tail(temperature).double().exp()
            torch.testing.assert_close(tail, narrow_tail, rtol=0, atol=1e-6)
            assert (found.log_tail(temperature) <= 0).all()


@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_the_tail_of_the_top_of_a_peaked_row_is_a_sum_and_not_what_is_left_of_one(
    gap: float,
) -> None:
    dense = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    dense[:, 7] = gap
    found = TopK(10)(dense, torch.tensor([-1] * 3), temperatures=(1.0, 2.0)).top(1)
    for temperature in (1.0, 2.0):
        tail = found.log_tail(temperature).double().exp()
        expected = unkept_mass(dense, found.ids, temperature)
        assert (expected < 1e-2).all()
        torch.testing.assert_close(tail, expected, rtol=2e-5, atol=0)


def test_where_every_class_is_kept_the_top_has_the_mass_of_the_others_as_its_tail() -> None:
    labels = make(4, 5, k=10)
    found = labels.top(3)
    check_same(dataclasses.replace(found, log_tails=make(4, 5).log_tails), make(4, 5))
    assert make(4, 5).log_tails is not None
    torch.testing.assert_close(found.log_tails, make(4, 5).log_tails, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [3, 4, 100])
@pytest.mark.parametrize("made", [make, weights])
def test_the_top_of_all_there_is_is_only_sorted(made: Callable[..., SoftLabels], k: int) -> None:
    labels = made(4, 5)._entries(torch.tensor([1, 2, 0]).expand(4, 5, 3))
    found = labels.top(k)
    check_same(found, labels.sorted())
    assert found.log_tails is labels.log_tails
    assert (found.log_probs.diff(dim=-1) <= 0).all()
    assert not torch.equal(found.ids, labels.ids)


def test_equal_entries_at_the_last_place_are_taken_by_id() -> None:
    labels = SoftLabels(
        ids=torch.tensor([[8, 3, 9, 1, 5]]),
        log_probs=torch.tensor([[0.1, 0.1, 0.3, 0.1, 0.1]]).log(),
        log_tails=torch.tensor([[0.3]]).log(),
        temperatures=(1.0,),
    )
    assert labels.top(3).ids.tolist() == [[9, 1, 3]]
    # Where logits are known they decide, though their log-probs round to one number.
    logits = torch.tensor([[1.0, 2.0, 9.0, 3.0, 4.0]])
    assert dataclasses.replace(labels, logits=logits).top(3).ids.tolist() == [[9, 5, 1]]
    assert labels.top(3).log_tail(1.0).exp() == pytest.approx(0.5)


def test_the_top_of_what_plain_gives_back_is_the_narrow_selection() -> None:
    logits = torch.full((1, 16), -100.0)
    # Two logits of one log-prob; the codec plain keeps their order and not them.
    logits[0, 3], logits[0, 9], logits[0, 1] = 0.25, 0.25 + 2**-24, 10.0
    wide = TopK(3)(logits, torch.tensor([0]), temperatures=())
    narrow = TopK(2)(logits, torch.tensor([0]), temperatures=())
    assert wide.top(2).ids.tolist() == narrow.ids.tolist() == [[1, 9]]
    assert dataclasses.replace(wide, logits=None).first(2).ids.tolist() == [[1, 9]]


def test_the_top_of_masked_positions_is_masked_and_finite_elsewhere() -> None:
    labels = make(4, 5)
    assert labels.mask is not None
    assert labels.log_tails is not None
    # As `records.scatter` fills what has no label.
    empty = ~labels.mask
    filled = dataclasses.replace(
        labels,
        ids=labels.ids.masked_fill(empty.unsqueeze(-1), 0),
        log_probs=labels.log_probs.masked_fill(empty.unsqueeze(-1), 0),
        logits=labels.logits.masked_fill(empty.unsqueeze(-1), 0),
        log_tails=labels.log_tails.masked_fill(empty.unsqueeze(-1), -math.inf),
    )
    found = filled.top(2)
    assert found.mask is labels.mask
    check_same(found[labels.mask], labels.top(2)[labels.mask])
    assert torch.isfinite(found.log_tails).all()


def test_an_unused_entry_is_the_last_that_the_top_takes() -> None:
    labels = SoftLabels(
        ids=torch.tensor([[0, 4, 0]]),
        log_probs=torch.tensor([[-math.inf, -0.5, -math.inf]]),
        log_tails=torch.tensor([[-1.0, -0.5]]),
        temperatures=TEMPERATURES,
    )
    for k in (1, 2):
        found = labels.top(k)
        assert found.ids[0, 0] == 4
        assert found.log_probs[0, 1:].tolist() == [-math.inf] * (k - 1)
        # Nothing that has mass is left out.
        torch.testing.assert_close(found.log_tails, labels.log_tails)


def test_the_top_of_labels_without_tails_has_the_complement_of_what_it_keeps() -> None:
    labels = by_hand([0.25, 0.5, 0.125])
    found = labels.top(1)
    assert (found.ids.tolist(), found.log_tails) == ([[1]], None)
    assert found.log_tail(1.0).exp().tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None, "2"])
def test_the_top_of_no_whole_number_of_entries_is_refused(k: Any) -> None:
    for labels in (make(2), weights(2)):
        with pytest.raises(InputError, match="at least 1"):
            labels.top(k)


@pytest.mark.parametrize("k", [1, 2])
def test_the_top_of_weights_would_be_biased_and_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"sampled; keeping {k} of their 3 .* bias"):
        weights(4, 5).top(k)


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

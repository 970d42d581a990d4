"""Hard labels: shifted as transformers shifts them, and torch's own cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from softlabels.errors import InputError, VocabularyMismatchError
from softlabels.losses import cross_entropy, next_tokens, reduce

NONE = -100


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_every_token_is_labelled_with_the_one_that_follows_it(
    rows: list[list[int]], data: st.DataObject, left: bool
) -> None:
    width = max(map(len, rows)) + data.draw(st.integers(0, 2))
    nexts = data.draw(
        st.none() | st.just([index if index % 2 else NONE for index in range(len(rows))])
    )
    ids = torch.full((len(rows), width), 7)
    mask, expected = torch.zeros_like(ids), torch.full_like(ids, NONE)
    for row, tokens in enumerate(rows):
        start = width - len(tokens) if left else 0
        after = [] if nexts is None else [nexts[row]]
        for t, token in enumerate(tokens):
            ids[row, start + t], mask[row, start + t] = token, 1
            expected[row, start + t] = [*tokens, *after, NONE][t + 1]
    next_ids = None if nexts is None else torch.tensor(nexts)
    assert next_tokens(ids, mask, next_ids=next_ids).tolist() == expected.tolist()


def test_inputs_are_left_as_they_were_and_next_ids_belong_to_their_rows() -> None:
    ids, mask = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, True], [True, False]])
    assert next_tokens(ids, mask, next_ids=torch.tensor([8, 9])).tolist() == [[2, 8], [9, NONE]]
    assert (ids.tolist(), mask.tolist()) == ([[1, 2], [3, 4]], [[True, True], [True, False]])
    with pytest.raises(RuntimeError, match="shape"):
        next_tokens(ids, mask, next_ids=torch.tensor([8]))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_cross_entropy_is_torchs_and_so_is_its_gradient(
    dtype: torch.dtype, tolerance: float
) -> None:
    logits = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    hard = torch.arange(12).view(3, 4) * 4
    hard[1, 2] = hard[0, 0] = NONE
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = cross_entropy(ours, hard)
    expected = functional.cross_entropy(theirs.view(12, 50), hard.view(12), reduction="none")
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The loss is computed in float32 of the same rounded logits, only the gradient is narrowed.
    torch.testing.assert_close(
        loss.double(), expected.view(3, 4), rtol=min(tolerance, 1e-6), atol=min(tolerance, 1e-6)
    )
    loss.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def test_the_mean_over_labelled_positions_is_the_loss_that_transformers_reports(
    model: torch.nn.Module,
) -> None:
    ids = torch.randint(3, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        out = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, NONE))
    hard = next_tokens(ids, mask)
    loss = reduce(cross_entropy(out.logits, hard), hard != NONE)
    torch.testing.assert_close(loss, out.loss)


def test_a_position_without_a_label_has_neither_loss_nor_gradient_whatever_its_logits() -> None:
    logits = torch.randn(3, 9)
    logits[1], logits[2] = math.nan, math.inf
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.tensor([4, NONE, NONE]))
    loss.sum().backward()
    assert loss[1:].tolist() == [0, 0]
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert (logits.grad[1:] == 0).all()


def test_no_positions_have_no_loss() -> None:
    assert cross_entropy(torch.zeros(2, 0, 9), torch.zeros(2, 0).long()).shape == (2, 0)


def test_labels_of_another_layout_are_refused_even_if_as_many() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        cross_entropy(torch.zeros(2, 3, 9), torch.zeros(3, 2).long())


@pytest.mark.parametrize("bad", [9, -1])
def test_a_label_outside_the_classes_is_refused(bad: int) -> None:
    with pytest.raises(VocabularyMismatchError, match=f"class {bad}"):
        cross_entropy(torch.zeros(2, 9), torch.tensor([0, bad]))


def test_no_token_follows_one_of_another_record_in_a_row() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    packed = {"position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    assert next_tokens(ids, torch.ones(1, 5), **packed).tolist() == [[2, -100, 4, 5, -100]]
    after = torch.tensor([[0, 9, 0, 0, -100]])
    found = next_tokens(ids, torch.ones(1, 5), next_ids=after, **packed)
    assert found.tolist() == [[2, 9, 4, 5, -100]]

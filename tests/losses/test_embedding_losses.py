"""Losses on vectors, held to what torch and loops give."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from softlabels.errors import InputError
from softlabels.labels import Embeddings
from softlabels.losses import cosine_distance, similarity_mse, vector_mse


def sides(width: int = 6) -> tuple[torch.Tensor, Embeddings]:
    random = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, width, generator=random).double().requires_grad_()
    return student, Embeddings(torch.randn(2, 4, 6, generator=random))


def test_each_is_what_its_formula_says() -> None:
    student, labels = sides()
    teacher = labels.vectors.double()
    expected = 1 - cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(cosine_distance(student, labels), expected)
    torch.testing.assert_close(vector_mse(student, labels), (student - teacher).square().mean(-1))
    for loss in (cosine_distance, vector_mse, similarity_mse):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, labels), (student,))
        assert loss(student, labels).shape == (2, 4)
        assert loss(student.float(), labels).dtype == torch.float32


@pytest.mark.parametrize("width", [6, 3])
def test_similarities_are_compared_pair_by_pair_among_the_unmasked(width: int) -> None:
    student, labels = sides(width)
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = False
    masked = Embeddings(labels.vectors.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    found = similarity_mse(student, masked)
    ours, theirs = student[mask], labels.vectors[mask].double()
    expected = torch.zeros(len(ours), dtype=torch.float64)
    for n in range(len(ours)):
        for m in range(len(ours)):
            a = cosine_similarity(ours[n], ours[m], dim=0)
            b = cosine_similarity(theirs[n], theirs[m], dim=0)
            expected[n] += (a - b).square() / len(ours)
    torch.testing.assert_close(found[mask], expected)
    assert not bool(found[~mask].any())
    torch.testing.assert_close(
        similarity_mse(student[:1], labels[:1]),
        similarity_mse(student[0], labels[0]).unsqueeze(0),
    )


@pytest.mark.parametrize("loss", [cosine_distance, vector_mse, similarity_mse])
def test_masked_positions_and_vectors_of_zeros_have_no_gradient(loss: object) -> None:
    student, labels = sides()
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 0] = False
    with torch.no_grad():
        student[0, 0] = torch.inf
        student[1, 1] = 0
    masked = Embeddings(labels.vectors.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    found = loss(student, masked)  # type: ignore[operator]
    assert float(found[0, 0].detach()) == 0
    assert bool(found.isfinite().all())
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert bool(gradient.isfinite().all())
    assert not bool(gradient[0, 0].any())
    if loss is not vector_mse:
        assert not bool(gradient[1, 1].any())


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    student, labels = sides(3)
    with pytest.raises(InputError, match=r"have 3 numbers, the teacher's 6; put a linear layer"):
        cosine_distance(student, labels)
    with pytest.raises(InputError, match="batch shape"):
        similarity_mse(student[:1], labels)
    with pytest.raises(InputError, match="vectors is of torch"):
        Embeddings(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="no axis"):
        Embeddings(torch.tensor(1.0))

"""Losses on vectors: feature-based and relation-based distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import Embeddings
from softlabels.losses.buckets import result_dtype

# Of squared norms: below, a vector has no direction that rounding would not make, and no gradient.
_LEAST = 1e-24


def cosine_distance(vectors: Tensor, labels: Embeddings) -> Tensor:
    r"""How far the student's direction is from the teacher's, 0 to 2.

        1 − s·t / (‖s‖ ‖t‖)

    Args:
        vectors: student, float, shape (..., D).
        labels: teacher, batch shape (...).

    Returns:
        shape (...), float64 for float64 vectors, else float32; 0 where `labels.mask` is false; 1
        where either is all zeros.

    Raises:
        InputError: shapes differ.
    """
    student, teacher = _sides(vectors, labels, same_width=True)
    return _masked(1 - (_directions(student) * _directions(teacher)).sum(-1), labels)


def vector_mse(vectors: Tensor, labels: Embeddings) -> Tensor:
    r"""Mean squared error of the numbers of a vector.

        1/D Σ_d (s_d − t_d)²

    Romero et al., "FitNets: hints for thin deep nets", ICLR 2015. Arguments, result and errors are
    those of `cosine_distance`.
    """
    student, teacher = _sides(vectors, labels, same_width=True)
    return _masked((student - teacher).square().mean(-1), labels)


def similarity_mse(vectors: Tensor, labels: Embeddings) -> Tensor:
    r"""How differently the student sees a batch's vectors stand to each other.

        1/N Σ_m ( cos(s_n, s_m) − cos(t_n, t_m) )²

    over the N positions that the batch has labels of: of position n, those of its row. Widths may
    differ, and no projection is needed. In memory of N² numbers: of a batch of sentences or
    images, not of tokens. (Tung and Mori, "Similarity-preserving knowledge distillation", ICCV
    2019; Park et al., "Relational knowledge distillation", CVPR 2019.)

    Args:
        vectors: student, float, shape (..., D2).
        labels: teacher, batch shape (...).

    Returns:
        shape (...), float64 for float64 vectors, else float32; 0 where `labels.mask` is false.

    Raises:
        InputError: batch shapes differ.
    """
    student, teacher = _sides(vectors, labels, same_width=False)
    ours, theirs = (_directions(side).flatten(0, -2) for side in (student, teacher))
    squares = (ours @ ours.T - theirs @ theirs.T).square()
    if labels.mask is None:
        return squares.mean(-1).view(labels.shape)
    present = labels.mask.flatten().to(squares.dtype)
    # Masked vectors are zeros, which are like nothing on both sides.
    mean = squares.sum(-1) / present.sum().clamp(min=1)
    return _masked(mean.view(labels.shape), labels)


def _sides(vectors: Tensor, labels: Embeddings, *, same_width: bool) -> tuple[Tensor, Tensor]:
    """Both sides in the dtype of the result; masked positions are 0."""
    if vectors.shape[:-1] != labels.shape:
        raise InputError(
            f"vectors have batch shape {tuple(vectors.shape[:-1])}, labels {tuple(labels.shape)}; "
            "they must be the same"
        )
    if same_width and vectors.shape[-1] != labels.width:
        raise InputError(
            f"the student's vectors have {vectors.shape[-1]} numbers, the teacher's "
            f"{labels.width}; put a linear layer behind the student, or compare how vectors stand "
            "to each other: softlabels.losses.similarity_mse"
        )
    dtype = result_dtype(vectors)
    student, teacher = vectors.to(dtype), labels.vectors.to(dtype)
    if labels.mask is None:
        return student, teacher
    present = labels.mask.unsqueeze(-1)
    return torch.where(present, student, 0), torch.where(present, teacher, 0)


def _directions(vectors: Tensor) -> Tensor:
    """Of length 1; of zeros zeros, from which no gradient comes."""
    squares = vectors.square().sum(-1, keepdim=True)
    return torch.where(squares > _LEAST, vectors * squares.clamp(min=_LEAST).rsqrt(), 0)


def _masked(found: Tensor, labels: Embeddings) -> Tensor:
    return found if labels.mask is None else torch.where(labels.mask, found, 0)

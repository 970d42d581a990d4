"""What a teacher says of every position: one kind of label a file, all of them `Batched`."""

from typing import TypeAlias

from softlabels.errors import KindError
from softlabels.labels.batched import Batched, concatenate
from softlabels.labels.binary import BinaryLabels
from softlabels.labels.embeddings import Embeddings
from softlabels.labels.soft import NO_LABEL, SoftLabels, sum_tolerance

__all__ = [
    "NO_LABEL",
    "Batched",
    "BinaryLabels",
    "Embeddings",
    "Labels",
    "SoftLabels",
    "concatenate",
    "soft",
    "sum_tolerance",
]

Labels: TypeAlias = SoftLabels | BinaryLabels | Embeddings


def soft(labels: Labels) -> SoftLabels:
    """The labels, where they are a distribution over classes.

    Raises:
        KindError: they are of another kind.
    """
    if isinstance(labels, SoftLabels):
        return labels
    raise KindError(
        f"this is for distributions over classes (SoftLabels), and these labels are "
        f"{type(labels).__name__}"
    )

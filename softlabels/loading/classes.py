"""Classes by name: a student's own order of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import InputError, KindError, VocabularyMismatchError, quoted
from softlabels.format.records import Records
from softlabels.labels import Embeddings
from softlabels.labelset.reader import LabelSet


def order_of(labels: LabelSet, class_names: Sequence[str]) -> Tensor | None:
    """The student's number of each of a set's classes, int64 (V,); None where they are the same.

    Args:
        class_names: the student's, in order.

    Raises:
        VocabularyMismatchError: one has a class that the other has not.
        KindError: the labels are vectors.
        InputError: the set's classes have no names.
    """
    if labels.plan.kind == "embedding":
        raise KindError(
            f"{labels.name} holds vectors, which have no classes; leave out class_names"
        )
    stored = labels.plan.class_names
    if stored is None:
        raise InputError(
            f"{labels.name} does not name its classes, so they cannot be held to others' names; "
            "leave out class_names="
        )
    wanted = list(map(str, class_names))
    places = {name: number for number, name in enumerate(wanted)}
    problem = None
    if lost := sorted(set(stored) - set(wanted)):
        problem = f"the student has no class {quoted(lost[0])}"
    elif lost := sorted(set(wanted) - set(stored)):
        problem = f"the set has no class {quoted(lost[0])}"
    elif len(places) < len(wanted):
        problem = "the student's names are not all different"
    if problem is not None:
        raise VocabularyMismatchError(
            f"the classes of the student and of {labels.name} are not the same: {problem}; the set "
            f"has {len(stored)}, the student {len(wanted)}"
        )
    if list(stored) == wanted:
        return None
    return torch.tensor([places[name] for name in stored])


def renumbered(records: Records, order: Tensor | None) -> Records:
    """Records whose classes have a student's numbers."""
    labels: Any = records.labels
    if order is None or isinstance(labels, Embeddings):
        return records
    ids = order.to(labels.device)[labels.ids]
    return replace(records, labels=labels.with_tensors({"ids": ids}))

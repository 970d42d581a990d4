"""A batch as plain tensors, for loops that move, pin or gather nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import BinaryLabels, Embeddings, Labels, SoftLabels

# Kinds of label, by what stands for them among tensors, and what their tensors mean: the same in
# every batch of a set.
_KINDS: dict[str, type[SoftLabels | BinaryLabels | Embeddings]] = {
    "categorical": SoftLabels,
    "binary": BinaryLabels,
    "embedding": Embeddings,
}
_MEANING = {
    "categorical": ("temperatures", "classes", "sampled"),
    "binary": ("temperatures", "classes"),
    "embedding": (),
}


def to_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a batch, its soft labels among them.

    Args:
        batch: of a `softlabels.Loader` or `softlabels.Mix`.

    Returns:
        every tensor of the batch, and `soft_ids` int64 (..., k), `soft_log_probs` (..., k),
        `soft_logsumexp` (...), `soft_log_tails` (..., temperatures), `soft_hard_log_probs` (...),
        `soft_logits` (..., k) and `soft_mask` bool (...), as far as there are some; beside them,
        because they are no tensors, `soft_temperatures`, a tuple, `soft_classes` and
        `soft_sampled`; of another kind of label its own fields, and `soft_kind`. Of several
        teachers the first one's end in `.0`, the second one's in `.1`, and `soft_teachers` has
        their names or number. Keys and columns of text are left out: nothing can move them to a
        device.

    Raises:
        InputError: there are no soft labels, or a column's name begins with `soft_`.
    """
    tensors: dict[str, Any] = {n: value for n, value in batch.items() if isinstance(value, Tensor)}
    if taken := [name for name in batch if name.startswith("soft_") and name != "soft_labels"]:
        raise InputError(
            f"a column of the data is called {taken[0]}, and names that begin with soft_ stand for "
            "soft labels here; rename it, or choose others: sl.loader(…, columns=[…])"
        )
    labels = batch.get("soft_labels")
    if isinstance(labels, Mapping):
        tensors["soft_teachers"], parts = list(labels), list(labels.values())
    elif isinstance(labels, list):
        tensors["soft_teachers"], parts = len(labels), labels
    else:
        return tensors | _flat(labels, "")
    for number, part in enumerate(parts):
        tensors |= _flat(part, f".{number}")
    return tensors


def from_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_tensors`, wherever the tensors are by now.

    Returns:
        the other fields as they are, and `soft_labels`.

    Raises:
        InputError: the soft labels are gone, or do not fit each other.
    """
    others = {name: value for name, value in tensors.items() if not name.startswith("soft_")}
    teachers = tensors.get("soft_teachers")
    if teachers is None:
        return {**others, "soft_labels": _labels(tensors, "")}
    if isinstance(teachers, int):
        return {**others, "soft_labels": [_labels(tensors, f".{i}") for i in range(teachers)]}
    named = {name: _labels(tensors, f".{i}") for i, name in enumerate(teachers)}
    return {**others, "soft_labels": named}


def _flat(labels: Any, end: str) -> dict[str, Any]:
    kind = next((name for name, each in _KINDS.items() if isinstance(labels, each)), None)
    if kind is None:
        raise InputError(
            f"soft_labels of this batch are a {type(labels).__name__}; to_tensors takes a batch "
            "of a softlabels.Loader, as it comes"
        )
    values = labels.tensors() | {name: getattr(labels, name) for name in _MEANING[kind]}
    if kind != "categorical":
        values["kind"] = kind
    return {f"soft_{name}{end}": value for name, value in values.items()}


def _labels(tensors: Mapping[str, Any], end: str) -> Labels:
    kind = str(tensors.get(f"soft_kind{end}", "categorical"))
    made = _KINDS[kind]
    names = (*made.FIELDS, "mask")
    found = {name: tensors[f"soft_{name}{end}"] for name in names if f"soft_{name}{end}" in tensors}
    if lost := [name for name in made.FIELDS if name in made.REQUIRED and name not in found]:
        raise InputError(
            f"this batch has no soft_{lost[0]}{end}, but {', '.join(sorted(tensors)) or 'nothing'}"
            "; something dropped columns that the model does not take: in a Trainer, set "
            "remove_unused_columns=False"
        )
    meaning: dict[str, Any] = {
        # Torch's DataLoader makes a list of every tuple.
        "temperatures": tuple(tensors.get(f"soft_temperatures{end}", ())),
        "classes": tensors.get(f"soft_classes{end}"),
        "sampled": tensors.get(f"soft_sampled{end}", False),
    }
    return made(**found, **{name: meaning[name] for name in _MEANING[kind]})

"""Which records are trained on and which are held out: whole samples, never windows of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, VocabularyMismatchError, quoted
from softlabels.inputs.digests import key_hashes
from softlabels.labelset.reader import LabelSet
from softlabels.loading.choice import drawn
from softlabels.training.recipe import DataRecipe

Int64s = NDArray[np.int64]

HELD_OUT = 0.1


@dataclass(frozen=True)
class HeldOut:
    """What a student is evaluated on.

    Attributes:
        labels: the set.
        data: what they are joined to; None where the set carries its inputs.
        records: their numbers; None for all.
    """

    labels: LabelSet
    data: Any
    records: Int64s | None

    def __len__(self) -> int:
        return len(self.labels) if self.records is None else len(self.records)


@dataclass(frozen=True)
class Split:
    """A set in two.

    Attributes:
        training: numbers of the records to train on; None for all.
        held_out: None where nothing is.
    """

    training: Int64s | None
    held_out: HeldOut | None


def split(
    labels: LabelSet,
    data: Any,
    recipe: DataRecipe,
    *,
    seed: int,
    other: tuple[LabelSet, Any] | None = None,
) -> Split:
    """Training records and held-out ones.

    Args:
        labels: the set to train on.
        other: a set to evaluate on, and its data. Where the recipe asks for a split too, the
            records of the samples that it holds out, else all; then it may share none with
            `labels`.

    Raises:
        InputError: nothing is left on one side, or a sample would be on both.
        JoinError: a sample that is held out is not in the other set.
        VocabularyMismatchError: the other set is of other classes.
    """
    if other is not None:
        _check_same_classes(labels, other[0])
    asked = recipe.held_out_every is not None or recipe.held_out is not None
    if other is not None and not (asked and recipe.held_out != 0):
        _check_apart(labels, other[0])
        return Split(None, HeldOut(*other, None))
    if recipe.held_out == 0:
        return Split(None, None)
    keys = labels.columns(["key"])["key"].combine_chunks()
    held = _drawn_out(key_hashes(keys), recipe, seed=seed)
    if not len(held) or len(held) == len(labels):
        raise InputError(
            f"of the {len(labels)} records of {labels.name} {len(held)} would be held out; "
            "hold out another share of the samples (held_out), or none (0)"
        )
    training = np.setdiff1d(np.arange(len(labels)), held)
    if other is None:
        return Split(training, HeldOut(labels, data, held))
    wanted = keys.take(held).to_pylist()
    return Split(training, HeldOut(*other, _found(other[0], wanted)))


def _drawn_out(hashes: NDArray[np.uint64], recipe: DataRecipe, *, seed: int) -> Int64s:
    """Numbers of the records of the samples that are held out, ascending."""
    samples, first, of_record = np.unique(hashes, return_index=True, return_inverse=True)
    if recipe.held_out_every is not None:
        in_order = np.argsort(first, kind="stable")
        chosen = in_order[recipe.held_out_every - 1 :: recipe.held_out_every]
    else:
        share = HELD_OUT if recipe.held_out is None else recipe.held_out
        # By key: another set of the same samples, in whatever order, is split the same.
        draws = drawn(samples, np.full(len(samples), 1 << 62), 0, seed)
        chosen = np.argsort(draws, kind="stable")[: max(1, round(share * len(samples)))]
    return np.flatnonzero(np.isin(of_record, chosen))


def _check_same_classes(labels: LabelSet, other: LabelSet) -> None:
    ours, theirs = labels.plan, other.plan
    if ours.teacher.classes != theirs.teacher.classes:
        raise VocabularyMismatchError(
            f"{labels.name} has {ours.teacher.classes} classes, the held-out set {other.name} "
            f"{theirs.teacher.classes}; hold out labels of the same vocabulary"
        )
    if ours.tokenizer is None or theirs.tokenizer is None:
        return
    if ours.tokenizer.vocabulary != theirs.tokenizer.vocabulary:
        raise VocabularyMismatchError(
            f"the tokenizers of {labels.name} and of the held-out set {other.name} have other "
            "tokens or other ids; hold out labels of the same vocabulary"
        )


def _check_apart(labels: LabelSet, other: LabelSet) -> None:
    """By digest of the source rows: keys of two datasets may be the same by chance."""
    ours = set(labels.columns(["input_digest"])["input_digest"].to_pylist())
    table = other.columns(["key", "input_digest"])
    shared = [
        key
        for key, digest in zip(
            table["key"].to_pylist(), table["input_digest"].to_pylist(), strict=True
        )
        if digest in ours
    ]
    if shared:
        raise InputError(
            f"the held-out set {other.name} has {len(set(shared))} samples that are trained on, "
            f"the first with key {quoted(shared[0])}; pass held_out too (a share of the samples): "
            "then these are evaluated on the other set and not trained on"
        )


def _found(other: LabelSet, keys: list[Any]) -> Int64s:
    wanted = dict.fromkeys(keys)
    present = other.columns(["key"])["key"].to_pylist()
    there = set(present)
    lacking = [key for key in wanted if key not in there]
    if lacking:
        raise JoinError(
            f"key {quoted(lacking[0])} and {len(lacking) - 1} other samples are held out and not "
            f"in {other.name}; evaluate on a set that has them"
        )
    return np.asarray([n for n, key in enumerate(present) if key in wanted], np.int64)

"""A pilot: what is tried before a run, for a codec to learn from and for the size of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from softlabels.format.plan import Plan
from softlabels.inputs.sources import Source
from softlabels.labels import Labels
from softlabels.precomputing.label import Labeller
from softlabels.precomputing.room import Room
from softlabels.precomputing.unit import Unit
from softlabels.selection import Dense, Selection, TopK
from softlabels.teachers import Teacher
from softlabels.teachers.traits import positions_rule, takes_arrays

# Some 1,024 positions, of many samples: which classes are frequent depends on the text more than
# on how much context came before, and more positions change little.
_ROWS, _TOKENS = 64, 16
# Of samples that have one position each.
_ROWS_OF_ONE = 1024
# Of dense labels: which classes are frequent shows in the likeliest ones.
_FREQUENT = 1024


def pilot(source: Source, plan: Plan, teacher: Teacher) -> Labels:
    """Labels of the beginnings of a seeded sample of the data, with their raw logits.

    Args:
        plan: with any codec; its preparation is shortened, its selection kept but for a dense one.

    Returns:
        batch shape (positions,); none for a stream, which can be read only once.
    """
    selection = plan.selection.make()
    if isinstance(selection, Dense):
        selection = TopK(min(selection.k, _FREQUENT))
    if source.read is None or source.rows is None:
        return Room(0, selection, plan, keep_logits=False).labels
    many = _gives_one(teacher) or plan.kind == "embedding"
    rows = _ROWS_OF_ONE if many else _ROWS
    chosen = np.random.default_rng(0).choice(
        source.rows, min(rows, source.rows), replace=False, shuffle=False
    )
    table = source.read(sorted(chosen.tolist()), source.columns)
    whole = plan.preparation
    short = {
        "max_length": min(_TOKENS, whole.max_length),
        "overlap": 0,
        "on_long": "truncate",
        "assistant_only": False,
    }
    if whole.answers is not None:  # their beginnings, to whole prompts
        new_tokens = min(_TOKENS, whole.answers.max_new_tokens)
        short = {"answers": whole.answers.model_copy(update={"max_new_tokens": new_tokens})}
    label = Labeller(
        teacher,
        selection,
        plan.model_copy(update={"preparation": whole.model_copy(update=short)}),
        "skip",
        keep_logits=plan.teacher.logits_known and not selection.sampled,
    )
    prepared = label.prepare(Unit(0, table, source.keys(table, 0)))
    return label(label.answered(prepared)).records.labels


def _gives_one(teacher: Teacher) -> bool:
    """Whether a sample gets one label."""
    if takes_arrays(teacher):
        return positions_rule(teacher) == "first"
    return getattr(teacher, "positions", "every") == "first"


# On a CPU, where from 512 tokens on a batch's size makes no difference (docs/RESULTS.md).
DEFAULT_BATCH_TOKENS = 8192
# Of arrays: 26 photographs of 224 × 224 in three colours on a CPU, 111 on an accelerator.
_BATCH_VALUES, _BATCH_VALUES_THERE = 1 << 22, 1 << 24
# Every vocabulary has as many.
_FEW_IDS = 64
_LEAST_TRIED, _DOUBLED = 2048, 7
# A batch of twice the size that is faster by less is not worth its memory.
_WORTH = 1.05


def find_batch_tokens(teacher: Teacher, selection: Selection, *, length: int) -> int:
    """Padded tokens of a batch at which an accelerator is nearly as fast as it gets.

    Args:
        length: tokens of the rows that are tried.

    Returns:
        8,192 for a teacher on a CPU, or one that does not say where it runs.
    """
    device = getattr(teacher, "device", None)
    if device is None or device.type == "cpu":
        return DEFAULT_BATCH_TOKENS
    rows = max(1, _LEAST_TRIED // length)
    sizes = [length * rows << doubled for doubled in range(_DOUBLED)]
    return fastest(sizes, partial(_tokens_per_s, teacher, selection, length))


def default_batch_values(teacher: Teacher) -> int:
    """Numbers of a batch of arrays, at most."""
    device = getattr(teacher, "device", None)
    there = device is not None and device.type != "cpu"
    return _BATCH_VALUES_THERE if there else _BATCH_VALUES


def fastest(sizes: Sequence[int], rate: Callable[[int], float]) -> int:
    """The first size that the next one does not beat by 5 %, or before one that does not fit."""
    best, best_rate = sizes[0], 0.0
    for size in sizes:
        try:
            found = rate(size)
        except torch.OutOfMemoryError:
            break
        if found < _WORTH * best_rate:
            break
        best, best_rate = size, found
    return best


@torch.no_grad()
def _tokens_per_s(teacher: Teacher, selection: Selection, length: int, size: int) -> float:
    """Of random token ids, the second time that they are labelled."""
    rows = size // length
    ids = torch.randint(min(teacher.classes, _FEW_IDS), (rows, length))
    none = torch.zeros(rows, length, dtype=torch.bool)
    wanted = ~none
    if getattr(teacher, "positions", "every") == "first":
        wanted[:, 1:] = False
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        for logits in teacher.logits(ids, wanted, padding=none):
            hard = torch.full((len(logits),), -1, device=logits.device)
            temperatures = () if selection.sampled else (1.0,)
            half = torch.full(hard.shape, 0.5, dtype=torch.float64, device=logits.device)
            selection(logits, hard, temperatures=temperatures, uniforms=half).to("cpu")
        seconds = time.perf_counter() - began
    return rows * length / seconds

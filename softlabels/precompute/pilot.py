"""A pilot: a few short windows labelled before the run, from which a codec learns."""

from __future__ import annotations

import numpy as np
import torch

from softlabels.inputs.sources import Source
from softlabels.labels import SoftLabels
from softlabels.labelset.plan import Plan
from softlabels.precompute.label import Labeller, Unit
from softlabels.selection import TopK
from softlabels.teachers import Teacher

# Some 1,024 positions, of many samples: which classes are frequent depends on the text more than
# on how much context came before, and more positions change little.
_ROWS, _TOKENS = 64, 16


def pilot(source: Source, plan: Plan, teacher: Teacher) -> SoftLabels:
    """Labels of the beginnings of a seeded sample of the data, with their raw logits.

    Args:
        plan: with any codec; its preparation is shortened, its selection kept.

    Returns:
        batch shape (positions,); none for a stream, which can be read only once.
    """
    if source.read is None or source.rows is None:
        nothing = torch.empty(0, plan.selection.k)
        return SoftLabels(ids=nothing.long(), log_probs=nothing)
    chosen = np.random.default_rng(0).choice(
        source.rows, min(_ROWS, source.rows), replace=False, shuffle=False
    )
    table = source.read(sorted(chosen.tolist()), source.columns)
    short = plan.preparation.model_copy(
        update={
            "max_length": min(_TOKENS, plan.preparation.max_length),
            "overlap": 0,
            "on_long": "truncate",
            "assistant_only": False,
        }
    )
    label = Labeller(
        teacher,
        TopK(plan.selection.k),
        plan.model_copy(update={"preparation": short}),
        "skip",
        keep_logits=plan.teacher.logits_known,
    )
    return label(label.prepare(Unit(0, table, source.keys(table, 0)))).records.labels

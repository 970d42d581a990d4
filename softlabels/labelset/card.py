"""README.md of a label set: the YAML that `datasets` reads, and what people should know."""

from __future__ import annotations

import json
import string

from softlabels.format.manifest import Totals
from softlabels.format.plan import Plan

# ASCII punctuation but for what stands in every model's name and means nothing within a line.
_SHOWN_CLASSES = 8
_MARKS = frozenset(string.punctuation) - set("-/.,()")


def card(plan: Plan, totals: Totals, *, split: str) -> str:
    """The card, from validated values only: no paths, no credentials, no markup from data."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: "{split}"
    path: "data/{split}-*.parquet"
tags:
- softlabels
- knowledge-distillation
---
# Soft labels of {inert(plan.teacher.name)}

{facts(plan, totals)}

{meaning(plan)}

```python
import softlabels as sl

{loop(plan, 'sl.LabelSet.open(".")')}
```

Without this library: `datasets.load_dataset(".")`.
"""


def facts(plan: Plan, totals: Totals) -> str:
    """What a set is, as a Markdown table."""
    teacher = plan.teacher
    kept = plan.selection.words(teacher.classes)
    position = totals.bytes / max(1, totals.positions)
    dtype = teacher.dtype or "unknown dtype"
    what = "arrays" if plan.preparation.kind == "array" else "token ids"
    inputs = "stored" if plan.store_inputs else "not stored: join them from the data"
    return f"""| | |
|--|--|
| teacher | {inert(teacher.name)}, {inert(dtype)}, {inert(teacher.engine)} |
| weights | {inert(teacher.weights or "none")} |
| data | {inert(plan.data.name)}, column {inert(", ".join(plan.data.columns))} |
| kept | {kept} at every position{_rest(plan)} |
| records | {totals.records:,} of {totals.source_rows:,} samples, {totals.rejects:,} rejected |
| positions | {totals.positions:,} |
| size | {totals.bytes:,} bytes, {position:.1f} a position |
| {what} | {inputs} |{_named(plan)}"""


def meaning(plan: Plan) -> str:
    """What the columns of labels hold, in a few sentences."""
    columns = _COLUMNS.get(str(plan.codec["name"]), "")
    said = {
        "categorical": "distribution",
        "binary": "probabilities, each class by itself,",
        "embedding": "vector",
    }[plan.kind]
    if plan.single:
        return f"A record has one entry, the teacher's {said} of a sample. {columns}"
    of = "token t + 1" if plan.hard_label_alignment == "next" else "the classes of token t"
    if plan.kind == "embedding" or plan.preparation.kind == "array":
        of = ""
    over = f", over {of}" if of else ""
    return f"Entry t of a record is the teacher's {said} at position t{over}. {columns}"


def loop(plan: Plan, labels: str) -> str:
    """Two lines of Python that go through a set.

    Args:
        labels: what stands for it, opened.
    """
    given = labels if plan.store_inputs else f"{labels}, data"
    given += ", views=views" if plan.views is not None else ""
    field = "inputs" if plan.preparation.kind == "array" else "input_ids"
    return f"""for batch in sl.loader({given}, batch_size=8, seed=0):
    batch["{field}"], batch["soft_labels"]"""


def _rest(plan: Plan) -> str:
    """What is known of the classes not kept."""
    if plan.kind == "embedding":
        return ""
    if plan.kind == "binary":
        whole = plan.selection.k >= plan.teacher.classes
        return "" if whole else f", a floor of the others at T = {_numbers(plan.temperatures)}"
    return f", log tail mass at T = {_numbers(plan.temperatures)}"


def _named(plan: Plan) -> str:
    """Lines of what most sets do not have."""
    lines = []
    if plan.views is not None:
        count, name = plan.views.count, inert(plan.views.name)
        lines.append(f"| views | {count} of each sample, by {name} {inert(plan.views.version)} |")
    if plan.preparation.answers is not None:
        lines.append(f"| labelled | {plan.preparation.answers.words} |")
    if plan.class_names is not None:
        some = ", ".join(map(inert, plan.class_names[:_SHOWN_CLASSES]))
        more = len(plan.class_names) - _SHOWN_CLASSES
        lines.append(f"| classes | {some}{f' and {more:,} more' if more > 0 else ''} |")
    return "".join(f"\n{line}" for line in lines)


_COLUMNS = {
    "plain": """`ids` and
`log_probs` are flat: k entries a position, one after another. Log-probs are natural logarithms
under the full softmax.""",
    "binary_plain": """`ids` and
`log_odds` are flat: k entries a position, one after another; `floors` are log-odds too, of the mean
probability of all other classes.""",
    **dict.fromkeys(("float16", "float32"), """`vectors` are flat: one after another."""),
    "int8": """`vectors` are flat,
whole numbers: times `scales`, one a position, they are the vector.""",
    "product": """`codes` stand
for parts of a vector; the book is in plan.json, the format docs/FORMAT.md of softlabels.""",
    **dict.fromkeys(
        ("compact", "lossless", "sampled", "binary"),
        """The labels
of a record are one compressed value, `packed`; the format is docs/FORMAT.md of softlabels.""",
    ),
}


def inert(value: str) -> str:
    """A name as inert Markdown: one line, nothing in it a mark, a tag, an entity or a link."""
    shown = json.dumps(value, ensure_ascii=True)[1:-1]
    return "".join(f"\\{c}" if c in _MARKS else c for c in shown)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"

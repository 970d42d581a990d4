"""README.md of a label set: the YAML that `datasets` reads, and what people should know."""

from __future__ import annotations

import json
import string

from softlabels.labelset.manifest import Totals
from softlabels.labelset.plan import Plan

# ASCII punctuation but for what stands in every model's name and means nothing within a line.
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

for batch in sl.loader(sl.LabelSet.open("."), batch_size=8, seed=0):
    batch["input_ids"], batch["soft_labels"]
```

Without this library: `datasets.load_dataset(".")`.
"""


def facts(plan: Plan, totals: Totals) -> str:
    """What a set is, as a Markdown table."""
    teacher = plan.teacher
    kept = plan.selection.words(teacher.classes)
    position = totals.bytes / max(1, totals.positions)
    dtype = teacher.dtype or "unknown dtype"
    inputs = "stored" if plan.store_inputs else "not stored: join them from the data"
    return f"""| | |
|--|--|
| teacher | {inert(teacher.name)}, {inert(dtype)}, {inert(teacher.engine)} |
| weights | {inert(teacher.weights or "none")} |
| data | {inert(plan.data.name)}, column {inert(", ".join(plan.data.columns))} |
| kept | {kept} at every position, log tail mass at T = {_numbers(plan.temperatures)} |
| records | {totals.records:,} of {totals.source_rows:,} samples, {totals.rejects:,} rejected |
| positions | {totals.positions:,} |
| size | {totals.bytes:,} bytes, {position:.1f} a position |
| token ids | {inputs} |"""


def meaning(plan: Plan) -> str:
    """What the columns of labels hold, in a few sentences."""
    columns = _COLUMNS.get(str(plan.codec["name"]), "")
    of = "token t + 1" if plan.hard_label_alignment == "next" else "the classes of token t"
    return f"Entry t of a record is the teacher's distribution at position t, over {of}. {columns}"


_COLUMNS = {
    "plain": """`ids` and
`log_probs` are flat: k entries a position, one after another. Log-probs are natural logarithms
under the full softmax.""",
    **dict.fromkeys(
        ("compact", "lossless", "sampled"),
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

"""README.md of a set on the Hub: YAML that `datasets` and the Hub read, and what people ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from softlabels.format.manifest import Totals
from softlabels.format.plan import Plan
from softlabels.labelset.card import facts, inert, loop, meaning
from softlabels.looking.charts import Chart
from softlabels.sharing.command import commands
from softlabels.sharing.licences import Licences
from softlabels.sharing.preview import PREVIEW
from softlabels.sharing.statistics import Statistics

FIGURES = "figures"

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def hub_card(
    plan: Plan,
    totals: Totals,
    *,
    repository: str,
    licences: Licences,
    statistics: Statistics,
    digests: Mapping[str, str],
) -> str:
    """The card, from validated values only: no paths, no credentials, no markup from data.

    Args:
        repository: USER/NAME.
        statistics: for a table; the pictures of their charts lie at `figure_path`.
        digests: sha256 of the plan and of the shard table.
    """
    parts = [
        f"---\n{_front(plan, totals, licences)}---",
        f"# Soft labels of {inert(plan.teacher.name)}",
        facts(plan, totals),
        meaning(plan),
        *_statistics(statistics),
        *_licences(licences),
        _loading(repository, plan),
        _made(plan),
        "## Checksums",
        "Every file's sha256 is in manifest.json or, of shards, in shards.parquet; `softlabels "
        "pull` and `softlabels verify` check them all.",
        "\n".join(f"- {inert(name)}: sha256 `{digest}`" for name, digest in digests.items()),
    ]
    return "\n\n".join(parts) + "\n"


class _Quoted(str):
    """In quotes whatever it holds: 1e3 and no are a number and false to some readers of YAML."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """The safe one, with quotes."""


def _in_quotes(dumper: yaml.SafeDumper, value: _Quoted) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style='"')


_Dumper.add_representer(_Quoted, _in_quotes)


def _front(plan: Plan, totals: Totals, licences: Licences) -> str:
    split = plan.split

    def config(name: str, path: str) -> dict[str, Any]:
        files = {"split": _Quoted(split), "path": _Quoted(path)}
        return {"config_name": name, "data_files": [files]}

    front = {
        **({"license": licences.labels} if licences.labels else {}),
        "pretty_name": _Quoted(f"Soft labels of {plan.teacher.name}"),
        "size_categories": [_size(totals.records)],
        "tags": ["softlabels", "soft-labels", "knowledge-distillation"],
        "configs": [
            config("default", f"data/{split}-*.parquet") | {"default": True},
            config("preview", PREVIEW),
        ],
    }
    return str(yaml.dump(front, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=1000))


def _size(records: int) -> str:
    return next((name for bound, name in _SIZES if records < bound), "n>1B")


def figure_path(name: str) -> str:
    """Where the picture of a chart lies in the repository."""
    return f"{FIGURES}/{name}.svg"


def _statistics(found: Statistics) -> list[str]:
    if not found.table:
        return []
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.table.items())
    made = ["## What the teacher says", f"| | |\n|--|--|\n{rows}"]
    return [*made, *_pictures(found.charts)]


def _pictures(charts: Sequence[Chart]) -> list[str]:
    """Side by side where there is room, then what is to be seen; no text of a set is in either."""
    if not charts:
        return []
    pictures = "\n".join(f"![{chart.title}]({figure_path(chart.name)})" for chart in charts)
    return [pictures, "\n".join(f"- **{chart.title}.** {chart.words}" for chart in charts)]


def _licences(licences: Licences) -> list[str]:
    rows = {"labels": licences.labels, "teacher": licences.teacher, "data": licences.data}
    table = "\n".join(f"| {name} | {found or 'not told'} |" for name, found in rows.items())
    warnings = "\n".join(f"- **Note:** {warning}" for warning in licences.warnings())
    made = ["## Licences", f"| of the | licence |\n|--|--|\n{table}"]
    return [*made, warnings] if warnings else made


def _loading(repository: str, plan: Plan) -> str:
    return f"""## Loading

With softlabels, which fetches what is read and no more:

```python
import softlabels as sl

labels = sl.LabelSet.open("hf://datasets/{repository}")
{loop(plan, "labels")}
```

Without it, as it is stored, and a few hundred positions in plain columns:

```python
import datasets

datasets.load_dataset("{repository}", split="{plan.split}", streaming=True)
datasets.load_dataset("{repository}", "preview", split="{plan.split}")
```"""


def _made(plan: Plan) -> str:
    lines = commands(plan)
    if lines is None:
        version = f", version {inert(plan.teacher.revision)}" if plan.teacher.revision else ""
        engine = inert(plan.teacher.engine)
        return (
            f"## How it was made\n\nBy {inert(plan.teacher.name)}{version} ({engine}), which no "
            "command line names; plan.json has every setting."
        )
    return (
        "## How it was made\n\nWith every setting as plan.json has it; folders and files are "
        f"called by their names alone.\n\n```sh\n{lines}\n```"
    )

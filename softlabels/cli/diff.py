"""`softlabels diff`: what two sets differ in, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from softlabels.cli.output import print_json
from softlabels.cli.screen import Screen
from softlabels.errors import quoted
from softlabels.labelset.reader import LabelSet
from softlabels.looking.difference import Difference, RecordsDiffer, ValuesDiffer, difference
from softlabels.looking.text import safe

_RECORDS = {
    "only_a": "only in A",
    "only_b": "only in B",
    "other_inputs": "of another source row",
    "other_tokens": "of other tokens",
    "other_positions": "labelled at other positions",
}


def show_difference(a: str, b: str, *, as_json: bool) -> int:
    """Compare two sets; 1 if they differ."""
    first, second = (LabelSet.open(path, unfinished=True) for path in (a, b))
    found = difference(first, second)
    if as_json:
        print_json({"a": first.name, "b": second.name, **found.to_json()})
    else:
        _print(found)
    return 1 if found.any else 0


def _print(found: Difference) -> None:
    screen = Screen(soft_wrap=False)
    if not found.any:
        count, positions = found.records.common, found.values.positions
        screen.print(Text(f"no difference: {count:,} records, {positions:,} positions"))
        return
    if found.provenance:
        table = Table(title=Text("provenance"))
        for name in ("field", "A", "B"):
            table.add_column(name)
        for field in found.provenance:
            table.add_row(Text(safe(field.name)), Text(_shown(field.a)), Text(_shown(field.b)))
        screen.print(table)
    for line in (*_of_records(found.records), *_of_values(found.values)):
        screen.print(Text(line))


def _shown(value: Any) -> str:
    return quoted(json.dumps(value, ensure_ascii=False), limit=60)[1:-1].replace('\\"', '"')


def _of_records(found: RecordsDiffer) -> list[str]:
    lines = [f"records: {found.common:,} in both"]
    for name, words in _RECORDS.items():
        count = getattr(found, name)
        if count:
            keys = ", ".join(safe(key) for key in found.examples[name])
            lines.append(f"records: {count:,} {words}: {keys}{' …' if count > 5 else ''}")
    return lines


def _of_values(found: ValuesDiffer) -> list[str]:
    if not found.positions:
        return ["values: no position is labelled in both"]
    lines = [f"values: {found.same:,} of {found.positions:,} positions are the same to the bit"]
    if found.first_guess is not None:
        lines.append(f"values: the same first guess at {100 * found.first_guess:.2f} %")
    if found.mean_kl is None or found.worst is None:
        lines.append("values: no KL: a set is sampled, or has no tail at T = 1")
    else:
        at = found.worst
        lines.append(
            f"values: KL(A ‖ B) {found.mean_kl:.3g} nats in the mean, {found.max_kl:.3g} at most, "
            f"at key {safe(at['key'])}, part {at['part']}, position {at['position']}"
        )
    return lines

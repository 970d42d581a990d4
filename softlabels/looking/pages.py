"""Pages in HTML, and pictures: complete in one file, no scripts, every text of a set escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from softlabels.labelset.reader import LabelSet
from softlabels.looking.audit import Audit
from softlabels.looking.charts import Chart, charts
from softlabels.looking.facts import facts
from softlabels.looking.findings import Surprising, Suspect
from softlabels.looking.record import Line, Shown
from softlabels.looking.svg import drawn
from softlabels.looking.text import Decode, safe

# Nats from which on a token is of the next level; those of the terminal are the same.
LEVELS = (1.0, 2.0, 4.0, 8.0)
# Pixels above a picture's axes, for its title.
_HEAD = 24
_NAMES = ("s0", "s1", "s2", "s3", "s4")


def level(surprise: float | None) -> int:
    """0 to 4: how much a token surprises."""
    return 0 if surprise is None else sum(surprise >= least for least in LEVELS)


def level_words() -> list[str]:
    """What each level means."""
    bounds = [f"{least:g}" for least in LEVELS]
    between = [f"{low} to {high}" for low, high in pairwise(bounds)]
    return [f"below {bounds[0]}", *between, f"from {bounds[-1]}"]


def _figures(value: float | None) -> str:
    """Three digits, for columns of numbers of many sizes."""
    return "–" if value is None else f"{value:.3g}"


def render(template: str, values: dict[str, Any]) -> str:
    """A page; what it is given is text, whatever it looks like."""
    pages = Environment(
        loader=PackageLoader("softlabels.looking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["figures"] = _figures
    pages.globals["levels"] = list(zip(_NAMES, level_words(), strict=True))
    return pages.get_template(template).render(values)


def tokens(
    ids: Sequence[int], surprises: Sequence[float | None], decode: Decode
) -> list[dict[str, str]]:
    """Tokens as a page shows them: text, level and what is said of it."""
    return [
        {
            "text": decode(index),
            "level": _NAMES[level(surprise)],
            "words": "" if surprise is None else f"{surprise:.2f} nats",
        }
        for index, surprise in zip(ids, surprises, strict=True)
    ]


def audit_page(labels: LabelSet, found: Audit, *, decode: Decode, classes: Decode) -> str:
    """The report of an audit.

    Args:
        decode: of token ids.
        classes: of class ids.
    """
    plan, totals = labels.plan, labels.totals
    return render(
        "audit.html",
        {
            "name": safe(labels.name),
            "teacher": safe(plan.teacher.name),
            "data": safe(plan.data.name),
            "read": _read(found),
            "cards": _cards(labels, found),
            "facts": facts(labels).items(),
            "alignment": found.alignment,
            "charts": [drawn(chart) for chart in charts(found)],
            "fidelity": found.fidelity,
            "columns": [
                {
                    "name": safe(name),
                    "bytes": size,
                    "per_position": size / max(1, totals.positions),
                    "percent": 100 * size / max(1, totals.bytes),
                }
                for name, size in found.column_bytes.items()
            ],
            "surprising": [_surprising(record, decode) for record in found.surprising],
            "suspects": [_suspect(suspect, decode, classes) for suspect in found.suspects],
            "rejected": [
                {
                    "reason": safe(r.reason),
                    "count": r.count,
                    "examples": [safe(key) for key in r.keys],
                }
                for r in found.rejected
            ],
        },
    )


def picture(chart: Chart) -> str:
    """A chart as an SVG for a page that has no style for it, on a ground of its own.

    Light or dark as the reader's system is, whatever the page is; the same chart gives the same
    text.
    """
    return render("chart.svg", {"d": drawn(chart), "head": _HEAD})


def _read(found: Audit) -> str:
    read = f"{found.positions:,} positions of {found.records:,} records"
    return f"all of it, {read}" if found.whole else f"a sample, {read}"


# Means of powers of ten.
_MEANS = {
    "log10_expected_labels": "classes expected at a position, in the middle",
    "log10_length": "length of a vector, in the middle",
}


def _cards(labels: LabelSet, found: Audit) -> list[tuple[str, str]]:
    totals, given = labels.totals, found.distributions
    cards = [
        ("positions", f"{totals.positions:,}"),
        ("bytes a position", f"{totals.bytes / max(1, totals.positions):.1f}"),
    ]
    for name, words in _MEANS.items():
        if given.get(name) is not None:
            cards.append((words, f"{10 ** given[name]['mean']:.3g}"))
    if given.get("cosine") is not None:
        cards.append(("cosine of two vectors, in the mean", f"{given['cosine']['mean']:.3f}"))
    if given.get("kept_mass") is not None:
        cards.append(("of the mass kept, in the mean", f"{100 * given['kept_mass']['mean']:.1f} %"))
    if given.get("entropy") is not None:
        cards.append(("nats of entropy, in the mean", f"{given['entropy']['mean']:.2f}"))
    if given["perplexity"] is not None:
        cards.append(("perplexity on the hard labels", f"{given['perplexity']:.3g}"))
    if given.get("calibration") is not None:
        accuracy, error = (
            100 * given["calibration"][name] for name in ("accuracy", "expected_calibration_error")
        )
        cards.append(("first guesses are right", f"{accuracy:.1f} %"))
        cards.append(("expected calibration error", f"{error:.2f} %"))
    return cards


def _surprising(record: Surprising, decode: Decode) -> dict[str, Any]:
    shown = tokens(record.tokens, record.surprises, decode)
    more = len(record.tokens) < record.positions
    return {**asdict(record), "key": safe(record.key), "tokens": shown, "more": more}


def _suspect(suspect: Suspect, decode: Decode, classes: Decode) -> dict[str, Any]:
    return {
        **asdict(suspect),
        "key": safe(suspect.key),
        "before": "".join(map(decode, suspect.before)),
        "hard": "" if suspect.hard is None else classes(suspect.hard),
        "guesses": [(classes(index), prob) for index, prob in suspect.guesses],
    }


def record_page(labels: LabelSet, found: Shown, decode: Decode, classes: Decode) -> str:
    """A record: its tokens, coloured, and the guesses at each position.

    Args:
        decode, classes: as `audit_page`.
    """
    first = found.lines[0].position if found.lines else 0
    lines = {line.position for line in found.lines}
    shown = tokens(found.tokens, found.surprises, decode)
    tail = found.temperatures.index(1.0) if 1.0 in found.temperatures else None
    return render(
        "record.html",
        {
            "name": safe(labels.name),
            "teacher": safe(labels.plan.teacher.name),
            "key": safe(found.identity["key"]),
            "part": found.identity["part"],
            "length": found.length,
            "rest": found.rest,
            "surprise": found.hard_surprise,
            "tokens": [
                {**token, "line": at if at in lines else None}
                for at, token in enumerate(shown, start=first)
            ],
            "lines": [_line(line, tail, decode, classes) for line in found.lines],
        },
    )


def _line(line: Line, tail: int | None, decode: Decode, classes: Decode) -> dict[str, Any]:
    log_prob = line.next_log_prob
    return {
        "position": line.position,
        "token": "" if line.token is None else decode(line.token),
        "next": "" if line.next is None else decode(line.next),
        "level": _NAMES[level(None if log_prob is None else -log_prob)],
        "prob": "" if log_prob is None else f"{math.exp(log_prob):.4f}",
        "tail": "" if tail is None else f"{math.exp(line.log_tails[tail]):.3f}",
        "vector": [f"{number:.4g}" for number in line.vector],
        "length": _figures(line.length),
        "guesses": [
            {"text": classes(index), "prob": math.exp(value), "hit": index == line.next}
            for index, value in zip(line.ids, line.log_probs, strict=True)
        ],
    }

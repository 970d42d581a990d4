"""`softlabels info`, `show` and `verify`: reading a set, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from torch import Tensor

from softlabels.cli.screen import Screen
from softlabels.codecs.limit import Limit, limit
from softlabels.errors import CorruptShardError, InputError, LabelSetError, quoted
from softlabels.labelset import plan as plans
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.verify import repair as drop_bad
from softlabels.labelset.verify import verify

# Enough for an entropy that is right to a hundredth, read in a fraction of a second.
_SAMPLE_POSITIONS = 16_384


def show_info(directory: str, *, as_json: bool) -> int:
    """What a set is."""
    labels = LabelSet.open(directory, unfinished=True)
    plan, totals = labels.plan, labels.totals
    least = _limit(labels)
    if as_json:
        found = {
            "finished": labels.finished,
            "totals": totals.model_dump(),
            "bytes_per_position": totals.bytes / max(1, totals.positions),
            "limit": None if least is None else asdict(least),
            "plan": plan.model_dump(mode="json"),
        }
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    teacher, preparation = plan.teacher, plan.preparation
    rows = {
        "state": "finished" if labels.finished else f"unfinished, {totals.shards} units done",
        "teacher": _joined(teacher.name, teacher.revision, teacher.dtype, teacher.engine),
        "weights": teacher.weights or "not known: a callable",
        "data": _joined(plan.data.name, plan.data.split, f"column {', '.join(plan.data.columns)}"),
        "key": plan.data.key or "row number",
        "prepared": _joined(
            preparation.kind, f"at most {preparation.max_length} tokens", preparation.on_long
        ),
        "kept": plan.selection.words(teacher.classes),
        "tail mass at": ", ".join(f"T = {t:g}" for t in plan.temperatures) or "none",
        "codec": str(plan.codec["name"]),
        "token ids": "stored" if plan.store_inputs else "not stored",
        "samples": f"{totals.source_rows:,}, {totals.rejects:,} rejected, "
        f"{totals.truncated:,} truncated",
        "records": f"{totals.records:,} in {totals.shards:,} shards",
        "positions": f"{totals.positions:,}, {totals.entries:,} entries",
        "bytes": f"{totals.bytes:,}, {totals.bytes / max(1, totals.positions):.1f} a position",
        "limit": _in_words(least, totals.positions),
        "probes": f"{totals.probes:,} positions with dense logits" if totals.probes else "none",
        "derived from": " ← ".join(
            f"{origin.codec}, k = {origin.k}" for origin in reversed(plan.derived_from)
        )
        or "the teacher itself",
        "format": f"{plan.format}, written by {plan.writer}",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(_safe(value)))
    Screen(soft_wrap=False).print(table)
    return 0


def _limit(labels: LabelSet) -> Limit | None:
    """From the labels of a seeded sample of records; None of a set without any, or a damaged one.

    What is wrong with it is for `verify` to say.
    """
    positions, records = labels.totals.positions, labels.totals.records
    if not positions:
        return None
    count = min(records, -(-_SAMPLE_POSITIONS * records // positions))
    chosen = np.random.default_rng(0).choice(records, count, replace=False, shuffle=False)
    try:
        return limit(labels.take(np.sort(chosen)).labels)
    except CorruptShardError:
        return None


def _in_words(least: Limit | None, positions: int) -> str:
    if least is None:
        return "not known: the labels cannot be read" if positions else "none: there are no labels"
    return (
        f"{least.total:.1f} a position for ids ({least.ids:.1f}) and values ({least.values:.1f}), "
        "by their entropy"
    )


@dataclass(frozen=True)
class Window:
    """What of a record is shown: labelled positions from `start` on, `top` classes at each.

    None for `positions` and `top` means all.
    """

    start: int = 0
    positions: int | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("positions", 1), ("top", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} is {value}; it must be at least {least}")

    def of(self, mask: Tensor) -> tuple[list[int], int]:
        """The positions shown, of a record's mask, and how many labelled ones come after them."""
        if self.start >= len(mask):
            raise InputError(f"--start is {self.start}; the record has {len(mask)} positions")
        labelled = [t for t in mask.nonzero().flatten().tolist() if t >= self.start]
        shown = labelled[: self.positions]
        return shown, len(labelled) - len(shown)


def show_record(
    directory: str, key: str | None, part: int | None, view: int, *, window: Window, as_json: bool
) -> int:
    """Tokens of one record, and what the teacher believed would follow each."""
    labels = LabelSet.open(directory, unfinished=True)
    if not len(labels):
        raise InputError(f"{directory} holds no records yet")
    number = _record_number(labels, key, part, view)
    records = labels.take([number])
    found = records.record_labels(0)
    if not labels.codec.ordered:
        found = found.sorted()
    tokens = None if records.token_ids is None else records.token_ids.tolist()
    identity = {
        name: records.identity[name][0].as_py()
        for name in ("key", "part", "view", "source_start", "source_length")
    }
    following = None
    if tokens is not None and records.next_ids is not None:
        following = [*tokens[1:], int(records.next_ids[0])]
        if labels.plan.hard_label_alignment == "same":
            following = tokens if labels.plan.teacher.vocabulary is None else [-1] * len(tokens)
    assert found.mask is not None
    shown, rest = window.of(found.mask)
    used = found.log_probs > -math.inf
    lines = [
        {
            "position": t,
            "token": None if tokens is None else tokens[t],
            "next": None if following is None or following[t] < 0 else following[t],
            "next_log_prob": _number(found.hard_log_probs, t),
            "ids": found.ids[t][used[t]][: window.top].tolist(),
            "log_probs": found.log_probs[t][used[t]][: window.top].tolist(),
            "logsumexp": _number(found.logsumexp, t),
            "log_tails": [] if found.log_tails is None else found.log_tails[t].tolist(),
        }
        for t in shown
    ]
    if as_json:
        record = {**identity, "length": len(found), "temperatures": found.temperatures}
        print(json.dumps(_finite({**record, "positions": lines}), allow_nan=False))
        return 0
    title = f"key {_safe(str(identity['key']))}, part {identity['part']}: {len(found)} positions"
    # Probabilities are shown at T = 1, so only that tail adds up with them.
    tail = found.temperatures.index(1.0) if 1.0 in found.temperatures else None
    decode = _decoder(labels)
    # Classes that are no tokens have numbers only.
    guess = decode if labels.plan.teacher.vocabulary is None else str
    table = _record_table(lines, decode, guess, tail=tail, title=title, rest=rest)
    Screen(soft_wrap=False).print(table)
    return 0


def _record_number(labels: LabelSet, key: str | None, part: int | None, view: int) -> int:
    """The record asked for; by default the first one, of a key or of the set."""
    if key is None:
        return 0
    wanted = _key(labels, key)
    if part is None:
        # The first windows of a chat may hold nothing to label.
        part = next(iter(labels.parts(wanted)), 0)
    return labels.index(wanted, part=part, view=view)


def _record_table(
    lines: list[dict[str, Any]],
    decode: Callable[[int], str],
    guess: Callable[[int], str],
    *,
    tail: int | None,
    title: str,
    rest: int,
) -> Table:
    table = Table(title=Text(title), caption=f"{rest} more positions" if rest > 0 else None)
    for name in ("t", "token", "next", "p(next)", "the teacher's first guesses", "tail"):
        right = name in ("t", "p(next)", "tail")
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    for line in lines:
        guesses = Text()
        for place, (index, log_prob) in enumerate(zip(line["ids"], line["log_probs"], strict=True)):
            style = "bold green" if index == line["next"] else ""
            guesses.append("  " if place else "")
            guesses.append(guess(index), style)
            guesses.append(f" {math.exp(log_prob):.2f}", "dim")
        ids, following = line["ids"], line["next"]
        style = "green" if ids[:1] == [following] else "yellow" if following in ids else ""
        table.add_row(
            str(line["position"]),
            Text("" if line["token"] is None else decode(line["token"])),
            Text("" if following is None else decode(following), style),
            "" if line["next_log_prob"] is None else f"{math.exp(line['next_log_prob']):.3f}",
            guesses,
            "" if tail is None else f"{math.exp(line['log_tails'][tail]):.3f}",
        )
    return table


def show_verification(directory: Path, *, repair: bool, as_json: bool) -> int:
    """Check a set; drop what is bad if asked."""
    report = verify(directory)
    dropped = drop_bad(directory, report) if repair else []
    if as_json:
        print(json.dumps({**asdict(report), "dropped": dropped}))
        return 1 if report.findings else 0
    console = Screen()
    for finding in report.findings:
        file, problem = _safe(finding.file), _safe(finding.problem)
        console.print(Text.assemble((f"{file}: ", "bold red"), problem))
    if report.findings:
        console.print(Text(f"{len(report.findings)} findings in {directory}"))
        if dropped:
            names, plan = _safe(", ".join(dropped)), plans.earlier(directory)
            command = "derive" if plan is not None and plan.derived_from else "precompute"
            console.print(Text(f"dropped {names}: run the same {command} again"))
        return 1
    state = "finished" if report.finished else "unfinished"
    console.print(
        Text(
            f"{directory}: all is well ({state}; {report.shards:,} shards, {report.records:,} "
            f"records, {report.positions:,} positions checked)"
        )
    )
    return 0


def _key(labels: LabelSet, key: str) -> str | int:
    if labels.plan.data.key_type == "string":
        return key
    try:
        return int(key)
    except ValueError:
        raise InputError(f"keys of this set are whole numbers, {quoted(key)} is none") from None


def _decoder(labels: LabelSet) -> Callable[[int], str]:
    """Ids to token text, where the set carries a tokenizer and one can be loaded; else numbers."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return str
    folder = labels.tokenizer_folder()
    if folder is None or not (path := folder / "tokenizer.json").is_file():
        return str
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise LabelSetError(
            f"{path} cannot be read ({quoted(error)}); run `softlabels verify DIR --repair`"
        ) from None

    def decode(index: int) -> str:
        # Most tokens of text begin with a space; without a mark, columns of them cannot be read.
        text = tokenizer.decode([index], skip_special_tokens=False)
        return _safe(text).replace(" ", "·") or str(index)

    return decode


def _safe(text: str) -> str:
    """Text of a set for a terminal: control characters escaped, quotes left out."""
    return quoted(text, limit=10_000)[1:-1].replace('\\"', '"')


def _joined(*values: str | None) -> str:
    return ", ".join(value for value in values if value)


def _finite(value: Any) -> Any:
    """For JSON, which has no infinities: "-Infinity" as text, which `float` and `Number` read."""
    match value:
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {name: _finite(inner) for name, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
    return value


def _number(values: Any, position: int) -> float | None:
    if values is None or math.isnan(float(values[position])):
        return None
    return float(values[position])

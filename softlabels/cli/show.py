"""`softlabels show`: one record, its tokens coloured by how much they surprised the teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from softlabels.cli.output import check_file, print_json, write_page
from softlabels.cli.pager import can_page, print_paged
from softlabels.errors import InputError
from softlabels.labelset.reader import LabelSet
from softlabels.looking.pages import level, level_words, record_page
from softlabels.looking.record import Line, Shown, Window, find, shown
from softlabels.looking.text import Decode, class_decoder, decoder, safe

_POSITIONS, _TOP, _TOP_OF_ONE = 24, 5, 20
_STYLES = ("", "black on #fff0b8", "black on #ffd29a", "black on #ffb1a6", "bold black on #f58a86")
_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR = 30


def show_record(
    directory: str,
    key: str | None,
    part: int | None,
    view: int,
    *,
    window: Window,
    position: int | None,
    html: Path | None,
    as_json: bool,
) -> int:
    """Tokens of one record, and what the teacher believed would follow each."""
    if html is not None:
        check_file("--html", html)
    window = _window(window, position, as_json=as_json, whole=html is not None)
    labels = LabelSet.open(directory, unfinished=True)
    found = shown(labels, find(labels, key, part, view), window)
    if position is not None and [line.position for line in found.lines] != [position]:
        raise InputError(f"--position is {position}, which is not labelled in this record")
    if html is not None:
        decode = decoder(labels)
        write_page(html, record_page(labels, found, decode, class_decoder(labels, decode)))
    if as_json:
        print_json(found.to_json())
        return 0
    if html is not None:
        print_paged(Text(f"page: {html}"))
        return 0
    decode = decoder(labels)
    classes = class_decoder(labels, decode)
    if position is None:
        print_paged(*_record(found, decode, classes))
    else:
        print_paged(*_position(found, decode, classes))
    return 0


def _window(window: Window, position: int | None, *, as_json: bool, whole: bool) -> Window:
    """What is shown where nothing was asked for: no more than a screen holds, or can page."""
    if position is not None:
        if window.start or window.positions is not None:
            raise InputError("--position shows one position; leave out --start and --positions")
        if position < 0:
            raise InputError(f"--position is {position}; it must be at least 0")
        window = replace(window, start=position, positions=1)
    if as_json:
        return window
    if window.positions is None and not whole and not can_page():
        window = replace(window, positions=_POSITIONS)
    if window.top is None:
        window = replace(window, top=_TOP if position is None else _TOP_OF_ONE)
    return window


def _record(found: Shown, decode: Decode, classes: Decode) -> list[RenderableType]:
    parts: list[RenderableType] = [_title(found)]
    if found.tokens:
        parts += [_coloured(found, decode), _legend()]
    return [*parts, _table(found, decode, classes)]


def _title(found: Shown) -> Text:
    identity = found.identity
    view = f", view {identity['view']}" if identity["view"] else ""
    length = f"{found.length} position{'' if found.length == 1 else 's'}"
    title = f"key {safe(identity['key'])}, part {identity['part']}{view}: {length}"
    if found.hard_surprise is not None:
        title += f", {found.hard_surprise:.2f} nats a token"
    return Text(title, "bold")


def _coloured(found: Shown, decode: Decode) -> Text:
    text = Text()
    for index, surprise in zip(found.tokens, found.surprises, strict=True):
        text.append(decode(index), _STYLES[level(surprise)])
    return text


def _legend() -> Text:
    text = Text.assemble(("surprise in nats: ", "dim"))
    for words, style in zip(level_words(), _STYLES, strict=True):
        text.append(f" {words} ", style or "dim")
    return text


def _table(found: Shown, decode: Decode, classes: Decode) -> Table:
    caption = f"{found.rest} more positions" if found.rest > 0 else None
    table = Table(caption=caption)
    said = "length: the teacher's vector" if _is_vectors(found) else "the teacher's first guesses"
    for name in ("t", "token", "next", "p(next)", said, "tail"):
        right = name in ("t", "p(next)", "tail")
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    tail = _tail_at_one(found)
    for line in found.lines:
        guesses = _vector(line) if line.vector else Text()
        for place, (index, log_prob) in enumerate(zip(line.ids, line.log_probs, strict=True)):
            prob = math.exp(log_prob)
            guesses.append("  " if place else "")
            guesses.append(_BLOCKS[min(8, math.ceil(8 * prob))], "cyan")
            guesses.append(classes(index), "bold green" if index == line.next else "")
            guesses.append(f" {prob:.2f}", "dim")
        surprise = None if line.next_log_prob is None else -line.next_log_prob
        table.add_row(
            str(line.position),
            Text("" if line.token is None else decode(line.token)),
            Text("" if line.next is None else decode(line.next), _STYLES[level(surprise)]),
            "" if line.next_log_prob is None else f"{math.exp(line.next_log_prob):.3f}",
            guesses,
            "" if tail is None else f"{math.exp(line.log_tails[tail]):.3f}",
        )
    return table


def _is_vectors(found: Shown) -> bool:
    return any(line.vector for line in found.lines)


def _vector(line: Line) -> Text:
    numbers = "  ".join(f"{number:.4g}" for number in line.vector)
    return Text.assemble((f"{line.length:.4g}: ", "bold"), numbers, " …")


def _tail_at_one(found: Shown) -> int | None:
    # Probabilities are shown at T = 1, so only that tail adds up with them.
    return found.temperatures.index(1.0) if 1.0 in found.temperatures else None


def _position(found: Shown, decode: Decode, classes: Decode) -> list[RenderableType]:
    """One position: every guess with its bar, and what is left."""
    (line,) = found.lines
    table = Table(show_header=True, box=None, padding=(0, 2, 0, 0))
    table.add_column("class", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("", no_wrap=True)
    for index, log_prob in zip(line.ids, line.log_probs, strict=True):
        style = "bold green" if index == line.next else ""
        prob = math.exp(log_prob)
        table.add_row(Text(classes(index), style), f"{prob:.4f}", Text(_bar(prob), "cyan"))
    if line.vector:
        return [_title(found), _vector(line)]
    for temperature, log_tail in zip(found.temperatures, line.log_tails, strict=True):
        name = f"not kept, T = {temperature:g}"
        prob = math.exp(log_tail)
        table.add_row(Text(name, "dim"), f"{prob:.4f}", Text(_bar(prob), "dim"))
    return [_title(found), _asked(line, decode), table]


def _asked(line: Line, decode: Decode) -> Text:
    text = Text(f"position {line.position}")
    if line.token is not None:
        text.append(", after ")
        text.append(decode(line.token), "bold")
    if line.next is not None and line.next_log_prob is not None:
        surprise = -line.next_log_prob
        text.append(": the hard label is ")
        text.append(decode(line.next), _STYLES[level(surprise)] or "bold")
        text.append(f", believed to {math.exp(-surprise):.4f} ({surprise:.2f} nats)")
    return text


def _bar(prob: float) -> str:
    eighths = min(8 * _BAR, math.ceil(8 * _BAR * prob))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()

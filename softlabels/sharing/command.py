"""How a set was made, as a command line: from its validated plan, without what is private."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from softlabels.format.plan import Plan

_ENGINES = ("transformers", "openai-server")


def commands(plan: Plan) -> str | None:
    """Lines for a shell; None of a teacher that no command line can name.

    Names of folders and files stand for themselves: where they lay is nobody's business.
    """
    if plan.teacher.engine not in _ENGINES:
        return None
    lines = [_joined("softlabels precompute", _precompute(plan))]
    made = [(origin.codec, origin.k) for origin in plan.derived_from[1:]]
    made.append((str(plan.codec["name"]), plan.selection.k))
    folders = ["labels", *(f"derived-{step + 1}" for step in range(len(plan.derived_from)))]
    for step, origin in enumerate(plan.derived_from):
        if words := origin.words():
            lines.append(f"# of these, {_plain(words)}:")
        codec, k = made[step]
        between = f"softlabels derive {folders[step]} {folders[step + 1]}"
        lines.append(_joined(between, [("codec", codec), ("k", str(k))]))
    return "\n".join(lines)


def portable(name: str) -> str:
    """A name without credentials, a URL's query, and the folders of somebody's machine."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name)
    if found:
        try:
            parts = urlsplit(name)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return "URL"
        if parts.scheme == "file":
            return PurePosixPath(parts.path).name
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    if PurePosixPath(name).is_absolute() or name.startswith("~"):
        return PurePosixPath(name).name
    if PureWindowsPath(name).drive or name.startswith("\\"):
        return PureWindowsPath(name).name
    return name


def _precompute(plan: Plan) -> Iterator[tuple[str, str]]:
    teacher, data, preparation = plan.teacher, plan.data, plan.preparation
    server = teacher.engine == "openai-server"
    first = plan.derived_from[0] if plan.derived_from else None
    yield "teacher", "http://localhost:8000" if server else portable(teacher.name)
    if server:
        yield "model", portable(teacher.name)
    elif teacher.revision:
        yield "revision", teacher.revision
    if teacher.dtype and not server:
        yield "dtype", teacher.dtype
    yield "data", portable(data.name)
    yield "column", data.columns[0]
    if data.key:
        yield "key", data.key
    if data.limit:
        yield "limit", str(data.limit)
    yield from _selection(plan, first.k if first else plan.selection.k)
    yield "max-length", str(preparation.max_length)
    if preparation.overlap:
        yield "overlap", str(preparation.overlap)
    if preparation.on_long != "window":
        yield "on-long", preparation.on_long
    if preparation.assistant_only:
        yield "assistant-only", ""
    for temperature in plan.temperatures:
        yield "temperatures", f"{temperature:g}"
    yield "codec", first.codec if first else str(plan.codec["name"])
    if not plan.store_inputs:
        yield "no-store-inputs", ""
    if plan.probes:
        yield "probes", str(plan.probes)
    yield "unit-rows", str(plan.unit_rows)
    yield "batch-tokens", str(plan.batch_tokens)
    if plan.packing:
        yield "packing", ""
    yield "out", "labels"


def _selection(plan: Plan, k: int) -> Iterator[tuple[str, str]]:
    settings = plan.selection.settings
    match plan.selection.name:
        case "dense":
            yield "dense", ""
        case "sampled":
            yield "draws", str(k)
            if settings.get("head") is not None:
                yield "head", str(settings["head"])
            yield "draw-seed", str(settings.get("seed") or 0)
        case "top_p":
            yield "top-p", f"{settings.get('p', 1):g}"
            yield "k", str(k)
        case _:
            yield "k", str(k)


def _joined(command: str, flags: Iterable[tuple[str, str]]) -> str:
    parts = [
        f"--{name}" + (f" {shlex.quote(_plain(value))}" if value else "") for name, value in flags
    ]
    return " \\\n    ".join([command, *parts])


def _plain(value: str) -> str:
    """Of one line, ASCII and printable: it stands in a fenced block of a page."""
    return "".join(c if " " <= c <= "~" and c != "`" else "?" for c in value)

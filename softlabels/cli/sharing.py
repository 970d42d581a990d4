"""`softlabels push`, `pull`, `import` and `export`: sets between people and tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from softlabels.cli.screen import Screen
from softlabels.cli.sharing_arguments import ImportArguments, Layout
from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.looking.text import safe
from softlabels.sharing.formats import Arrays, Axolotl, DistillKit, FloatLists, Format
from softlabels.sharing.imports import Origin, import_set
from softlabels.sharing.licences import Licences
from softlabels.sharing.pull import pull
from softlabels.sharing.push import push


def push_set(
    directory: Path,
    repository: str,
    *,
    private: bool,
    revision: str,
    licences: Licences,
    as_json: bool,
) -> int:
    """Push, and say where it is and what the licences forbid."""
    _quiet_unless_watched()
    labels = LabelSet.open(directory)
    made = push(labels, repository, private=private, revision=revision, licences=licences)
    if as_json:
        found = {"url": made.url, "files": made.files, "bytes": made.bytes}
        found |= {"changed": made.changed, "removed": made.removed, "warnings": made.warnings}
        print(json.dumps(found))
        return 0
    console = Screen()
    what = f"{made.files:,} files, {made.bytes / 1e6:.1f} MB"
    done = f"{made.changed:,} of them changed" if made.changed else "all of them there already"
    gone = f", {made.removed:,} of an earlier set removed" if made.removed else ""
    console.print(f"{made.url}: {what}, {done}{gone}")
    for warning in made.warnings:
        console.print(Text.assemble(("note: ", "bold yellow"), safe(warning)))
    console.print(f'next: softlabels.LabelSet.open("{made.url}")')
    return 0


def pull_set(source: str, directory: Path, *, as_json: bool) -> int:
    """Pull, and say what came."""
    _quiet_unless_watched()
    made = pull(source, directory)
    totals = made.labels.totals
    if as_json:
        found = {"url": made.url, "fetched_files": made.files, "fetched_bytes": made.bytes}
        print(json.dumps(found | {"totals": totals.model_dump()}))
        return 0
    console = Screen()
    came = (
        f"{made.files:,} files, {made.bytes / 1e6:.1f} MB" if made.files else "nothing was missing"
    )
    console.print(
        f"{directory}: {totals.records:,} records, {totals.positions:,} positions, of "
        f"{safe(made.url)} ({came}, every digest checked)"
    )
    console.print(f"next: softlabels info {directory}")
    return 0


def import_labels(arguments: ImportArguments) -> int:
    """Import, and say what came and how its labels fit its tokens."""
    made = import_set(
        _layout(arguments),
        arguments.out,
        origin=Origin(
            data=arguments.source.absolute().name,
            teacher=arguments.teacher,
            classes=arguments.classes,
            tokenizer=_tokenizer(arguments.tokenizer),
        ),
        k=arguments.k,
        codec=arguments.codec,
        shift=arguments.shift,
        rescale=arguments.rescale,
        on_error=arguments.on_error,
    )
    totals, alignment = made.labels.totals, made.alignment
    if arguments.json:
        verdict = None if alignment is None else alignment.verdict
        found = {"totals": totals.model_dump(), "alignment": verdict, "notes": made.notes}
        print(json.dumps(found))
        return 0
    console = Screen()
    console.print(
        f"{arguments.out}: {totals.records:,} records of {totals.source_rows:,} samples, "
        f"{totals.positions:,} positions, {totals.bytes / 1e6:.1f} MB"
    )
    if totals.rejects:
        console.print(f"{totals.rejects:,} samples were rejected; rejects.parquet says why")
    for note in [*([alignment.words] if alignment else []), *made.notes]:
        console.print(Text.assemble(("note: ", "bold yellow"), note))
    console.print(f"next: softlabels audit {arguments.out}")
    return 0


def export_labels(layout: Layout, source: str, out: Path, settings: Path | None) -> int:
    """Export, and say what was written."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} holds something; choose a new or empty folder")
    layouts: dict[Layout, Format] = {
        "distillkit": DistillKit(out, settings),
        "lists": FloatLists(out),
        "axolotl": Axolotl(out),
        "numpy": Arrays(out),
    }
    records = layouts[layout].write(LabelSet.open(source), out)
    Screen().print(f"{out}: {records:,} records as {layout}")
    return 0


def _layout(arguments: ImportArguments) -> Format:
    source = arguments.source
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    match arguments.layout:
        case "distillkit":
            return DistillKit(source, arguments.settings)
        case "lists":
            names = arguments.tokens, arguments.ids, arguments.values
            return FloatLists(source, *names, key=arguments.key, part=arguments.part)
        case "axolotl":
            return Axolotl(source, key=arguments.key, part=arguments.part)
        case "numpy":
            return Arrays(source, key=arguments.key, part=arguments.part)


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = quoted(str(error).splitlines()[0] if str(error) else error, limit=200)
        raise InputError(f"--tokenizer {quoted(name)} cannot be loaded: {why}") from None


def _quiet_unless_watched() -> None:
    """The Hub's bars are for terminals."""
    if not sys.stderr.isatty():
        from huggingface_hub import utils

        utils.disable_progress_bars()  # type: ignore[attr-defined]

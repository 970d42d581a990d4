"""`softlabels audit`: a report in HTML, figures, and numbers for programs."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from softlabels.cli.output import check_file, print_json, write_page
from softlabels.cli.screen import Screen
from softlabels.labelset.reader import LabelSet
from softlabels.looking.audit import Audit, audit
from softlabels.looking.charts import charts
from softlabels.looking.figures import prepare, save
from softlabels.looking.pages import audit_page
from softlabels.looking.text import class_decoder, decoder, safe

_SHOWN, _LEAST_SHARE = 5, 0.001


def show_audit(
    directory: str,
    *,
    out: Path | None,
    figures: Path | None,
    positions: int,
    seed: int,
    as_json: bool,
) -> int:
    """Audit a set; 1 if its labels stand beside their tokens, or hard labels are others'."""
    if out is not None:
        check_file("--out", out)
    if figures is not None:
        prepare(figures)
    labels = LabelSet.open(directory, unfinished=True)
    found = audit(labels, positions=positions, seed=seed)
    if out is not None:
        decode = decoder(labels)
        page = audit_page(labels, found, decode=decode, classes=class_decoder(labels, decode))
        write_page(out, page)
    drawn = [] if figures is None else save(charts(found), figures)
    if as_json:
        print_json({"name": labels.name, "totals": labels.totals.model_dump(), **found.to_json()})
    else:
        _print(labels, found)
        if out is not None:
            Screen().print(Text(f"report: {out}"))
        if figures is not None:
            Screen().print(Text(f"figures: {len(drawn)} files in {figures}"))
    return 1 if _wrong(found) else 0


def _wrong(found: Audit) -> bool:
    return found.alignment is not None and found.alignment.verdict not in ("aligned", "cannot tell")


def _print(labels: LabelSet, found: Audit) -> None:
    """The numbers that matter, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _lines(labels, found):
        style = "bold red" if name == "alignment" and _wrong(found) else ""
        table.add_row(Text(name, "bold"), Text(value, style))
    Screen(soft_wrap=False).print(table)


def _lines(labels: LabelSet, found: Audit) -> list[tuple[str, str]]:
    given, totals = found.distributions, labels.totals
    read = "all" if found.whole else "a sample:"
    lines = [("read", f"{read} {found.positions:,} positions of {found.records:,} records")]
    lines += [(chart.title.lower(), chart.words) for chart in charts(found) if chart.kind == "bars"]
    if given.get("constant_numbers"):
        lines.append(("constant numbers", f"{given['constant_numbers']:,} of every vector"))
    if given["perplexity"] is not None:
        lines.append(("perplexity", f"{given['perplexity']:.4g} on the hard labels"))
    lines += [("calibration", c.words) for c in charts(found) if c.kind == "calibration"]
    whole = max(1, totals.bytes)
    largest = [(n, size) for n, size in found.column_bytes.items() if size >= _LEAST_SHARE * whole]
    shares = ", ".join(f"{safe(name)} {size / whole:.1%}" for name, size in largest[:_SHOWN])
    lines.append(("bytes", shares))
    if found.alignment is None:
        lines.append(("alignment", "not checked: there are no tokens to hold labels to"))
    else:
        lines.append(("alignment", f"{found.alignment.verdict}. {found.alignment.words}"))
    for one in found.fidelity:
        words = f"gradient angle {one.gradient_angle:.1f}°"
        if one.codec_kl is not None and one.selection_kl is not None:
            words = f"KL {one.codec_kl:.2g} by the codec, {one.selection_kl:.2g} by the "
            words += f"selection; gradient angle {one.gradient_angle:.1f}°"
        lines.append((f"fidelity at T = {one.temperature:g}", words))
    lines += [("rejected", f"{r.count:,}: {safe(r.reason)}") for r in found.rejected[:_SHOWN]]
    return lines

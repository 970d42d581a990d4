"""`softlabels verify`: whether a set is whole, what makes it whole again, and whose it is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from softlabels.cli.screen import Screen
from softlabels.format import receipts
from softlabels.labelset.reader import LabelSet
from softlabels.looking.text import safe
from softlabels.stores.target import earlier
from softlabels.verifying.again import command
from softlabels.verifying.against import Verdict, against
from softlabels.verifying.verify import Report, repair, verify


@dataclass(frozen=True)
class Suspect:
    """A teacher that a set is compared with.

    Attributes:
        teacher: a model's name or folder, or a server's address.
        data, sample, seed: see `softlabels.verifying.against.against`.
    """

    teacher: str
    data: str | None
    sample: int
    seed: int


def show_verification(
    directory: Path,
    *,
    drop: bool,
    suspect: Suspect | None,
    workers: int | None,
    progress: bool | None,
    as_json: bool,
) -> int:
    """Check a set; drop what is bad, and ask a teacher, if wanted."""
    report = verify(directory, workers=workers, progress=progress)
    dropped = repair(directory, report) if drop else []
    again, note = _again(directory) if dropped else (None, "")
    # Labels that are damaged would be blamed on the teacher.
    verdict = None if suspect is None or report.findings else _verdict(directory, suspect)
    if as_json:
        found = {**asdict(report), "dropped": dropped}
        found |= {"again": again, "note": note} if dropped else {}
        found |= {"against": asdict(verdict)} if verdict is not None else {}
        print(json.dumps(found, allow_nan=False))
    else:
        _print_report(directory, report)
        if dropped:
            run = safe(note if again is None else f"run {again} ({note})")
            Screen().print(Text(f"dropped {safe(', '.join(dropped))}: {run}"))
        if verdict is not None:
            _print_verdict(verdict)
    return 1 if report.findings or (verdict is not None and not verdict.same) else 0


def _again(directory: Path) -> tuple[str | None, str]:
    """The command that makes the dropped files again, and what to know of it."""
    plan = earlier(directory)
    if plan is None:
        return None, "run the same command again"
    # Of the units that are left; of a dropped one, its rejects are not known any more.
    rejects = receipts.unfinished(directory).totals.rejects
    skip = bool(rejects) and plan.preparation.on_long != "reject"
    return command(plan, str(directory), skip_errors=skip)


def _verdict(directory: Path, suspect: Suspect) -> Verdict:
    from softlabels.teachers import from_server, is_address, pretrained

    labels = LabelSet.open(directory)
    if is_address(suspect.teacher):
        teacher = from_server(suspect.teacher, api_key=os.environ.get("SOFTLABELS_API_KEY"))
    else:
        dtype = labels.plan.teacher.dtype
        known = dtype if dtype in ("float32", "bfloat16", "float16") else None
        teacher = pretrained(suspect.teacher, dtype=known)
    return against(labels, teacher, data=suspect.data, sample=suspect.sample, seed=suspect.seed)


def _print_report(directory: Path, report: Report) -> None:
    console = Screen()
    for finding in report.findings:
        file, problem = safe(finding.file), safe(finding.problem)
        console.print(Text.assemble((f"{file}: ", "bold red"), problem))
    if report.findings:
        console.print(Text(f"{len(report.findings)} findings in {directory}"))
        return
    state = "finished" if report.finished else "unfinished"
    console.print(
        Text(
            f"{directory}: all is well ({state}; {report.shards:,} shards, {report.records:,} "
            f"records, {report.positions:,} positions checked)"
        )
    )


def _print_verdict(verdict: Verdict) -> None:
    head = ("the same teacher", "green") if verdict.same else ("another teacher", "bold red")
    weights = {True: "the same", False: "others", None: "not known"}[verdict.weights_equal]
    console = Screen()
    console.print(Text.assemble(head, f": {safe(verdict.reason)}; weights: {weights}"))
    if verdict.kl_mean is None:
        return
    console.print(
        Text(
            f"{verdict.records:,} records, {verdict.positions:,} positions: KL mean "
            f"{verdict.kl_mean:.2e}, max {verdict.kl_max:.2e} nats; what storing costs: mean "
            f"{verdict.own_mean:.2e}, max {verdict.own_max:.2e}; tolerance above it: mean "
            f"{verdict.tolerance_mean:g}, max {verdict.tolerance_max:g}; first class agrees at "
            f"{verdict.agreement:.2%}"
        )
    )

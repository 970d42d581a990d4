"""verify: every checksum, count and invariant of a label set, and dropping what fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from softlabels.codecs import Codec
from softlabels.errors import (
    CorruptShardError,
    LabelSetError,
    SoftLabelsError,
    UnsupportedFormatError,
)
from softlabels.format import layout, manifest, probes, receipts
from softlabels.format import plan as plans
from softlabels.format.digested import DigestedTable, Footer
from softlabels.format.manifest import Manifest, Receipt, Totals
from softlabels.format.plan import Plan
from softlabels.format.receipts import Receipts
from softlabels.format.shard import Shard, file_sha256, keys_of_samples
from softlabels.inputs.sources import check_unique
from softlabels.parallel import in_order, worker_count
from softlabels.progress import Progress, Tracker, shown
from softlabels.stores.publish import replace, workspace
from softlabels.verifying.shard import probes_problem, shard_problems

_OF_UNITS = (layout.DATA, layout.PROBES)
_CHANGED_PLAN = (
    "it is not the plan that the shards were made under, and nothing can make it again: restore it "
    "from a copy of the set"
)


@dataclass(frozen=True)
class Finding:
    """Something wrong with one file of a set.

    Attributes:
        file: relative to the set.
        problem: in words.
    """

    file: str
    problem: str


@dataclass(frozen=True)
class Report:
    """What `verify` looked at and found.

    Attributes:
        finished: whether there is a manifest.
        shards, records, positions: checked.
        findings: empty when all is well.
    """

    finished: bool
    shards: int
    records: int
    positions: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Checked(Progress):
    """How far `verify` is; `bytes` are those that were read."""

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f" · {self.seconds_left:,.0f} s left"
        speed = self.bytes / 1e6 / self.seconds if self.seconds > 0 else 0.0
        return (
            f"{self.units:,} shards · {self.bytes / 1e6:,.1f} MB · {speed:,.0f} MB/s · "
            f"{self.tokens:,} positions{left}"
        )


def verify(root: Path, *, workers: int | None = None, progress: bool | None = False) -> Report:
    """Read a whole set and check it.

    Args:
        root: its folder.
        workers: threads, each of which checks a shard at a time; one for each core, at most eight.
        progress: show it on standard error; None shows it in a terminal only.

    Raises:
        LabelSetError: this is not a label set at all.
    """
    threads = worker_count(workers)
    if not layout.is_label_set(root):
        why = f"no {layout.PLAN} in it" if root.is_dir() else "there is no such folder"
        raise LabelSetError(f"{root} is not a label set: {why}")
    finished = (root / layout.MANIFEST).is_file()
    plan_bytes = (root / layout.PLAN).read_bytes()
    digest = plans.digest(plan_bytes)
    try:
        plan = plans.parse(plan_bytes, where=layout.PLAN)
        codec = plan.make_codec()
    except UnsupportedFormatError as error:
        return Report(finished, 0, 0, 0, (Finding(layout.PLAN, str(error)),))
    found, findings = (
        _finished(root, plan, digest) if finished else _unfinished(root, plan, digest, codec)
    )
    if any(finding.file == layout.PLAN for finding in findings):
        # Held to another plan, every shard would look wrong.
        return Report(finished, 0, 0, 0, tuple(findings))
    records = positions = 0
    with shown(progress, doing="verifying", first="reading the manifest") as report:
        tracker = Tracker(
            lambda event: report(Checked(**vars(event))), sum(r.source_rows for r in found)
        )
        check = partial(_check, root, plan, digest)
        for receipt, wrong in in_order(check, found, workers=threads):
            findings += wrong
            records += receipt.rows
            held = 0 if any(w.file == receipt.path for w in wrong) else receipt.positions
            positions += held
            tracker.start(receipt.source_rows)
            tracker.advance(held, max(1, held))
            tracker.finish(receipt.bytes, held)
    if not findings and plan.data.key is not None:
        findings += _duplicates(root, found)
    return Report(finished, len(found), records, positions, tuple(findings))


def _check(root: Path, plan: Plan, digest: str, receipt: Receipt) -> tuple[Receipt, list[Finding]]:
    """What is wrong with a unit's files."""
    problems = shard_problems(root, receipt, plan, digest)
    findings = [Finding(receipt.path, problem) for problem in problems]
    problem = probes_problem(root, receipt, plan)
    if problem is not None:
        findings.append(Finding(layout.probes_path(plan.split, receipt.unit), problem))
    return receipt, findings


def repair(root: Path, report: Report) -> list[str]:
    """Drop the files that `verify` found wrong, so that precompute makes them again.

    Returns:
        the files that were dropped; none at all if the plan is wrong, because without it nothing
        can be made again.
    """
    named = {finding.file for finding in report.findings}
    bad = {name for name in named if not (root / name).is_dir()}
    if not bad or layout.PLAN in bad:
        return []
    # A unit is made again as a whole: its shard and its probes bear the same name.
    units = {name.rpartition("/")[2] for name in bad if name.startswith(_OF_UNITS)}
    bad |= {f"{f}/{n}" for f in _OF_UNITS for n in units if (root / f / n).is_file()}
    with workspace(root) as scratch:
        if report.finished and not bad & {layout.MANIFEST, layout.SHARDS}:
            plan_digest = plans.digest((root / layout.PLAN).read_bytes())
            for receipt in receipts.finished(root, plan_digest):
                if receipt.path not in bad:
                    data = receipt.model_dump_json().encode()
                    replace(root / layout.receipt_path(receipt.unit), data, scratch=scratch)
        # The manifest goes first: from here on the set is visibly unfinished.
        (root / layout.MANIFEST).unlink(missing_ok=True)
        for name in sorted(bad):
            (root / name).unlink(missing_ok=True)
            if name.startswith(f"{layout.DATA}/") and name.endswith(".parquet"):
                unit = Path(name).stem.rsplit("-", 1)[-1]
                (root / layout.RECEIPTS / f"{unit}.json").unlink(missing_ok=True)
        if any(name.startswith(f"{layout.TOKENIZER}/") for name in bad):
            # It is saved as a whole.
            shutil.rmtree(root / layout.TOKENIZER, ignore_errors=True)
    return sorted(bad)


def _finished(root: Path, plan: Plan, digest: str) -> tuple[Sequence[Receipt], list[Finding]]:
    """Receipts of a finished set, and what is wrong with every file that is no shard."""
    data = (root / layout.MANIFEST).read_bytes()
    try:
        found = manifest.parse(data, where=layout.MANIFEST)
    except LabelSetError as error:
        return [], [Finding(layout.MANIFEST, str(error))]
    findings = list(_other_files(root, found))
    if _misspelt(data):
        findings.append(Finding(layout.MANIFEST, "the name of a field was changed"))
    if found.format != plan.format:
        findings.append(Finding(layout.MANIFEST, f"its format is not that of {layout.PLAN}"))
    if found.plan_sha256 != digest:
        findings.append(
            Finding(layout.MANIFEST, f"its plan_sha256 is not the digest of {layout.PLAN}")
            if _made_under(root, digest)
            else Finding(layout.PLAN, _CHANGED_PLAN)
        )
    if layout.SHARDS not in found.files:
        findings.append(Finding(layout.MANIFEST, f"it does not name {layout.SHARDS}"))
        return [], findings
    if any(finding.file == layout.SHARDS for finding in findings):
        return [], findings
    try:
        table = (root / layout.SHARDS).read_bytes()
        shards = Receipts(DigestedTable(table, where=layout.SHARDS, footer=None))
        totals = manifest.total(shards)
    except LabelSetError as error:
        return [], [*findings, Finding(layout.SHARDS, str(error))]
    footer = found.shards_footer
    if footer is not None and footer.model_dump() != vars(Footer.of(pa.BufferReader(table))):
        findings.append(
            Finding(layout.MANIFEST, f"its shards_footer is not that of {layout.SHARDS}")
        )
    if totals != found.totals:
        findings.append(Finding(layout.MANIFEST, "its totals are not the sums of the shards"))
    return shards, [*findings, *_strays(root, shards, plan)]


def _unfinished(
    root: Path, plan: Plan, digest: str, codec: Codec
) -> tuple[Sequence[Receipt], list[Finding]]:
    found, findings = [], []
    for path in sorted((root / layout.RECEIPTS).glob("*.json")):
        name = f"{layout.RECEIPTS}/{path.name}"
        try:
            found.append(manifest.parse_receipt(path.read_bytes(), where=name))
        except LabelSetError as error:
            findings.append(Finding(name, str(error)))
    if found and not _made_under(root, digest):
        findings.append(Finding(layout.PLAN, _CHANGED_PLAN))
    with_receipt = {receipt.path for receipt in found}
    for path in sorted((root / layout.DATA).glob("*")):
        name = f"{layout.DATA}/{path.name}"
        if name in with_receipt:
            continue
        # A shard whose receipt was lost is no fault: it can be computed again.
        try:
            found.append(Shard(path, receipt=None, name=name).make_receipt(path, codec))
        except CorruptShardError as error:
            findings.append(Finding(name, str(error).removeprefix(f"{name}: ")))
    known = {layout.probes_path(plan.split, r.unit) for r in found if r.probes}
    for path in sorted((root / layout.PROBES).glob("*")):
        name = f"{layout.PROBES}/{path.name}"
        try:
            if name not in known:  # no receipt has its digest
                list(probes.read(path, classes=plan.teacher.classes, name=name))
        except CorruptShardError as error:
            findings.append(Finding(name, str(error).removeprefix(f"{name}: ")))
    return found, findings


def _made_under(root: Path, digest: str) -> bool:
    """Whether any shard says that it was made under the plan with this digest."""
    for path in sorted((root / layout.DATA).glob("*.parquet")):
        with suppress(CorruptShardError):
            if Shard(path, receipt=None, name=path.name).footer("plan") == digest:
                return True
    return False


def _misspelt(data: bytes) -> bool:
    """Whether a field is missing and one is there that is not known; either alone is no fault."""
    raw = json.loads(data)
    levels = ((raw, Manifest), (raw["totals"], Totals))
    return any(
        bool(found.keys() - known.model_fields.keys()) and bool(known.model_fields.keys() - found)
        for found, known in levels
    )


def _other_files(root: Path, found: Manifest) -> Iterator[Finding]:
    for name, expected in found.files.items():
        path = root / name
        if not path.is_file():
            yield Finding(name, "the file is missing")
        elif file_sha256(path) != expected:
            yield Finding(name, f"its sha256 is not the one in {layout.MANIFEST}")


def _strays(root: Path, found: Iterable[Receipt], plan: Plan) -> list[Finding]:
    """Files among the shards that no receipt names; `datasets` would read them too."""
    known = set()
    for receipt in found:
        known.add(receipt.path)
        if receipt.probes:
            known.add(layout.probes_path(plan.split, receipt.unit))
    here = {
        f"{folder}/{path.name}"
        for folder in (layout.DATA, layout.PROBES)
        for path in (root / folder).glob("*")
    }
    return [Finding(name, "no receipt names this file") for name in sorted(here - known)]


def _duplicates(root: Path, found: Sequence[Receipt]) -> list[Finding]:
    def keys() -> Iterator[pa.Array]:
        for one in found:
            yield from keys_of_samples(Shard(root / one.path, receipt=one, name=one.path))

    try:
        check_unique(keys, sum(receipt.rows for receipt in found), where="the set")
    except SoftLabelsError as error:
        return [Finding(layout.DATA, str(error))]
    return []

"""verify: every checksum, count and invariant of a label set, and dropping what fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from softlabels.codecs import Codec
from softlabels.errors import (
    CorruptShardError,
    LabelSetError,
    SoftLabelsError,
    UnsupportedFormatError,
    quoted,
)
from softlabels.inputs.digests import prepared_digest
from softlabels.inputs.sources import check_unique
from softlabels.labelset import layout, manifest, probes, receipts
from softlabels.labelset import plan as plans
from softlabels.labelset.manifest import Manifest, Receipt
from softlabels.labelset.plan import Plan
from softlabels.labelset.publish import replace, workspace
from softlabels.labelset.records import Records
from softlabels.labelset.shard import Shard, file_sha256, keys_of_samples

# Kept mass and tail are each a sum of float32 exponentials, correct to about 1e-6.
_MASS_TOLERANCE = 1e-4
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


def verify(root: Path) -> Report:
    """Read a whole set and check it.

    Raises:
        LabelSetError: this is not a label set at all.
    """
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
    positions = 0
    for receipt in found:
        problems = list(_shard_problems(root, receipt, plan, digest))
        findings += [Finding(receipt.path, problem) for problem in problems]
        findings += _probe_problems(root, receipt, plan)
        positions += 0 if problems else receipt.positions
    if not findings and plan.data.key is not None:
        findings += _duplicates(root, found)
    return Report(finished, len(found), sum(r.rows for r in found), positions, tuple(findings))


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


def _finished(root: Path, plan: Plan, digest: str) -> tuple[list[Receipt], list[Finding]]:
    """Receipts of a finished set, and what is wrong with every file that is no shard."""
    try:
        found = manifest.parse((root / layout.MANIFEST).read_bytes(), where=layout.MANIFEST)
    except LabelSetError as error:
        return [], [Finding(layout.MANIFEST, str(error))]
    findings = list(_other_files(root, found))
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
        shards = manifest.parse_shard_table((root / layout.SHARDS).read_bytes(), where="")
    except LabelSetError as error:
        return [], [*findings, Finding(layout.SHARDS, str(error))]
    if manifest.total(shards) != found.totals:
        findings.append(Finding(layout.MANIFEST, "its totals are not the sums of the shards"))
    return shards, [*findings, *_strays(root, shards, plan)]


def _unfinished(
    root: Path, plan: Plan, digest: str, codec: Codec
) -> tuple[list[Receipt], list[Finding]]:
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


def _shard_problems(root: Path, receipt: Receipt, plan: Plan, plan_digest: str) -> Iterator[str]:
    path = root / receipt.path
    try:
        shard = Shard(path, receipt=receipt, name=receipt.path)
        if file_sha256(path) != receipt.sha256:
            yield "its sha256 is not the one that was published"
        if shard.footer("plan") != plan_digest:
            yield f"it was made under another plan than {layout.PLAN}"
        if shard.summary().unit != receipt.unit or receipt.path != layout.shard_path(
            plan.split, receipt.unit
        ):
            yield f"it holds work unit {shard.summary().unit}, not {receipt.unit}"
        yield from _content_problems(shard, receipt, plan)
    except CorruptShardError as error:
        yield str(error).removeprefix(f"{receipt.path}: ")


def _probe_problems(root: Path, receipt: Receipt, plan: Plan) -> Iterator[Finding]:
    if not receipt.probes:
        return
    name = layout.probes_path(plan.split, receipt.unit)
    if not (root / name).is_file():
        yield Finding(name, "the file is missing")
    elif file_sha256(root / name) != receipt.probes_sha256:
        yield Finding(name, "its sha256 is not the one that was published")


def _content_problems(shard: Shard, receipt: Receipt, plan: Plan) -> Iterator[str]:
    codec = plan.make_codec()
    rows = positions = entries = 0
    ends = []
    for group in range(shard.metadata.num_row_groups):
        records = shard.records(group, codec)
        rows += len(records)
        positions += len(records.labels)
        entries += records.labels.ids.numel()
        identity = records.identity
        for row in [0, len(records) - 1] if len(records) else []:
            ends.append([identity.column(name)[row].as_py() for name in ("key", "part", "view")])
        yield from (f"row group {group}: {problem}" for problem in _wrong(records, plan, codec))
    if (rows, positions, entries) != (receipt.rows, receipt.positions, receipt.entries):
        counted = f"{rows} rows, {positions} positions and {entries} entries"
        yield f"it holds {counted}, not what was published"
    footer = [json.loads(shard.footer(name)) for name in ("first", "last")]
    if footer != ([ends[0], ends[-1]] if ends else [None, None]):
        yield "its first and last key are not those that its footer names"


def _wrong(records: Records, plan: Plan, codec: Codec) -> Iterator[str]:
    """Invariants of labels that no checksum covers."""
    labels = records.labels
    if len(labels) == 0:
        return
    ids, log_probs = labels.ids, labels.log_probs
    if int(ids.min()) < 0 or int(ids.max()) >= plan.teacher.classes:
        yield f"class id {int(ids.max())} is not below {plan.teacher.classes}"
    # A weight of a sampled selection may be above 1.
    highest = torch.inf if labels.sampled else 1e-5
    if bool(torch.isnan(log_probs).any()) or bool((log_probs > highest).any()):
        yield "log-probs above 0, or NaN"
    # Equal log-probs may stand in any order of ids: their logits need not have been equal.
    if codec.ordered and bool((log_probs[:, :-1] < log_probs[:, 1:]).any()):
        yield "entries are not in descending log-prob"
    # Unused entries all name class 0.
    nowhere = -1 - torch.arange(labels.k)
    in_order = torch.where(log_probs == -torch.inf, nowhere, ids).sort(-1).values
    if bool((in_order[:, :-1] == in_order[:, 1:]).any()):
        yield "a class is kept twice at one position"
    for place, temperature in enumerate(labels.temperatures):
        if temperature == 1.0 and labels.log_tails is not None:
            mass = log_probs.double().exp().sum(-1) + labels.log_tails[:, place].double().exp()
            worst = float((mass - 1).abs().max())
            if not worst <= _MASS_TOLERANCE:
                yield f"kept and tail mass sum to 1 ± {worst:.1e}"
    if records.token_ids is not None:
        offsets = records.token_offsets
        stored = records.identity["prepared_digest"].to_pylist()
        for row, digest in enumerate(stored):
            if prepared_digest(records.token_ids[offsets[row] : offsets[row + 1]]) != digest:
                key = records.identity["key"][row].as_py()
                yield f"the token ids of key {quoted(key)} do not have their digest"


def _other_files(root: Path, found: Manifest) -> Iterator[Finding]:
    for name, expected in found.files.items():
        path = root / name
        if not path.is_file():
            yield Finding(name, "the file is missing")
        elif file_sha256(path) != expected:
            yield Finding(name, f"its sha256 is not the one in {layout.MANIFEST}")


def _strays(root: Path, found: list[Receipt], plan: Plan) -> list[Finding]:
    """Files among the shards that no receipt names; `datasets` would read them too."""
    known = {receipt.path for receipt in found}
    known |= {layout.probes_path(plan.split, r.unit) for r in found if r.probes}
    here = {
        f"{folder}/{path.name}"
        for folder in (layout.DATA, layout.PROBES)
        for path in (root / folder).glob("*")
    }
    return [Finding(name, "no receipt names this file") for name in sorted(here - known)]


def _duplicates(root: Path, found: list[Receipt]) -> list[Finding]:
    def keys() -> Iterator[pa.Array]:
        for one in found:
            yield from keys_of_samples(Shard(root / one.path, receipt=one, name=one.path))

    try:
        check_unique(keys, sum(receipt.source_rows for receipt in found), where="the set")
    except SoftLabelsError as error:
        return [Finding(layout.DATA, str(error))]
    return []

"""Every checksum, count and invariant of one shard: a pure function, for any number of threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from softlabels.codecs import Codec
from softlabels.errors import CorruptShardError, quoted
from softlabels.format import layout
from softlabels.format.manifest import Receipt
from softlabels.format.plan import Plan
from softlabels.format.records import Records
from softlabels.format.shard import Shard, file_sha256
from softlabels.inputs.digests import prepared_digest
from softlabels.labels.invariants import problems


def shard_problems(root: Path, receipt: Receipt, plan: Plan, plan_digest: str) -> Iterator[str]:
    """What is wrong with a shard: its bytes, its footer, its labels."""
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


def probes_problem(root: Path, receipt: Receipt, plan: Plan) -> str | None:
    """What is wrong with a unit's probes."""
    path = root / layout.probes_path(plan.split, receipt.unit)
    if not receipt.probes:
        return None
    if not path.is_file():
        return "the file is missing"
    if file_sha256(path) != receipt.probes_sha256:
        return "its sha256 is not the one that was published"
    return None


def _content_problems(shard: Shard, receipt: Receipt, plan: Plan) -> Iterator[str]:
    codec = plan.make_codec()
    rows = positions = entries = 0
    ends = []
    for group in range(shard.metadata.num_row_groups):
        records = shard.records(group, codec)
        rows += len(records)
        positions += len(records.labels)
        entries += records.labels.entries
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
    yield from problems(records.labels, classes=plan.teacher.classes, ordered=codec.ordered)
    if records.token_ids is not None:
        offsets = records.token_offsets
        stored = records.identity["prepared_digest"].to_pylist()
        for row, digest in enumerate(stored):
            if prepared_digest(records.token_ids[offsets[row] : offsets[row + 1]]) != digest:
                key = records.identity["key"][row].as_py()
                yield f"the token ids of key {quoted(key)} do not have their digest"

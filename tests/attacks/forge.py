"""How an attacker would do it: change a set, then make every digest of it right again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import softlabels as sl
from softlabels.errors import SoftLabelsError
from softlabels.format import layout, manifest
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.receipts import Receipts
from softlabels.format.shard import Shard, file_sha256
from softlabels.verifying.verify import verify

_COUNTS = (
    "rows", "positions", "entries", "source_rows", "bytes", "rejects", "truncated", "probes",
)  # fmt: skip
FIRST = "data/train-00000.parquet"


def read_all(root: Path) -> None:
    """Everything that a reader does with a set."""
    labels = sl.LabelSet.open(root)
    for number in range(len(labels)):
        labels[number]
    for records in labels.groups():
        records.identity.to_pylist()
    labels.identities.to_pylist()
    for key in labels.identities["key"].to_pylist():
        labels.parts(key)
    for batch in sl.loader(labels, batch_size=3):
        batch["soft_labels"].sorted()
    list(labels.probes())
    _ = labels.rejected, labels.tokenizer_folder()


def refusal(action: Callable[[], object]) -> str | None:
    """What an action says when it refuses; anything but a named error fails the test."""
    try:
        action()
    except SoftLabelsError as error:
        return str(error)
    return None


def refusals(root: Path) -> list[str]:
    """What reading and verifying a set say against it; all that goes wrong has a name."""
    said = [refusal(lambda: read_all(root)), refusal(lambda: verify(root))]
    found = [words for words in said if words is not None]
    if said[1] is None:
        found += [f"{finding.file}: {finding.problem}" for finding in verify(root).findings]
    return found


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; what the change returns takes its place, unless it is None."""
    data = json.loads(path.read_text())
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a shard again with another table, its footer's metadata kept."""
    file = pq.ParquetFile(path)
    metadata = file.metadata.metadata
    table = change(file.read())
    given = {k: v for k, v in metadata.items() if k.startswith(b"softlabels.")}
    table = table.replace_schema_metadata(given)
    del file
    path.unlink()
    pq.write_table(table, path, compression="zstd", use_dictionary=False, **options)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """A table with other values in one of its columns, in its type or their own."""
    place = table.schema.get_field_index(name)
    if not isinstance(values, pa.Array):
        values = pa.array(values, table.schema.field(name).type)
    field = pa.field(name, values.type, nullable=table.schema.field(name).nullable)
    return table.set_column(place, field, values)


def receipt_of(root: Path, old: Receipt, **claims: Any) -> Receipt:
    """The receipt of a shard as it lies there; what it counts is claimed, not counted."""
    path = root / old.path
    shard = Shard(path, receipt=None, name=old.path)
    data = path.read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    groups = range(shard.metadata.num_row_groups)
    found = {
        "rows": shard.metadata.num_rows,
        "bytes": len(data),
        "sha256": file_sha256(path),
        "footer_bytes": len(footer),
        "footer_sha256": hashlib.sha256(footer).hexdigest(),
        "group_rows": tuple(shard.metadata.row_group(group).num_rows for group in groups),
        "chunk_digests": tuple(shard.chunk_digests(group) for group in groups),
    }
    return old.model_copy(update=found | claims)  # nobody validates what an attacker writes


def reseal(root: Path, **claims: Any) -> None:
    """Make the shard table, the manifest and the index fit the files as they lie there."""
    old = list(Receipts.parse((root / layout.SHARDS).read_bytes(), where=""))
    publish(root, [receipt_of(root, receipt, **claims) for receipt in old])


def publish(root: Path, receipts: list[Receipt]) -> None:
    """Write shards.parquet and manifest.json for these receipts."""
    (root / layout.SHARDS).write_bytes(manifest.shard_table(receipts))
    (root / layout.KEYS).unlink(missing_ok=True)
    names = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if path.is_file() and not str(path.relative_to(root)).startswith((layout.DATA, "manifest"))
    ]
    plan = (root / layout.PLAN).read_bytes()
    made = Manifest(
        format=json.loads(plan)["format"],
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        totals=manifest.total([_bounded(receipt) for receipt in receipts]),
        files={name: file_sha256(root / name) for name in names if name != layout.PLAN},
    )
    (root / layout.MANIFEST).write_bytes(made.to_bytes())


def _bounded(receipt: Receipt) -> Receipt:
    """With counts of which there is a sum."""
    counts = {name: min(getattr(receipt, name), 1 << 40) for name in _COUNTS}
    return receipt.model_copy(update=counts)


def replant(root: Path) -> None:
    """Shards made under a changed plan: each footer names it as the one it was made under."""
    digest = hashlib.sha256((root / layout.PLAN).read_bytes()).hexdigest()
    for path in sorted((root / layout.DATA).glob("*.parquet")):
        file = pq.ParquetFile(path)
        metadata = {**file.metadata.metadata, b"softlabels.plan": digest.encode()}
        metadata.pop(b"ARROW:schema", None)
        table = file.read().replace_schema_metadata(metadata)
        del file
        path.unlink()
        pq.write_table(table, path, compression="zstd", use_dictionary=False)


def copy(source: Path, target: Path) -> Path:
    """A set to do what you like with."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copy))


def resident_bytes() -> int:
    """Of this process, now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

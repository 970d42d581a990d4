"""Where receipts are found: in the shard table of a finished set, else one file a unit."""

from __future__ import annotations

from pathlib import Path

from softlabels.errors import CorruptShardError
from softlabels.labelset import layout, manifest
from softlabels.labelset.manifest import Receipt
from softlabels.labelset.shard import file_sha256


def finished(root: Path, plan_digest: str) -> list[Receipt]:
    """The shard table, checked against the manifest.

    Raises:
        CorruptShardError: it, or the plan, is not what the manifest names.
    """
    where = root / layout.MANIFEST
    found = manifest.parse(where.read_bytes(), where=str(where))
    if found.plan_sha256 != plan_digest:
        raise CorruptShardError(
            f"{root / layout.PLAN}: its digest {plan_digest[:8]}… is not the manifest's "
            f"{found.plan_sha256[:8]}…; the plan was changed after the set was made"
        )
    table = root / layout.SHARDS
    check_file(table, found.files.get(layout.SHARDS))
    return manifest.parse_shard_table(table.read_bytes(), where=str(table))


def check_keys(root: Path) -> None:
    """Raise `CorruptShardError` if the key index of a finished set is not what was written."""
    where = root / layout.MANIFEST
    files = manifest.parse(where.read_bytes(), where=str(where)).files
    if layout.KEYS in files:
        check_file(root / layout.KEYS, files[layout.KEYS])


def check_folder(root: Path, folder: str) -> None:
    """Raise `CorruptShardError` if a file below a folder of a finished set is not what it was."""
    where = root / layout.MANIFEST
    files = manifest.parse(where.read_bytes(), where=str(where)).files
    for name, digest in files.items():
        if name.startswith(f"{folder}/"):
            check_file(root / name, digest)


def check_file(file: Path, expected: str | None) -> None:
    """Raise `CorruptShardError` if a file does not have its sha256."""
    if not file.is_file() or file_sha256(file) != expected:
        raise CorruptShardError(
            f"{file}: it is missing or not the one the manifest names; run `softlabels verify "
            "DIR --repair`, then the same `softlabels precompute` command, to rebuild it"
        )


def _by_number(file: Path) -> tuple[int, str]:
    return len(file.stem), file.stem  # 99999 before 100000


def unfinished(root: Path) -> list[Receipt]:
    """The receipts of the units that are done, in order."""
    files = sorted((root / layout.RECEIPTS).glob("*.json"), key=_by_number)
    return [manifest.parse_receipt(file.read_bytes(), where=str(file)) for file in files]

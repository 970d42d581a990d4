"""Whether two label sets are the same: all but what says how they were made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import pyarrow as pa

from softlabels.format import manifest
from softlabels.format.digested import Footer
from softlabels.format.receipts import Receipts
from softlabels.stores.publish import TEMPORARY

HOW = {"seconds": None, "accelerator": None}
TABLE, MANIFEST = "shards.parquet", "manifest.json"


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, without how shards were made."""
    files = (path for path in root.rglob("*") if path.is_file())
    return compared({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


def compared(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files of label sets by name, of which tables and receipts are as if nobody had timed them.

    A manifest that names another table than the one beside it stays as it is, and so does what a
    killed job left unfinished.
    """
    found = dict(files)
    for name, data in files.items():
        path = PurePosixPath(name)
        if TEMPORARY in path.parts:
            continue
        if path.parent.name == "receipts":
            found[name] = json.dumps(json.loads(data) | HOW).encode()
        if path.name == TABLE:
            found[name] = table = _untimed(data)
            beside = str(path.with_name(MANIFEST))
            if beside in files:
                found[beside] = _renamed(files[beside], data, table)
    return found


def _untimed(table: bytes) -> bytes:
    receipts = Receipts.parse(table, where=TABLE)
    return manifest.shard_table(receipt.model_copy(update=HOW) for receipt in receipts)


def _renamed(data: bytes, table: bytes, untimed: bytes) -> bytes:
    """The manifest, as it would be of the other table."""
    found = json.loads(data)
    if _named(table).items() <= _flat(found).items():
        found["files"][TABLE] = _named(untimed)[TABLE]
        found["shards_footer"] = _named(untimed)["footer"]
    return json.dumps(found).encode()


def _flat(found: dict[str, dict[str, str]]) -> dict[str, object]:
    return {TABLE: found["files"].get(TABLE), "footer": found.get("shards_footer")}


def _named(table: bytes) -> dict[str, object]:
    footer = asdict(Footer.of(pa.BufferReader(table)))
    return {TABLE: hashlib.sha256(table).hexdigest(), "footer": footer}

"""Where things lie in a label set."""

from __future__ import annotations

from pathlib import Path

PLAN = "plan.json"
MANIFEST = "manifest.json"
SHARDS = "shards.parquet"
REJECTS = "rejects.parquet"
CARD = "README.md"
KEYS = "keys.index"
DATA = "data"
PROBES = "probes"
RECEIPTS = "receipts"
TOKENIZER = "tokenizer"


def shard_path(split: str, unit: int) -> str:
    """Relative path of a unit's shard; without a total, because streams have none."""
    return f"{DATA}/{split}-{unit:05d}.parquet"


def probes_path(split: str, unit: int) -> str:
    """Relative path of a unit's probes."""
    return f"{PROBES}/{split}-{unit:05d}.parquet"


def receipt_path(unit: int) -> str:
    """Relative path of a receipt, which exists only while the set is unfinished."""
    return f"{RECEIPTS}/{unit:05d}.json"


def is_label_set(root: Path) -> bool:
    """Whether a folder is a label set, finished or not."""
    return (root / PLAN).is_file()

"""What a shard's footer says of its unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Before the names of ours in the footer.
META = "softlabels."


@dataclass(frozen=True)
class UnitSummary:
    """What a shard's footer says of its unit, beside the plan's digest and the key range.

    Attributes:
        unit: its number.
        source_rows: rows of the source, rejected ones included.
        input_digest: over every row's key and source columns.
        rejects: {"key", "part", "reason"} of each sample that was not labelled.
        truncated: samples that lost their end.
    """

    unit: int
    source_rows: int
    input_digest: str
    rejects: tuple[dict[str, Any], ...] = ()
    truncated: int = 0

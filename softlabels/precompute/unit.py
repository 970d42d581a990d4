"""A work unit on its way: source rows, token ids, records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.inputs.digests import DIGEST_TYPE, input_digests, prepared_digest, unit_digest
from softlabels.inputs.windows import Windows
from softlabels.labels import SoftLabels
from softlabels.labelset.plan import Plan
from softlabels.labelset.probes import Probes
from softlabels.labelset.records import Records, join
from softlabels.labelset.shard import UnitSummary
from softlabels.selection import Dense


@dataclass(frozen=True)
class Unit:
    """A work unit's source rows.

    Attributes:
        number: which unit.
        table: its rows.
        keys: of each row, string or int64.
    """

    number: int
    table: pa.Table
    keys: pa.Array

    def digests(self, columns: Sequence[str]) -> tuple[list[bytes], str]:
        """The input digest of each row, and one for the whole unit."""
        each = input_digests(self.table, columns)
        return each, unit_digest(self.keys.to_pylist(), each)


@dataclass(frozen=True)
class Prepared:
    """A unit as the teacher takes it.

    Attributes:
        unit: its number and rows.
        digest: of the whole unit's input.
        windows: its token ids, a window a record.
        identity: see `Records.identity`.
        uniforms: what a sampled selection draws by at each token, float64, (tokens,); else None.
    """

    unit: Unit
    digest: str
    windows: Windows
    identity: pa.Table
    uniforms: NDArray[np.float64] | None


@dataclass(frozen=True)
class Labelled:
    """A unit's labels, ready to be written.

    Attributes:
        records: in the order of the windows, without those that have no labels.
        summary: for the shard's footer.
        probes: None if there are none.
    """

    records: Records
    summary: UnitSummary
    probes: Probes | None


def drop(records: Records, lost: Iterable[int]) -> Records:
    """The records without those that are lost."""
    gone = set(lost)
    if not gone:
        return records
    kept = [records.slice(i, i + 1) for i in range(len(records)) if i not in gone]
    return join(kept) if kept else records.slice(0, 0)


def reject(unit: Unit, row: int, part: int, reason: str) -> dict[str, Any]:
    """A row of the rejects table."""
    return {"key": unit.keys[row].as_py(), "part": part, "reason": reason[:500]}


def identity_of(windows: Windows, unit: Unit, digests: list[bytes]) -> pa.Table:
    """Who each record is, and the digests of what it was made from; see `Records.identity`."""
    bounds = pairwise(windows.offsets.tolist())
    rows = windows.rows
    return pa.table(
        {
            "key": unit.keys.take(pa.array(rows)),
            "part": pa.array(windows.parts, pa.int32()),
            "view": pa.array(np.zeros(len(windows), np.int32)),
            "source_start": pa.array(windows.starts, pa.int32()),
            "source_length": pa.array(windows.source_lengths, pa.int32()),
            "input_digest": pa.array([digests[row] for row in rows], DIGEST_TYPE),
            "prepared_digest": pa.array(
                [prepared_digest(windows.token_ids[a:b]) for a, b in bounds], DIGEST_TYPE
            ),
        }
    )


def records_of(windows: Windows, labels: SoftLabels, identity: pa.Table, plan: Plan) -> Records:
    """Labels of the wanted positions as the records that are written."""
    if plan.selection.name == Dense.name and plan.make_codec().ordered:
        labels = labels.sorted()
    counted = np.concatenate([[0], np.cumsum(windows.wanted)])
    return Records(
        identity=identity,
        token_offsets=windows.offsets,
        token_ids=windows.token_ids if plan.store_inputs else None,
        next_ids=windows.next_ids if plan.store_inputs else None,
        wanted=windows.wanted,
        labels=labels,
        label_offsets=counted[windows.offsets],
    )

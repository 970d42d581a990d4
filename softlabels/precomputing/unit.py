"""A work unit on its way: source rows, token ids, records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.format.plan import Plan
from softlabels.format.probes import Probes
from softlabels.format.records import VIEW_PARAMS, Records, join
from softlabels.format.summary import UnitSummary
from softlabels.inputs.digests import DIGEST_TYPE, input_digests, unit_digest
from softlabels.inputs.windows import Windows
from softlabels.labels import Labels, soft
from softlabels.progress import Seen
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
        windows: its token ids, a window a record; or its arrays.
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
        tokens, seen: of all its batches.
    """

    records: Records
    summary: UnitSummary
    probes: Probes | None
    tokens: int
    seen: Seen


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


def identity_of(windows: Windows, unit: Unit, digests: Sequence[bytes]) -> pa.Table:
    """Who each record is, and the digests of what it was made from; see `Records.identity`."""
    rows = windows.rows
    views = np.zeros(len(windows), np.int32) if windows.views is None else windows.views
    told = {} if windows.told is None else {VIEW_PARAMS: pa.array(windows.told, pa.string())}
    return pa.table(
        {
            "key": unit.keys.take(pa.array(rows)),
            "part": pa.array(windows.parts, pa.int32()),
            "view": pa.array(views, pa.int32()),
            "source_start": pa.array(windows.starts, pa.int32()),
            "source_length": pa.array(windows.source_lengths, pa.int32()),
            "input_digest": pa.array([digests[row] for row in rows], DIGEST_TYPE),
            "prepared_digest": pa.array(windows.digests, DIGEST_TYPE),
            **told,
        }
    )


def records_of(windows: Windows, labels: Labels, identity: pa.Table, plan: Plan) -> Records:
    """Labels of the wanted positions as the records that are written."""
    if plan.selection.name == Dense.name and plan.make_codec().ordered:
        labels = soft(labels).sorted()
    counted = np.concatenate([[0], np.cumsum(windows.wanted)])
    return Records(
        identity=identity,
        token_offsets=windows.offsets,
        token_ids=windows.token_ids if plan.store_inputs else None,
        next_ids=None if windows.token_ids is None or not plan.store_inputs else windows.next_ids,
        wanted=windows.wanted,
        labels=labels,
        label_offsets=counted[windows.offsets],
    )

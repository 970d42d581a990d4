"""Everything that a set tells about itself, as numbers: one pass over it, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import CorruptShardError
from softlabels.format.plan import Plan
from softlabels.labelset.reader import LabelSet
from softlabels.looking.alignment import Alignment, AlignmentCheck
from softlabels.looking.beliefs import Distributions, beliefs
from softlabels.looking.blocks import blocks, distance, following, sample
from softlabels.looking.fidelity import Fidelity, fidelity
from softlabels.looking.findings import Findings, Surprising, Suspect
from softlabels.looking.spreads import Spreads
from softlabels.looking.throughput import throughput

# As many positions take some ten seconds on one core at k = 64.
DEFAULT_POSITIONS = 1_000_000
_MOST_FINDINGS, _MOST_REASONS, _KEYS_OF_REASON = 16, 20, 5
_LENGTH_BINS = 40


@dataclass(frozen=True)
class Rejected:
    """Samples that were not labelled, or not whole.

    Attributes:
        reason: in the words of the run.
        count: of samples and windows.
        keys: of the first few.
    """

    reason: str
    count: int
    keys: tuple[str | int, ...]


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        records, positions: that were read.
        whole: whether these are all of the set; else they are a seeded sample of its records.
        distributions: of what the teacher believes: see `Distributions.to_json` and `Spreads`.
        lengths: a histogram of tokens in a record, of arrays of positions: edges and counts.
        column_bytes: compressed, of the shards, by column; "footers" are what is in none.
        surprising: records whose hard labels surprise the teacher most.
        suspects: positions whose hard label the teacher does not believe.
        alignment: None where the set has no tokens, or its classes are none.
        fidelity: to the dense logits of the probes, by temperature; empty without any.
        rejected: why, the most frequent reason first.
        throughput: of the run that made it: see `throughput`; None where that is not known.
    """

    records: int
    positions: int
    whole: bool
    distributions: dict[str, Any]
    lengths: dict[str, Any]
    column_bytes: dict[str, int]
    surprising: list[Surprising]
    suspects: list[Suspect]
    alignment: Alignment | None
    fidelity: list[Fidelity]
    rejected: list[Rejected]
    throughput: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def audit(
    labels: LabelSet,
    *,
    positions: int = DEFAULT_POSITIONS,
    seed: int = 0,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
) -> Audit:
    """Look at a set.

    Args:
        positions: that are read: of a larger set, those of a seeded sample of its records.
        seed: of the sample.
        temperatures: of the fidelity.

    Raises:
        InputError: positions is not at least 1.
        CorruptShardError: the set is damaged.
    """
    chosen = sample(labels, positions=positions, seed=seed)
    plan = labels.plan
    distributions: Distributions | Spreads
    soft = plan.kind == "categorical"
    distributions = Distributions(plan.teacher.classes) if soft else Spreads(plan)
    check = AlignmentCheck()
    findings = Findings(_MOST_FINDINGS, ahead=distance(plan))
    lengths = [np.zeros(0, np.int64)]
    for _, records in blocks(labels, chosen.numbers):
        lengths.append(np.diff(records.token_offsets))
        if isinstance(distributions, Spreads):
            distributions.add(records.labels)
            continue
        hard = following(records, plan)
        found = beliefs(records.soft, hard)
        distributions.add(found, records.soft.k)
        check.add(records, plan)
        findings.add(records, found, hard)
    return Audit(
        records=len(chosen.numbers),
        positions=distributions.positions,
        whole=chosen.whole,
        distributions=distributions.to_json(),
        lengths=_histogram(np.concatenate(lengths), plan),
        column_bytes=_column_bytes(labels),
        surprising=findings.surprising,
        suspects=findings.suspects,
        alignment=check.found(),
        fidelity=fidelity(labels, temperatures),
        rejected=_rejected(labels),
        throughput=throughput(labels),
    )


def _histogram(lengths: NDArray[np.int64], plan: Plan) -> dict[str, Any]:
    longest = int(lengths.max(initial=1))
    width = max(1, math.ceil(longest / _LENGTH_BINS))
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    known = len(lengths) > 0
    return {
        "of": "positions" if plan.preparation.kind == "array" else "tokens",
        "count": len(lengths),
        "mean": float(lengths.mean()) if known else math.nan,
        "median": float(np.median(lengths)) if known else math.nan,
        "longest": longest if known else 0,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _column_bytes(labels: LabelSet) -> dict[str, int]:
    found: Counter[str] = Counter()
    for receipt in labels.receipts:
        metadata = labels.open_shard(receipt).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                found[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
    found["footers"] = sum(receipt.bytes for receipt in labels.receipts) - sum(found.values())
    return dict(found.most_common())


def _rejected(labels: LabelSet) -> list[Rejected]:
    counts: Counter[str] = Counter()
    keys: dict[str, list[str | int]] = {}
    for receipt in labels.receipts:
        if receipt.rejects:
            for reject in labels.open_shard(receipt).summary().rejects:
                if not isinstance(reject, dict):
                    raise CorruptShardError(f"{receipt.path}: its footer holds no rejects")
                reason = str(reject.get("reason"))
                counts[reason] += 1
                keys.setdefault(reason, []).append(reject.get("key", ""))
                del keys[reason][_KEYS_OF_REASON:]
    return [
        Rejected(reason, count, tuple(keys[reason]))
        for reason, count in counts.most_common(_MOST_REASONS)
    ]

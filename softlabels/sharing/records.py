"""Samples of another tool to records: checked, with tails and the log-probs of hard labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from softlabels.errors import InputError
from softlabels.format.records import Records
from softlabels.inputs.digests import DIGEST_TYPE, input_digests, prepared_digest, unit_digest
from softlabels.labels import SoftLabels
from softlabels.sharing.formats.sample import Int64s, Sample
from softlabels.sharing.formats.windows import ALONE

TOKENS = "input_ids"


@dataclass(frozen=True)
class Rules:
    """What becomes of samples.

    Attributes:
        classes: V.
        k: entries at a position.
        cut: whether positions with more keep the likeliest k; else they are refused.
        shift: positions by which labels are moved.
        rounding: how far a sum of probabilities may be above 1; it is scaled to 1.
    """

    classes: int
    k: int
    cut: bool
    shift: int
    rounding: float


def problem(sample: Sample, rules: Rules) -> str | None:
    """Why a sample cannot be used, for people; None if it can."""
    used = sample.log_probs > -np.inf
    if not len(sample.token_ids):
        return "it has no tokens"
    if int(sample.token_ids.max()) >= rules.classes:
        return f"token id {sample.token_ids.max()} is none of {rules.classes} classes"
    if not len(sample.shifted(rules.shift).positions):
        return "none of its positions has labels"
    ids = np.where(used, sample.ids, -1 - np.arange(sample.ids.shape[1]))
    if int(ids.max()) >= rules.classes:
        return f"class id {ids.max()} is none of {rules.classes}"
    if (np.diff(np.sort(ids, 1), axis=1) == 0).any():
        return "a class is kept twice at one position"
    most = int(used.sum(1).max())
    if most > rules.k and not rules.cut:
        return f"{most} classes at a position, the first samples have {rules.k}: say k (--k)"
    highest = float(np.exp(sample.log_probs.astype(np.float64)).sum(1).max())
    if not highest <= 1 + rules.rounding:
        return (
            f"the probabilities at a position sum to {highest:.4g}; if the log-probs were rounded "
            "that far, have them scaled to 1 with rescale (--rescale)"
        )
    return None


def check(sample: Sample, rules: Rules) -> None:
    """Raise `InputError` for a sample that cannot be used."""
    if (found := problem(sample, rules)) is not None:
        raise InputError(
            f"{sample.where}: {found}. Mend it, or have such samples noted as rejects with "
            'on_error="skip" (--on-error skip)'
        )


def rows_digest(samples: Sequence[Sample], keys: Sequence[str | int], rules: Rules) -> str:
    """Of a unit's rows, their labels and what becomes of them."""
    tokens = input_digests(_tokens(samples), [TOKENS])
    return unit_digest(keys, [_digest(*one, rules) for one in zip(tokens, samples, strict=True)])


def _digest(tokens: bytes, sample: Sample, rules: Rules) -> bytes:
    found = xxhash.xxh3_64(tokens)
    found.update(repr((rules.shift, rules.rounding, sample.ids.shape)).encode())
    if sample.window != ALONE:
        found.update(repr(sample.window).encode())
    for values, kind in ((sample.positions, "<i8"), (sample.ids, "<i8"), (sample.log_probs, "<f4")):
        found.update(np.ascontiguousarray(values, kind).tobytes())
    return found.digest()


def records_of(
    samples: Sequence[Sample], keys: Sequence[str | int], rules: Rules, *, key_type: str
) -> Records:
    """Records of samples that can be used, their labels moved.

    Raises:
        InputError: the keys are not all of one kind.
    """
    moved = [sample.shifted(rules.shift) for sample in samples]
    lengths = [len(sample.token_ids) for sample in moved]
    wanted = [np.isin(np.arange(n), s.positions) for n, s in zip(lengths, moved, strict=True)]
    hard = [np.append(s.token_ids[1:], -1)[s.positions] for s in moved]
    return Records(
        identity=_identity(moved, keys, key_type),
        token_offsets=_ends(lengths),
        token_ids=np.concatenate([np.empty(0, np.int64), *(s.token_ids for s in moved)]),
        next_ids=np.full(len(moved), -1, np.int64),
        wanted=np.concatenate([np.empty(0, bool), *wanted]),
        labels=_labels(moved, np.concatenate([np.empty(0, np.int64), *hard]), rules),
        label_offsets=_ends([len(sample.positions) for sample in moved]),
    )


def _ends(lengths: Sequence[int]) -> Int64s:
    return np.append(0, np.cumsum(lengths, dtype=np.int64))


def _tokens(samples: Sequence[Sample]) -> pa.Table:
    """Of each record the tokens of its sample, as data would have them that is joined to it."""
    lists = [s.token_ids if s.source_ids is None else s.source_ids for s in samples]
    return pa.table({TOKENS: pa.array(lists, pa.list_(pa.int64()))})


def _identity(samples: Sequence[Sample], keys: Sequence[str | int], key_type: str) -> pa.Table:
    try:
        # Inferred first: told the type, Arrow makes numbers of floats.
        key = pa.array(keys)
        if len(key) and pa.types.is_integer(key.type) != (key_type == "int64"):
            raise pa.ArrowInvalid(f"found {key.type}")
        key = key.cast(pa.string() if key_type == "string" else pa.int64())
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(f"the keys are not all {key_type}: {error}") from None
    windows = [sample.window for sample in samples]
    lengths = [
        len(sample.token_ids) if window.length is None else window.length
        for sample, window in zip(samples, windows, strict=True)
    ]
    digests = input_digests(_tokens(samples), [TOKENS])
    prepared = [prepared_digest(sample.token_ids) for sample in samples]
    return pa.table(
        {
            "key": key,
            "part": pa.array([window.part for window in windows], pa.int32()),
            "view": pa.array(np.zeros(len(samples), np.int32)),
            "source_start": pa.array([window.start or 0 for window in windows], pa.int32()),
            "source_length": pa.array(lengths, pa.int32()),
            "input_digest": pa.array(digests, DIGEST_TYPE),
            "prepared_digest": pa.array(prepared, DIGEST_TYPE),
        }
    )


def _labels(samples: Sequence[Sample], hard: Int64s, rules: Rules) -> SoftLabels:
    """Of batch shape (positions,): k entries in descending log-prob, scaled where they must be."""
    width = max([rules.k, *(sample.ids.shape[1] for sample in samples)])
    rows = sum(len(sample.positions) for sample in samples)
    ids, log_probs = np.zeros((rows, width), np.int64), np.full((rows, width), -np.inf, np.float32)
    done = 0
    for sample in samples:
        place = slice(done, done := done + len(sample.positions))
        ids[place, : sample.ids.shape[1]] = sample.ids
        log_probs[place, : sample.ids.shape[1]] = sample.log_probs
    found = SoftLabels(
        ids=torch.from_numpy(ids), log_probs=torch.from_numpy(log_probs), classes=rules.classes
    )
    found = found.sorted().first(rules.k)
    found = replace(found, ids=found.ids.masked_fill(found.log_probs == -torch.inf, 0))
    scaled = replace(found, log_probs=_scaled(found.log_probs))
    next_ids = torch.from_numpy(hard).unsqueeze(-1)
    is_it = (scaled.ids == next_ids) & (scaled.log_probs > -torch.inf)
    known = scaled.log_probs.masked_fill(~is_it, -torch.inf).amax(-1)
    # That it is not among the kept classes says nothing of its log-prob but a bound.
    known = known.masked_fill(~is_it.any(-1), torch.nan)
    return replace(scaled, hard_log_probs=known).with_estimated_tails((1.0,))


def _scaled(log_probs: Tensor) -> Tensor:
    """Log-probs that sum to 1 where they summed to more."""
    excess = log_probs.double().logsumexp(-1, keepdim=True).clamp(min=0)
    return (log_probs.double() - excess).float()

"""Records to one padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import CorruptShardError, quoted
from softlabels.labels import NO_LABEL, SoftLabels
from softlabels.labelset.records import Records

# What `collate` puts into a batch.
FIELDS = ("input_ids", "attention_mask", "soft_labels", "next_ids", "key", "part")


@dataclass(frozen=True)
class Inputs:
    """What a record's labels were made from.

    Attributes:
        token_ids: int64, (T,).
        next_id: the token after the last; negative where it was not seen.
    """

    token_ids: Tensor
    next_id: int


@dataclass(frozen=True)
class Picked:
    """One record within a decoded row group."""

    records: Records
    row: int

    @cached_property
    def tokens(self) -> slice:
        """Its tokens in the row group."""
        offsets = self.records.token_offsets
        return slice(int(offsets[self.row]), int(offsets[self.row + 1]))

    @cached_property
    def positions(self) -> slice:
        """Its labelled positions in the row group."""
        offsets = self.records.label_offsets
        return slice(int(offsets[self.row]), int(offsets[self.row + 1]))

    @property
    def inputs(self) -> Inputs:
        """Its tokens, of a set that carries its inputs.

        Raises:
            CorruptShardError: there are none.
        """
        records = self.records
        if records.token_ids is None or records.next_ids is None:
            raise CorruptShardError(
                f"key {quoted(self.identity('key'))} has no token ids, but the plan says that they "
                "are stored; softlabels writes no such set: label again"
            )
        return Inputs(torch.from_numpy(records.token_ids[self.tokens]), records.next_ids[self.row])

    def identity(self, name: str) -> Any:
        """A field of its identity, e.g. its key."""
        return self.records.identity.column(name)[self.row].as_py()


def collate(picked: Sequence[Picked], inputs: Sequence[Inputs], *, pad_id: int) -> dict[str, Any]:
    """Pad records on the right.

    Args:
        picked: the records, B of them.
        inputs: of each.
        pad_id: what stands after a record's end in input_ids.

    Returns:
        `input_ids` and `attention_mask`, int64 (B, T); `soft_labels` of batch shape (B, T);
        `next_ids` int64 (B,), the token after each record's last or −100; `key`, a list;
        `part`, int64 (B,).
    """
    longest = max(len(one.token_ids) for one in inputs)
    input_ids = torch.full((len(picked), longest), pad_id, dtype=torch.int64)
    attention = torch.zeros_like(input_ids)
    for row, one in enumerate(inputs):
        input_ids[row, : len(one.token_ids)] = one.token_ids
        attention[row, : len(one.token_ids)] = 1
    following = [NO_LABEL if one.next_id < 0 else int(one.next_id) for one in inputs]
    return {
        "input_ids": input_ids,
        "attention_mask": attention,
        "soft_labels": pad_labels(picked, longest),
        "next_ids": torch.tensor(following),
        "key": [one.identity("key") for one in picked],
        "part": torch.tensor([one.identity("part") for one in picked]),
    }


def pad_labels(picked: Sequence[Picked], longest: int) -> SoftLabels:
    """Labels of batch shape (B, longest), masked where a token has none.

    Masked entries are finite: ids and log-probs 0, log tails −inf, hard-label log-probs NaN.
    """
    mask = torch.zeros(len(picked), longest, dtype=torch.bool)
    for row, one in enumerate(picked):
        wanted = torch.from_numpy(one.records.wanted[one.tokens])
        mask[row, : len(wanted)] = wanted
    first = picked[0].records.labels

    def fill(name: str, value: float) -> Tensor | None:
        example: Tensor | None = getattr(first, name)
        if example is None:
            return None
        out = example.new_empty((*mask.shape, *example.shape[1:]))
        for row, one in enumerate(picked):
            values = getattr(one.records.labels, name)[one.positions]
            tokens = one.tokens.stop - one.tokens.start
            if len(values) == tokens:
                out[row, :tokens] = values
                out[row, tokens:] = value
            else:
                out[row] = value
                out[row, mask[row]] = values
        return out

    ids, log_probs = fill("ids", 0), fill("log_probs", 0)
    assert ids is not None
    assert log_probs is not None
    return SoftLabels(
        ids=ids,
        log_probs=log_probs,
        logsumexp=fill("logsumexp", 0),
        log_tails=fill("log_tails", -torch.inf),
        temperatures=first.temperatures,
        hard_log_probs=fill("hard_log_probs", torch.nan),
        mask=mask,
    )

"""Records to one padded batch of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from softlabels.errors import CorruptShardError, quoted
from softlabels.labels import NO_LABEL
from softlabels.labelset.records import Records, scatter

# What `collate` puts into a batch.
FIELDS = ("input_ids", "attention_mask", "soft_labels", "next_ids", "key", "part")


def collate(records: Records, *, pad_id: int) -> dict[str, Any]:
    """Pad records on the right.

    Args:
        records: B of them, with their token ids.
        pad_id: what stands after a record's end in input_ids.

    Returns:
        `input_ids` and `attention_mask`, int64 (B, T); `soft_labels` of batch shape (B, T), masked
        where a token has none; `next_ids` int64 (B,), the token after each record's last or −100;
        `key`, a list; `part`, int64 (B,).

    Raises:
        CorruptShardError: there are no token ids.
    """
    identity = records.identity
    if records.token_ids is None or records.next_ids is None:
        raise CorruptShardError(
            f"key {quoted(identity['key'][0].as_py())} has no token ids, but the plan says that "
            "they are stored; softlabels writes no such set: label again"
        )
    lengths = np.diff(records.token_offsets)
    shape = (len(records), int(lengths.max()))
    # Where each token goes in a batch laid flat.
    starts = np.arange(len(records)) * shape[1] - records.token_offsets[:-1]
    places = np.arange(len(records.token_ids)) + np.repeat(starts, lengths)
    input_ids = np.full(shape, pad_id, np.int64)
    attention = np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    input_ids.ravel()[places] = records.token_ids
    attention.ravel()[places] = 1
    mask.ravel()[places] = records.wanted
    following = np.where(records.next_ids < 0, NO_LABEL, records.next_ids)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "soft_labels": scatter(records.labels, torch.from_numpy(mask)),
        "next_ids": torch.from_numpy(following.astype(np.int64)),
        "key": identity["key"].to_pylist(),
        "part": torch.from_numpy(identity["part"].to_numpy().astype(np.int64)),
    }

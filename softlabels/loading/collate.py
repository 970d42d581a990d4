"""Records to one batch of tensors: a row each, padded, or several in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.arrow import numpy_of
from softlabels.errors import CorruptShardError, InputError, quoted
from softlabels.format.records import Records, scatter
from softlabels.labels import NO_LABEL

Int64s = NDArray[np.int64]

# What a batch has of its own; packed ones have the second line too.
PADDED = ("input_ids", "attention_mask", "soft_labels", "next_ids", "key", "part")
PACKED = ("position_ids", "segment_ids", "cu_seqlens")
# Of several teachers, where they are compared.
COMPARED = ("disagreement",)
FIELDS = (*PADDED, *PACKED, *COMPARED)
# Of records that are arrays.
ARRAY_FIELDS = ("inputs", "lengths", "soft_labels", "key", "part", "view", *COMPARED)


def collate(records: Records, *, pad_id: int) -> dict[str, Any]:
    """Pad records on the right, a row each.

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
    lengths = np.diff(records.token_offsets)
    shape = (len(records), int(lengths.max()))
    tokens = _tokens(records, np.arange(len(records)) * shape[1], shape, pad_id=pad_id)
    return {**tokens, "next_ids": torch.from_numpy(_following(records)), **_identity(records)}


def collate_packed(records: Records, rows: Int64s, *, length: int, pad_id: int) -> dict[str, Any]:
    """Put several records into a row, one after another, and pad it to one length.

    Args:
        records: R of them, none longer than `length` and none too much for its row.
        rows: row i has the records rows[i] up to rows[i + 1], (B + 1,).
        length: T, tokens in a row.
        pad_id: what stands after a row's last record in input_ids.

    Returns:
        as `collate`, and: `next_ids` int64 (B, T), at each record's last token the one that
        follows it, elsewhere −100; `position_ids` int64 (B, T), which start again at every record;
        `segment_ids` int64 (B, T), 1, 2, … for a row's records and 0 for padding: see
        `block_causal_mask`; `cu_seqlens` int32, where records and paddings begin in the rows laid
        end to end, then B·T, as FlashAttention's variable-length functions take them; `key` and
        `part` of the R records in order.
    """
    lengths = np.diff(records.token_offsets)
    row = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
    # Where each record begins in its row: what the row's records before it take.
    columns = records.token_offsets[:-1] - records.token_offsets[rows[:-1]][row]
    shape = (len(rows) - 1, length)
    starts = row * length + columns
    batch = _tokens(records, starts, shape, pad_id=pad_id)
    places = _places(records, starts)
    position_ids, segment_ids, next_ids = np.zeros((3, *shape), np.int64)
    within = np.arange(len(places)) - np.repeat(records.token_offsets[:-1], lengths)
    position_ids.ravel()[places] = within
    segment_ids.ravel()[places] = np.repeat(np.arange(len(records)) - rows[:-1][row] + 1, lengths)
    next_ids.fill(NO_LABEL)
    next_ids.ravel()[starts + lengths - 1] = _following(records)
    filled = records.token_offsets[rows[1:]] - records.token_offsets[rows[:-1]]
    paddings = np.arange(len(filled)) * length + filled
    ends = np.concatenate([starts, paddings[filled < length], [shape[0] * length]])
    return {
        **batch,
        "next_ids": torch.from_numpy(next_ids),
        "position_ids": torch.from_numpy(position_ids),
        "segment_ids": torch.from_numpy(segment_ids),
        "cu_seqlens": torch.from_numpy(np.sort(ends).astype(np.int32)),
        **_identity(records),
    }


def collate_arrays(records: Records, *, single: bool) -> dict[str, Any]:
    """Arrays to one tensor, zeros after the end of those that are shorter along the first axis.

    Args:
        records: B of them, with their arrays.
        single: each has one label, which has no axis of positions.

    Returns:
        `inputs`, (B, …) in the arrays' own dtype; `lengths`, of their first axes, int64 (B,);
        `soft_labels` of batch shape (B,), or (B, P) masked where a record has fewer
        positions; `key`, a list; `part` and `view`, int64 (B,).

    Raises:
        InputError: the arrays differ in more than their first axis.
    """
    arrays = records.arrays
    assert arrays is not None
    lengths = np.diff(records.token_offsets)
    columns = 1 if single else int(lengths.max())
    mask = np.zeros(len(records) if single else (len(records), columns), bool)
    mask.ravel()[_places(records, np.arange(len(records)) * columns)] = records.wanted
    view = numpy_of(records.identity["view"]).astype(np.int64)
    return {
        **_stacked(arrays, records),
        "soft_labels": scatter(records.labels, torch.from_numpy(mask)),
        **_identity(records),
        "view": torch.from_numpy(view),
    }


def _stacked(arrays: Sequence[NDArray[Any]], records: Records) -> dict[str, Any]:
    first, lengths = arrays[0], np.asarray([len(array) for array in arrays])
    if all(array.shape == first.shape and array.dtype == first.dtype for array in arrays):
        return {
            "inputs": torch.from_numpy(np.stack(arrays)),
            "lengths": torch.from_numpy(lengths),
        }
    for place, array in enumerate(arrays):
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            keys = records.identity["key"]
            raise InputError(
                f"key {quoted(keys[place].as_py())} has an array of {array.dtype}, shape "
                f"{array.shape}, and key {quoted(keys[0].as_py())} of {first.dtype}, shape "
                f"{first.shape}; a batch takes arrays that differ along the first axis alone: "
                "bring them to one shape before they are labelled (a view may do it), or choose "
                "batch_size=1"
            )
    padded = np.zeros((len(arrays), int(lengths.max()), *first.shape[1:]), first.dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return {"inputs": torch.from_numpy(padded), "lengths": torch.from_numpy(lengths)}


def block_causal_mask(
    segment_ids: Tensor, *, causal: bool = True, dtype: torch.dtype = torch.bool
) -> Tensor:
    """Which tokens a token may look at: those of its own record, up to itself where causal.

    Args:
        segment_ids: int64 (B, T), of a packed batch.
        causal: False for students that see whole records, as teachers of `hard_label_alignment`
            "same" do: encoders, say.
        dtype: bool, or a float one for attention that adds its mask to the scores: see
            `mask_dtype`.

    Returns:
        (B, 1, T, T), the 4-dimensional attention_mask of transformers and of
        `scaled_dot_product_attention`: True, or 0, where a token may look, and False, or the
        lowest finite number, where not. A padding looks at paddings, so that no row of it is empty.
    """
    same = segment_ids.unsqueeze(-1) == segment_ids.unsqueeze(-2)
    mask = (same.tril() if causal else same).unsqueeze(1)
    if dtype == torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def mask_dtype(model: Any, computed_in: torch.dtype) -> torch.dtype:
    """The dtype of `block_causal_mask` for a model of transformers.

    Its eager attention adds the mask to the scores: of a bool it would add 0 and 1, and every
    token would see all others.

    Args:
        computed_in: the dtype of the scores.
    """
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return computed_in if attention == "eager" else torch.bool


def _tokens(
    records: Records, starts: Int64s, shape: tuple[int, int], *, pad_id: int
) -> dict[str, Any]:
    """What covers every token, the records beginning at `starts` of the batch laid flat."""
    if records.token_ids is None or records.next_ids is None:
        raise CorruptShardError(
            f"key {quoted(records.identity['key'][0].as_py())} has no token ids, but the plan says "
            "that they are stored; softlabels writes no such set: label again"
        )
    if len(records.wanted) == math.prod(shape):  # no padding: they stand where they will
        input_ids, mask = records.token_ids.reshape(shape), records.wanted.reshape(shape)
        attention = np.ones(shape, np.int64)
    else:
        places = _places(records, starts)
        input_ids = np.full(shape, pad_id, np.int64)
        attention = np.zeros(shape, np.int64)
        mask = np.zeros(shape, bool)
        input_ids.ravel()[places] = records.token_ids
        attention.ravel()[places] = 1
        mask.ravel()[places] = records.wanted
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "soft_labels": scatter(records.labels, torch.from_numpy(mask)),
    }


def _places(records: Records, starts: Int64s) -> Int64s:
    """Where each token goes in a batch laid flat."""
    shifts = np.repeat(starts - records.token_offsets[:-1], np.diff(records.token_offsets))
    places: Int64s = np.arange(len(shifts)) + shifts
    return places


def _following(records: Records) -> Int64s:
    """The token after each record's last or −100, (R,)."""
    assert records.next_ids is not None
    return np.where(records.next_ids < 0, NO_LABEL, records.next_ids).astype(np.int64)


def _identity(records: Records) -> dict[str, Any]:
    part = numpy_of(records.identity["part"]).astype(np.int64)
    return {"key": records.identity["key"].to_pylist(), "part": torch.from_numpy(part)}

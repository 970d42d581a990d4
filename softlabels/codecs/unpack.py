"""Planes to ids and log-probs: on a CPU by its engine, on another device by torch, all equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import engines, unpack_torch
from softlabels.codecs.idtable import IdTable
from softlabels.codecs.planes import Planes

CPU = torch.device("cpu")


def unpack_ids(planes: Planes, k: int, table: IdTable, device: torch.device = CPU) -> Tensor:
    """Class ids, int64 (N, k), 0 where unused.

    Args:
        device: where they are unpacked: what is copied there is the packed bytes.

    Raises:
        CorruptShardError: a rank is not below V.
    """
    first, rest, starts = planes.gaps.first, planes.gaps.rest, planes.starts
    if device.type != "cpu" and table.listed:
        packed, large, bounds = (
            torch.from_numpy(array).to(device) for array in (first, rest.astype(np.int64), starts)
        )
        return unpack_torch.ids(packed, large, bounds, k, of_rank=table.ids_on(device))
    if table.listed:
        return torch.from_numpy(engines.cpu().ids(first, rest, starts, k, of_rank=table.ids)).to(
            device
        )
    ranks = engines.cpu().ranks(first, rest, starts, k, classes=table.classes)
    used = np.arange(k) < planes.counts[:, None]
    return torch.from_numpy(np.where(used, table.to_ids(ranks), 0)).to(device)


def unpack_entries(
    codes: NDArray[np.uint8],
    planes: Planes,
    k: int,
    table: IdTable,
    log_kept: NDArray[np.float64] | None,
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor]:
    """`unpack_ids` and `unpack_log_probs` of the same entries, faster than one after the other."""
    if device.type == "cpu" and table.listed:
        ids, log_probs = engines.cpu().entries(
            planes.gaps.first,
            planes.gaps.rest,
            codes,
            planes.starts,
            k,
            of_rank=table.ids,
            log_kept=log_kept,
        )
        return torch.from_numpy(ids), torch.from_numpy(log_probs)
    found = unpack_log_probs(codes, planes, k, log_kept, device)
    return unpack_ids(planes, k, table, device), found


def unpack_log_probs(
    codes: NDArray[np.uint8],
    planes: Planes,
    k: int,
    log_kept: NDArray[np.float64] | None,
    device: torch.device = CPU,
) -> Tensor:
    """Log-probs, float32 (N, k), of value codes (`softlabels.codecs.curves`); −∞ where unused.

    Args:
        codes: one for each entry, (E,).
        log_kept: the log of what they sum to, (N,). None: the logs of the codes' values.
    """
    if device.type == "cpu":
        return torch.from_numpy(engines.cpu().log_probs(codes, planes.starts, k, log_kept))
    packed, starts = (torch.from_numpy(a).to(device) for a in (codes, planes.starts))
    kept = None if log_kept is None else torch.from_numpy(log_kept).to(device)
    return unpack_torch.log_probs(packed, starts, k, kept)


def spread(values: NDArray[Any], planes: Planes, k: int, fill: float) -> NDArray[Any]:
    """Values of each entry, (E,), as rows of a position, (N, k); `fill` where unused."""
    if len(values) == len(planes.counts) * k:
        return values.reshape(-1, k)
    out = np.full((len(planes.counts), k), fill, values.dtype)
    out[np.arange(k) < planes.counts[:, None]] = values
    return out

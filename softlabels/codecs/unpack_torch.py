"""As `unpack_numpy`, in torch, for packed bytes that lie on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.codecs.curves import WEIGHT_BITS, code_logs, code_weights
from softlabels.codecs.ranks import LARGE, beyond


def ids(first: Tensor, rest: Tensor, starts: Tensor, k: int, *, of_rank: Tensor) -> Tensor:
    """See `unpack_numpy.ids`; `rest` is int64."""
    steps, large = first.long(), (first == LARGE).nonzero().squeeze(1)
    if len(large) != len(rest):
        raise beyond()
    steps[large] += rest
    used = _used(starts, k)
    ranks = (_spread(steps + 1, used).cumsum(1) - 1).masked_fill_(~used, 0)
    if ranks.numel() and int(ranks.max()) >= len(of_rank):
        raise beyond()
    return of_rank[ranks].masked_fill_(~used, 0)


def log_probs(codes: Tensor, starts: Tensor, k: int, log_kept: Tensor | None) -> Tensor:
    """See `unpack_numpy.log_probs`."""
    padded = _spread(codes.long(), _used(starts, k))
    out = torch.from_numpy(code_logs()).to(codes.device)[padded]
    if log_kept is not None:
        weights = torch.from_numpy(code_weights()).to(codes.device)[padded].sum(1).clamp_(min=1)
        out += (log_kept - (weights.double() / 2.0**WEIGHT_BITS).log()).float().unsqueeze(1)
    return out


def _used(starts: Tensor, k: int) -> Tensor:
    return torch.arange(k, device=starts.device) < starts.diff().unsqueeze(1)


def _spread(values: Tensor, used: Tensor) -> Tensor:
    """Values of each entry as rows of a position, 0 where unused."""
    if values.numel() == used.numel():
        return values.view(used.shape)
    out = values.new_zeros(used.shape)
    out[used] = values
    return out

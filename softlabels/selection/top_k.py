"""TopK: the k largest logits of every position, and what the others sum to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.selection import reduce_torch

# A block of float32 rows that stays in a CPU's cache between the passes over it
# (benchmarks/bench_selection.py); on an accelerator all rows go at once.
CACHED_BYTES = 4 << 20
# Where each thread takes a row by itself: enough rows for every one of them.
SHARED_BYTES = 256 << 20
# What narrower logits are widened to at a time: memory of such a size is used again.
WIDENED_BYTES = 16 << 20


@dataclass(frozen=True)
class TopK:
    """Keep the k largest logits, in descending logit, equal ones by ascending id.

    Args:
        k: how many classes to keep, at least 1 and at most the number of classes.
    """

    k: int
    name: ClassVar[str] = "top_k"
    algorithm: ClassVar[str] = "block-max/1; ties by ascending id"
    sampled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InputError(f"TopK: k is {self.k!r}; it must be a whole number, at least 1")

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""
        return {}

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""
        return cls(k)

    def for_classes(self, classes: int) -> Self:
        """This selection; raises `InputError` when there are fewer classes than k."""
        if self.k > classes:
            raise InputError(
                f"k = {self.k} is more than the teacher's {classes} classes; "
                f"choose k between 1 and {classes}"
            )
        return self

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        return f"top {self.k} of {classes:,} classes"

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float],
        uniforms: Tensor | None = None,
    ) -> SoftLabels:
        """Reduce logits to labels, in float32 whatever their dtype.

        Args:
            logits: float, shape (N, V). −inf forbids a class; NaN and +inf are not checked here.
            hard_labels: int64, shape (N,); −1 where there is none.
            temperatures: where the log tail mass is computed.
            uniforms: not used: nothing is left to chance.

        Returns:
            batch shape (N,), on the logits' device.

        Raises:
            InputError: shapes that do not fit, k > V, or a temperature that is not positive.
        """
        classes = logits.shape[-1]
        check(self.for_classes(classes).name, logits, hard_labels, temperatures)
        # Every value of a narrower dtype is a float32, and turns back into the same bits.
        narrow = logits.dtype if logits.dtype.itemsize <= 4 else torch.float32
        at = sorted({1.0, *temperatures}, reverse=True)
        values, ids, rest_max, sums = _reduce(logits, self.k, at)
        # log Σ_{j ∉ K} exp(z_j / T), and the same over K
        unkept = sums.log() + torch.stack([rest_max / t for t in at], -1)
        kept = torch.stack([torch.logsumexp(values / t, -1) for t in at], -1)
        # unkept − total would lose a small kept mass, which is read back as 1 − tail.
        tails = logsigmoid(unkept - kept)
        # One by one: a list of numbers as an index is copied to a device, which is waited for.
        stored = [tails[:, at.index(t)] for t in temperatures]
        one = at.index(1.0)
        logsumexp = torch.logaddexp(unkept[:, one], kept[:, one])
        hard = logits.gather(-1, hard_labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).float()
        return SoftLabels(
            ids=ids,
            log_probs=values - logsumexp.unsqueeze(-1),
            logits=values.to(narrow),
            logsumexp=logsumexp,
            log_tails=torch.stack(stored, -1) if stored else None,
            temperatures=tuple(temperatures),
            hard_log_probs=(hard - logsumexp).masked_fill(hard_labels < 0, math.nan),
            classes=classes,
        )


def check(name: str, logits: Tensor, hard_labels: Tensor, temperatures: Sequence[float]) -> None:
    """Refuse what no selection takes.

    Raises:
        InputError: shapes that do not fit, or a temperature that is not positive.
    """
    if logits.ndim != 2 or hard_labels.shape != logits.shape[:1]:
        raise InputError(
            f"{name}: logits have shape {tuple(logits.shape)} and hard_labels "
            f"{tuple(hard_labels.shape)}; expected (N, V) and (N,)"
        )
    for temperature in temperatures:
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature {temperature} is not a positive number")


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row, float32, and their ids, equal ones by ascending id."""
    values, ids, _, _ = _reduce(logits, k, (1.0,))
    return values, ids


def _reduce(
    logits: Tensor, k: int, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reduce_torch.reduce` of logits of any dtype, a block of rows at a time."""
    if logits.is_cuda:
        return on_cuda()(logits, k, temperatures)
    reduce, block_bytes = reduce_torch.reduce, math.inf
    if logits.device.type == "cpu":
        reduce, block_bytes = on_cpu()
        if logits.dtype != torch.float32:
            block_bytes = min(block_bytes, WIDENED_BYTES)
    rows = int(max(1, min(len(logits), block_bytes // (4 * logits.shape[-1]))))
    parts = [reduce(block.float(), k, temperatures) for block in logits.split(rows)]
    values, ids, rest_max, sums = (torch.cat(each) for each in zip(*parts, strict=True))
    return values, ids, rest_max, sums


@cache
def on_cpu() -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], int]:
    """What reduces on a CPU, and how many bytes of float32 at a time."""
    try:
        from softlabels.selection import reduce_numba
    except (ImportError, RuntimeError):  # not installed, or nowhere to keep what it compiles
        return reduce_torch.reduce, CACHED_BYTES
    return reduce_numba.reduce, SHARED_BYTES


@cache
def load_compiled() -> None:
    """Begin to load what `on_cpu` uses, in a thread: it takes a second, once a process."""
    Thread(target=largest, args=(torch.zeros(1, 64), 1), name="softlabels-compiled").start()


@cache
def on_cuda() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What reduces on a CUDA device, logits of any dtype."""
    try:
        from softlabels.selection import reduce_triton

        reduce_triton.reduce(torch.zeros(1, 4096, device="cuda"), 1, (1.0,))
    except (ImportError, RuntimeError):  # not installed, or no compiler for what launches it
        return reduce_torch.reduce
    return reduce_triton.reduce

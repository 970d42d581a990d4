"""Which classes of a teacher's logits are kept: logits → SoftLabels, on the teacher's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from softlabels.errors import InputError
from softlabels.labels import SoftLabels, concatenate

# A block of float32 rows that stays in a CPU's cache between the passes over it
# (benchmarks/bench_selection.py); on an accelerator all rows go at once.
_CACHED_BYTES = 4 << 20


@dataclass(frozen=True)
class TopK:
    """Keep the k largest logits, in descending logit, equal ones by ascending id.

    Args:
        k: how many classes to keep, at least 1 and at most the number of classes.
    """

    k: int
    name: ClassVar[str] = "top_k"
    algorithm: ClassVar[str] = "block-max/1; ties by ascending id"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InputError(f"TopK: k is {self.k!r}; it must be a whole number, at least 1")

    def check_classes(self, classes: int) -> None:
        """Raise `InputError` when a teacher of so many classes cannot give k of them."""
        if self.k > classes:
            raise InputError(
                f"k = {self.k} is more than the teacher's {classes} classes; "
                f"choose k between 1 and {classes}"
            )

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, hard_labels: Tensor, *, temperatures: Sequence[float]
    ) -> SoftLabels:
        """Reduce logits to labels, in float32 whatever their dtype.

        Args:
            logits: float, shape (N, V). −inf forbids a class; NaN and +inf are not checked here.
            hard_labels: int64, shape (N,); −1 where there is none.
            temperatures: where the log tail mass is computed.

        Returns:
            batch shape (N,), on the logits' device.

        Raises:
            InputError: shapes that do not fit, k > V, or a temperature that is not positive.
        """
        self._check(logits, hard_labels, temperatures)
        rows = len(logits)
        if logits.device.type == "cpu":
            rows = max(1, _CACHED_BYTES // (4 * logits.shape[-1]))
        parts = [
            self._reduce(chunk.float(), hard, tuple(temperatures))
            for chunk, hard in zip(
                torch.split(logits, rows), torch.split(hard_labels, rows), strict=True
            )
        ]
        labels = concatenate(parts)
        assert labels.logits is not None
        # Every value of a narrower dtype is a float32, and turns back into the same bits.
        narrow = logits.dtype if logits.dtype.itemsize <= 4 else torch.float32
        return replace(labels, logits=labels.logits.to(narrow), classes=logits.shape[-1])

    def _check(self, logits: Tensor, hard_labels: Tensor, temperatures: Sequence[float]) -> None:
        if logits.ndim != 2 or hard_labels.shape != logits.shape[:1]:
            raise InputError(
                f"TopK: logits have shape {tuple(logits.shape)} and hard_labels "
                f"{tuple(hard_labels.shape)}; expected (N, V) and (N,)"
            )
        self.check_classes(logits.shape[-1])
        for temperature in temperatures:
            if not 0 < temperature < math.inf:
                raise InputError(f"temperature {temperature} is not a positive number")

    def _reduce(
        self, logits: Tensor, hard_labels: Tensor, temperatures: tuple[float, ...]
    ) -> SoftLabels:
        if len(logits) == 1:
            # The sum of a single row is split among threads, so its last bits would differ from
            # those of the same row among others.
            twice = self._reduce(logits.expand(2, -1), hard_labels.expand(2), temperatures)
            return twice[:1]
        values, ids, rest_max = top_k(logits, self.k)
        sums = rest_sums(logits, ids, rest_max, temperatures=(1.0, *temperatures))
        tails, totals = [], []
        for temperature, rest in zip((1.0, *temperatures), sums, strict=True):
            # log Σ_{j ∉ K} exp(z_j / T), and the same over K
            unkept = rest.log() + rest_max / temperature
            kept = torch.logsumexp(values / temperature, -1)
            totals.append(torch.logaddexp(unkept, kept))
            # unkept − total would lose a small kept mass, which is read back as 1 − tail.
            tails.append(torch.nn.functional.logsigmoid(unkept - kept))
        logsumexp = totals[0]
        hard = logits.gather(-1, hard_labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logsumexp
        return SoftLabels(
            ids=ids,
            log_probs=values - logsumexp.unsqueeze(-1),
            logits=values,
            logsumexp=logsumexp,
            log_tails=torch.stack(tails[1:], -1) if temperatures else None,
            temperatures=temperatures,
            hard_log_probs=hard.masked_fill(hard_labels < 0, math.nan),
        )


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row, descending, equal ones by ascending id.

    Args:
        logits: float32, shape (N, V), k ≤ V.

    Returns:
        values (N, k), ids (N, k) int64, and the largest value *not* kept (N,), −inf at k = V.
    """
    classes = logits.shape[-1]
    wanted = min(k + 1, classes)
    values, ids = block_top(logits, wanted)
    if wanted > k:
        # Where the k-th equals the next one, which of the equals were taken is chance.
        tied = values[:, -2] == values[:, -1]
        if bool(tied.any()):
            rows = logits[tied]
            ids[tied] = _earliest(rows, values[tied, -1:], wanted)
            values[tied] = rows.gather(-1, ids[tied])
    # topk leaves the order of equal values open: by id first, then stably by value.
    ids, by_id = torch.sort(ids, dim=-1)
    values, by_value = torch.sort(values.gather(-1, by_id), dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    if wanted == k:
        return values, ids, logits.new_full((len(logits),), -math.inf)
    return values[:, :k], ids[:, :k], values[:, k]


def block_top(logits: Tensor, k: int, *, blocks_per_row: int = 16) -> tuple[Tensor, Tensor]:
    """`torch.topk`, exact, 2.5 to 3 times as fast on a CPU for k ≪ V.

    A row is seen as (16, V / 16). No element outside the k columns with the largest maxima can be
    among the k largest, so only 16·k candidates are sorted.
    """
    rows, classes = logits.shape
    width = classes // blocks_per_row
    if k * 4 > width:
        return torch.topk(logits, k, dim=-1)
    blocks = logits[:, : width * blocks_per_row].view(rows, blocks_per_row, width)
    columns = torch.topk(blocks.amax(1), k, dim=-1, sorted=False).indices
    step = torch.arange(blocks_per_row, device=logits.device) * width
    candidates = (columns.unsqueeze(1) + step.view(1, -1, 1)).flatten(1)
    left_over = torch.arange(width * blocks_per_row, classes, device=logits.device)
    candidates = torch.cat([candidates, left_over.expand(rows, -1)], -1)
    values, where = torch.topk(logits.gather(-1, candidates), k, dim=-1)
    return values, candidates.gather(-1, where)


def _earliest(logits: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Ids of k classes a row, in no order: those above the threshold, then the first equal to it.

    Selecting once more, by id, takes a twentieth of the time of a stable sort, and two rows in
    three tie in bfloat16 (benchmarks/bench_selection.py).
    """
    # float32 holds ids exactly to 2²⁴.
    order = -torch.arange(logits.shape[-1], dtype=torch.float32, device=logits.device)
    priority = order.where(logits == threshold, -math.inf).masked_fill_(logits > threshold, 1)
    return block_top(priority, k)[1]


def rest_sums(
    logits: Tensor, ids: Tensor, rest_max: Tensor, *, temperatures: tuple[float, ...]
) -> list[Tensor]:
    """Σ over classes not in `ids` of exp((z − rest_max) / T), shape (N,), for each temperature.

    The exponential at T, squared, is the one at T / 2: a third of the cost of another.
    """
    shift = rest_max.masked_fill(rest_max == -math.inf, 0.0).unsqueeze(-1)
    rest = (logits - shift).scatter_(-1, ids, -math.inf)
    sums: dict[float, Tensor] = {}
    previous, power = math.inf, rest
    for temperature in sorted(set(temperatures), reverse=True):
        squarings = {2.0: 1, 4.0: 2}.get(previous / temperature, 0)
        for _ in range(squarings):
            power.square_()
        if not squarings:
            power = rest.div(temperature).exp_()
        sums[temperature], previous = power.sum(-1), temperature
    return [sums[temperature] for temperature in temperatures]

"""Sampled: a few classes drawn so that their weights are right in the mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlabels.errors import InputError
from softlabels.labels import SoftLabels
from softlabels.selection.top_k import WIDENED_BYTES, TopK, check

MAX_N = 65_535
# A weight below e^-55 is left out: it adds less than a rounding of a weight near 1.
LEAST_LOG_WEIGHT = -55.0
# Classes whose mass is added up first: a point's class is looked for in one such block.
_BLOCK = 256


@dataclass(frozen=True)
class Sampled:
    """Keep n entries whose weights are unbiased: the mean of each over all draws is its p.

    The likeliest classes are kept with their own probability. The others are drawn by systematic
    sampling: of their mass, laid end to end in the order of ids, every class counts that one of
    equally spaced points falls into, from a first point that is uniform. Each point stands for an
    equal share of that mass. The weights of a position sum to 1.

    By default as many classes are kept as have more mass than a point stands for (threshold
    sampling), which of all n entries gives the least squared error
    (`pipelines/students.py` compares). Two others are the literature's: `head=0` counts how often
    each class is drawn (arXiv 2503.16870, with independent draws), and `head=h` keeps the h
    likeliest and draws n − h from the tail.

    Args:
        n: entries at a position, at most, 1 to 65,535; fewer than there are classes.
        head: how many of the likeliest classes keep their probability; None for as many as pay.
        seed: of the draws, which depend on it, the sample's key and the position alone.
    """

    n: int
    head: int | None = None
    seed: int = 0
    name: ClassVar[str] = "sampled"
    algorithm: ClassVar[str] = "systematic/1; by ascending id"
    sampled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_whole("n", self.n, 1, MAX_N)
        if self.head is not None:
            _check_whole("head", self.head, 0, self.n - 1)
        _check_whole("seed", self.seed, -(2**63), 2**63 - 1)

    @property
    def k(self) -> int:
        """Entries at a position, at most."""
        return self.n

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan records beside k."""
        return {"head": self.head, "seed": self.seed}

    @property
    def draws(self) -> int | None:
        """Of a position, where every weight is a count of them; else None."""
        return self.n if self.head == 0 else None

    @classmethod
    def of(cls, k: int, settings: Mapping[str, Any]) -> Self:
        """The selection that a plan describes."""
        return cls(k, settings["head"], settings["seed"])

    def for_classes(self, classes: int) -> Self:
        """This selection; raises `InputError` when there is nothing to draw among so few."""
        if self.n >= classes:
            raise InputError(
                f"Sampled: n is {self.n} of the teacher's {classes} classes; keep all with Dense()"
            )
        return self

    def words(self, classes: int) -> str:
        """What is kept, for people."""
        exact = {None: "the likeliest as they are", 0: "counted"}
        kept = exact.get(self.head, f"the {self.head} likeliest as they are")
        return f"{self.n} of {classes:,} classes, drawn with unbiased weights, {kept}"

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        hard_labels: Tensor,
        *,
        temperatures: Sequence[float] = (),
        uniforms: Tensor | None = None,
    ) -> SoftLabels:
        """Reduce logits to weights, in float32 and their sums in float64.

        Args:
            logits, hard_labels: as `TopK` takes them.
            temperatures: none; the weights are right at T = 1 alone.
            uniforms: where the first point of each position lies, in [0, 1), float64, (N,).

        Returns:
            batch shape (N,), `log_probs` the logs of the weights, those kept as they are first.

        Raises:
            InputError: shapes that do not fit, temperatures, or no uniforms.
        """
        if temperatures:
            raise InputError(
                f"Sampled: the weights are right at T = 1 alone, not at {tuple(temperatures)}; "
                "leave out temperatures, or choose TopK"
            )
        if uniforms is None or uniforms.shape != logits.shape[:1]:
            found = "None" if uniforms is None else f"of shape {tuple(uniforms.shape)}"
            raise InputError(
                f"Sampled: uniforms is {found}; expected one number in [0, 1) for each position"
            )
        check(self.for_classes(logits.shape[-1]).name, logits, hard_labels, ())
        head = TopK(self.n if self.head is None else max(1, self.head))(
            logits, hard_labels, temperatures=(1.0,)
        )
        assert head.log_tails is not None
        assert head.logsumexp is not None
        probs = head.log_probs.double().exp()
        exact = self._exact(probs, head.log_tails[:, 0].double().exp())
        used = torch.arange(head.k, device=logits.device) < exact.unsqueeze(-1)
        drawing = on_cpu() if logits.device.type == "cpu" else draw
        rows = max(1, WIDENED_BYTES // (4 * logits.shape[-1]))
        drawn = [
            drawing(*block, n=self.n)
            for block in zip(
                logits.split(rows),
                head.logsumexp.split(rows),
                torch.where(used, head.ids, -1).split(rows),
                (self.n - exact).split(rows),
                uniforms.to(logits.device, torch.float64).split(rows),
                strict=True,
            )
        ]
        ids, counts, share = (torch.cat(each) for each in zip(*drawn, strict=True))
        if self.draws is not None:  # of all mass, which is 1 but for rounding
            share = torch.full_like(share, 1 / self.draws)
        drawn_weights = counts.double().log() + share.log().unsqueeze(-1)
        kept = torch.where(used, head.log_probs, -math.inf)
        weights = torch.cat([kept, drawn_weights.masked_fill(counts == 0, -math.inf).float()], -1)
        if self.draws is None:
            # A logsumexp of large logits is rounded by more than log-probs need be.
            weights = weights - weights.double().logsumexp(-1, keepdim=True).float()
        # Far below the rounding of the others, and below what the codec can write.
        weights = weights.masked_fill(weights < LEAST_LOG_WEIGHT, -math.inf)
        ids, log_weights = _packed(torch.cat([head.ids, ids], -1), weights, self.n)
        return SoftLabels(
            ids=ids,
            log_probs=log_weights,
            logsumexp=head.logsumexp,
            hard_log_probs=head.hard_log_probs,
            classes=logits.shape[-1],
            sampled=True,
        )

    def _exact(self, probs: Tensor, tail: Tensor) -> Tensor:
        """How many of the likeliest classes keep their probability, int64, (N,).

        The fewest after which the next one has no more than an equal share of what is left.

        Args:
            probs: of the n likeliest, descending, float64, (N, n).
            tail: mass of all others, (N,).
        """
        if self.head is not None:
            return torch.full_like(tail, self.head, dtype=torch.int64)
        left = torch.flip(torch.cumsum(torch.flip(probs, (-1,)), -1), (-1,)) + tail.unsqueeze(-1)
        share = left / torch.arange(self.n, 0, -1, device=probs.device)
        fits = probs <= share
        fits[:, -1] = True  # as it is but for rounding, and where logits are NaN
        return fits.int().argmax(-1)


def draw(
    logits: Tensor, logsumexp: Tensor, kept: Tensor, points: Tensor, first: Tensor, *, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic sampling of the classes that are not kept.

    Args:
        logits: float, (N, V); logsumexp: float32, (N,).
        kept: ids of classes that are left out, int64, (N, m); −1 for none.
        points: how many are drawn, int64, (N,), at most n.
        first: of the first one within its share, in [0, 1), float64, (N,).

    Returns:
        ids, ascending, int64, and how many points each has, int64, 0 where unused, (N, n); the mass
        that a point stands for, float64, (N,).
    """
    probs = torch.exp(logits.float() - logsumexp.unsqueeze(-1))
    # What is kept is at −1 or above it: a column more takes what is not there.
    probs = pad(probs, (0, 1 + (-probs.shape[-1] - 1) % _BLOCK))
    probs.scatter_(-1, kept.where(kept >= 0, probs.shape[-1] - 1), 0.0)
    blocks = probs.view(len(probs), -1, _BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    total = ends[:, -1:]
    place = torch.arange(n, device=probs.device)
    wanted = (place < points.unsqueeze(-1)) & (total > 0)
    share = total / points.unsqueeze(-1).clamp(min=1)
    below = torch.nextafter(total, torch.zeros_like(total))
    at = torch.minimum((place + first.unsqueeze(-1)) * share, below)
    # Without any mass nothing is found, and nothing wanted.
    block = torch.searchsorted(ends, at, right=True).clamp_(max=ends.shape[-1] - 1)
    start = pad(ends, (1, 0)).gather(-1, block)
    row = torch.arange(len(probs), device=probs.device).unsqueeze(-1) * blocks.shape[1]
    inside = blocks.flatten(0, 1)[row + block].cumsum(-1, dtype=torch.float64)
    # Rounding may put a point behind the last class of its block that has any mass.
    reached = torch.minimum(at - start, inside[..., -1] * (1 - 2.0**-52)).unsqueeze(-1)
    within = torch.searchsorted(inside, reached, right=True).squeeze(-1).clamp_(max=_BLOCK - 1)
    return (*_counted(block * _BLOCK + within, wanted), share.squeeze(-1))


def _counted(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending draws, (N, n), to each class once, first, and how often it was drawn."""
    n = found.shape[-1]
    new = wanted.clone()
    new[:, 1:] &= (found[:, 1:] != found[:, :-1]) | ~wanted[:, :-1]
    group = (new.cumsum(-1) - 1).clamp_(min=0)
    counts = torch.zeros_like(found).scatter_add_(-1, group, wanted.long())
    ids = torch.zeros(len(found), n + 1, dtype=torch.int64, device=found.device)
    ids.scatter_(-1, torch.where(new, group, n), found)
    return ids[:, :n], counts


@cache
def on_cpu() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """What draws on a CPU."""
    try:
        from softlabels.selection import draw_numba
    except (ImportError, RuntimeError):  # not installed, or nowhere to keep what it compiles
        return draw
    return draw_numba.draw


def _packed(ids: Tensor, log_weights: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The used entries first, in the order they have; the others name class 0, (N, n)."""
    unused = log_weights == -math.inf
    order = unused.int().argsort(dim=-1, stable=True)[:, :n]
    unused = unused.gather(-1, order)
    return ids.gather(-1, order).masked_fill(unused, 0), log_weights.gather(-1, order)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(
            f"Sampled: {name} is {value!r}; it must be a whole number from {least} to {most}"
        )

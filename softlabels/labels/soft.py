"""SoftLabels: a distribution over classes at every position; most of its entries are not kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from softlabels.errors import InputError, MissingTailError
from softlabels.labels.batched import Batched, register
from softlabels.tails import estimated, interpolated

_OF_ENTRIES = frozenset({"ids", "log_probs", "logits"})


@dataclass(frozen=True, eq=False)
class SoftLabels(Batched):
    """The kept classes of a teacher's distribution at every position of a batch shape `(...)`.

    `ids`, `log_probs` and `logsumexp` suffice to make one by hand.

    Attributes:
        ids: kept classes, int64, shape (..., k), in the order of the label set's codec: see
            `sorted`.
        log_probs: natural log of their probability under the *full* softmax at T = 1, float,
            shape (..., k). −inf marks an unused entry: it is in nobody's sum.
        logits: the raw logits of these classes in the teacher's own dtype, shape (..., k); only
            where they are kept bit for bit.
        logsumexp: of the raw logits, shape (...); None where the teacher gave only normalised
            values. `log_probs + logsumexp` are the logits.
        log_tails: log of the mass of the classes *not* kept at each of `temperatures`, shape
            (..., len(temperatures)); −inf where every class is kept.
        temperatures: what the last axis of `log_tails` stands for.
        hard_log_probs: the hard label's log-prob, shape (...); NaN where there is none.
        mask: True where there are labels, bool, shape (...); None means everywhere. At masked
            positions losses and gradients are zero, whatever the other fields hold.
        classes: V, how many classes there are; None where it is not known.
        sampled: `log_probs` are logs of unbiased weights, as a sampled selection gives them: they
            need not sum to 1, and the classes not kept have weight 0 in place of a tail.
    """

    ids: Tensor
    log_probs: Tensor
    logsumexp: Tensor | None = None
    log_tails: Tensor | None = None
    temperatures: tuple[float, ...] = ()
    hard_log_probs: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
    classes: int | None = None
    sampled: bool = False

    FIELDS: ClassVar[tuple[str, ...]] = (
        "ids",
        "log_probs",
        "logsumexp",
        "log_tails",
        "hard_log_probs",
        "logits",
    )
    REQUIRED: ClassVar[frozenset[str]] = frozenset({"ids", "log_probs"})
    WITH_LAST_AXIS: ClassVar[frozenset[str]] = _OF_ENTRIES | {"log_tails"}
    FILL: ClassVar[Mapping[str, float]] = {"log_tails": -math.inf, "hard_log_probs": math.nan}

    def __post_init__(self) -> None:
        self.check_kinds()
        if self.sampled and (self.log_tails is not None or self.temperatures):
            raise InputError("SoftLabels: sampled labels have weights and no log_tails")
        if self.ids.shape != self.log_probs.shape or self.ids.ndim == 0:
            raise InputError(
                f"SoftLabels: ids have shape {tuple(self.ids.shape)} and log_probs "
                f"{tuple(self.log_probs.shape)}; both must be (..., k)"
            )
        tails = 0 if self.log_tails is None or not self.log_tails.ndim else self.log_tails.shape[-1]
        if tails != len(self.temperatures):
            raise InputError(
                f"SoftLabels: log_tails hold {tails} temperatures but {len(self.temperatures)} "
                f"are named: {self.temperatures}"
            )
        self.check_shapes()
        if self.logits is not None and self.logits.shape != self.ids.shape:
            raise InputError(
                f"SoftLabels: logits have shape {tuple(self.logits.shape)}, ids have "
                f"{tuple(self.ids.shape)}; both are of the kept classes"
            )

    @property
    def k(self) -> int:
        """How many classes are kept at a position."""
        return self.ids.shape[-1]

    def sorted(self) -> SoftLabels:
        """A copy with the entries of each position in descending log-prob, then ascending id.

        Where there are logits, they decide: two of them may round to one log-prob.
        """
        by_id = self.ids.argsort(dim=-1, stable=True)
        value = self.log_probs if self.logits is None else self.logits
        order = value.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)
        return self._entries(by_id.gather(-1, order))

    def top(self, k: int) -> SoftLabels:
        """The k likeliest entries of each position, in descending log-prob, then ascending id.

        The mass of the entries left out joins the tail at every stored temperature. So the top 64
        of a top 256 are the labels that a top 64 would have given, to float32 rounding.

        Raises:
            InputError: k is not at least 1, or the labels are sampled: a part of unbiased weights
                is biased.
        """
        return self.sorted().first(k)

    def first(self, k: int) -> SoftLabels:
        """The first k entries of each position, as they stand; otherwise as `top`.

        For labels that came in the order of their logits: of two that round to one log-prob the
        larger one stays.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"k is {k!r}; it must be a whole number, at least 1")
        if k >= self.k:
            return self
        if self.sampled:
            raise InputError(
                f"these labels are sampled; keeping {k} of their {self.k} entries would bias them"
            )
        places = torch.arange(self.k, device=self.ids.device).expand(self.ids.shape)
        kept = self._entries(places[..., :k])
        return replace(kept, log_tails=self._log_tails_with(places >= k))

    def top_p(self, p: float) -> SoftLabels:
        """The fewest likeliest entries of each position whose mass reaches p, one at least.

        The others become unused: their log-prob is −∞, and their mass joins the tail at every
        stored temperature. In descending log-prob, then ascending id.

        Args:
            p: at T = 1, above 0 and at most 1; where the entries do not reach it, all stay.

        Raises:
            InputError: p is out of range, or the labels are sampled.
        """
        if not 0 < p <= 1:
            raise InputError(f"p is {p!r}; it must be above 0 and at most 1")
        if self.sampled:
            raise InputError("these labels are sampled; keeping a part of them would bias them")
        found = self.sorted()
        probs = found.log_probs.double().exp()
        # Log-probs are rounded to float32: of four equal classes two reach a half.
        reached = p - 2.0**-22 if p < 1 else p
        left_out = probs.cumsum(-1) - probs >= reached
        left_out[..., :1] = False
        return replace(
            found,
            ids=found.ids.masked_fill(left_out, 0),
            log_probs=found.log_probs.masked_fill(left_out, -torch.inf),
            logits=None if found.logits is None else found.logits.masked_fill(left_out, -torch.inf),
            log_tails=found._log_tails_with(left_out),
        )

    def _log_tails_with(self, left_out: Tensor) -> Tensor | None:
        """`log_tails` that these entries have joined, bool, (..., k)."""
        if self.log_tails is None:
            return None
        wide = self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        tails = []
        for temperature in self.temperatures:
            joining = wide.log_probs_at(temperature).masked_fill(~left_out, -torch.inf)
            tails.append(torch.logaddexp(wide.log_tail(temperature), joining.logsumexp(-1)))
        return torch.stack(tails, -1).clamp_(max=0).to(self.log_tails.dtype)

    def _entries(self, places: Tensor) -> SoftLabels:
        """The entries at these places of the last axis."""
        return self.with_tensors(
            {
                name: tensor.gather(-1, places)
                for name, tensor in self.tensors().items()
                if name in _OF_ENTRIES
            }
        )

    def log_tail(self, temperature: float) -> Tensor:
        """Log of the mass of the classes not kept, shape (...), at a temperature.

        Like `log_probs_at`, float64 for float64 labels, else float32. As it was stored; above the
        lowest stored temperature and between others interpolated (`softlabels.tails`), where two
        are stored at least and `classes` is known.

        Labels made by hand without `log_tails` have one at T = 1 only: the complement of their
        kept mass in float64, which is no better than the log-probs it comes from.

        Raises:
            MissingTailError: the tail at `temperature` was not stored, nor those around it; it
                cannot be had from log-probs at T = 1.
        """
        if self.log_tails is not None and temperature in self.temperatures:
            return _widened(self.log_tails[..., self.temperatures.index(temperature)])
        if self.sampled:
            raise MissingTailError(
                "sampled labels have no tail: their weights stand for all classes; use a loss for "
                "unbiased weights"
            )
        if self.log_tails is None and temperature == 1.0:
            return self._complement()
        if self._interpolates(temperature):
            assert self.classes is not None
            assert self.log_tails is not None
            tails = dict(zip(self.temperatures, self.log_tails.unbind(-1), strict=True))
            found = interpolated(self.log_probs, tails, temperature, classes=self.classes)
            return found.to(_widened(self.log_probs).dtype)
        stored = ", ".join(f"{t:g}" for t in self.temperatures) or "none (T = 1 is derived)"
        way_out = ""
        if min(self.temperatures, default=1.0) < temperature < math.inf:
            way_out = f", or take an estimate: labels.with_estimated_tails(({temperature:g},))"
        raise MissingTailError(
            f"no log tail mass at temperature {temperature:g}; stored: {stored}. The mass of the "
            "classes not kept cannot be computed later: use a stored temperature, or label again "
            f"with temperatures=(…, {temperature:g}){way_out}"
        )

    def with_estimated_tails(self, temperatures: Sequence[float]) -> SoftLabels:
        """A copy whose log_tails hold these temperatures too, estimated where they were not stored.

        For teachers that tell no logits, as those behind a server, whose tail is known at T = 1
        alone. With k = 64 of 49,152 classes an estimate is off by .035 of the mass in the mean at
        T = 2, which adds .006 nats to a KL (docs/RESULTS.md); a stored tail is exact. Afterwards
        nothing tells the two apart, and `log_tail` interpolates between them: label sets should
        hold what the teacher said, so estimate when a batch is read, not before it is written.

        What was stored stays as it was; where two temperatures are stored, others are interpolated
        as `log_tail` does. Of labels made by hand, T = 1 is their complement, held to 2⁻²⁴ or more.

        Args:
            temperatures: finite, none below the lowest stored one (T = 1 where none is stored).

        Raises:
            InputError: the labels are sampled, `classes` is unknown, or a temperature is too low:
                there the likeliest of the classes not kept decides, and which that is is unknown.
        """
        missing = [float(t) for t in dict.fromkeys(temperatures) if t not in self.temperatures]
        if not missing:
            return self
        if self.sampled:
            raise InputError("sampled labels have weights for all classes; no tail is missing")
        if self.classes is None:
            raise InputError(
                "the mass of classes that were not kept depends on how many they are; say so: "
                "dataclasses.replace(labels, classes=V)"
            )
        lowest = min(self.temperatures, default=1.0)
        for temperature in missing:
            if not lowest <= temperature < math.inf:
                raise InputError(
                    f"no tail can be estimated at temperature {temperature:g}, only at finite ones "
                    f"from {lowest:g} on, the lowest at which it is known"
                )
        tails = self.log_tails
        if tails is None:
            tails = self._complement().clamp(min=_LEAST_COMPLEMENT).unsqueeze(-1)
            everything = (self.log_probs > -math.inf).sum(-1, keepdim=True) >= self.classes
            tails = tails.masked_fill(everything, -math.inf)
        known = replace(self, log_tails=tails, temperatures=self.temperatures or (1.0,))
        missing = [t for t in missing if t not in known.temperatures]
        found = [known._estimate(t).to(tails.dtype) for t in missing]
        return replace(
            known,
            log_tails=torch.cat([tails, *(tail.unsqueeze(-1) for tail in found)], -1),
            temperatures=(*known.temperatures, *missing),
        )

    def _estimate(self, temperature: float) -> Tensor:
        if self._interpolates(temperature):
            return self.log_tail(temperature)
        assert self.log_tails is not None
        assert self.classes is not None
        (stored,) = self.temperatures
        return estimated(
            self.log_probs,
            self.log_tails[..., 0],
            temperature,
            stored=stored,
            classes=self.classes,
        )

    def _interpolates(self, temperature: float) -> bool:
        stored = self.temperatures
        return self.classes is not None and len(stored) > 1 and min(stored) < temperature < math.inf

    def log_probs_at(self, temperature: float) -> Tensor:
        """Kept log-probs at a temperature, rescaled so that kept + tail = 1, (..., k).

            log p_T = log_softmax(log_probs / T) + log(1 − tail_T)

        Raises:
            MissingTailError: as `log_tail`.
        """
        log_kept = torch.log(-torch.expm1(self.log_tail(temperature)))
        kept = torch.log_softmax(_widened(self.log_probs) / temperature, -1)
        return kept + log_kept.unsqueeze(-1)

    def _complement(self) -> Tensor:
        kept = self.log_probs.double().exp().sum(-1)
        valid = kept if self.mask is None else kept[self.mask]
        if bool((valid > 1 + sum_tolerance(self.log_probs.dtype)).any()):
            raise InputError(
                f"SoftLabels: kept probabilities sum to {float(valid.max()):.6g}, above 1; "
                "log_probs must be normalised over all classes, natural log"
            )
        return torch.log1p(-kept.clamp(max=1.0)).to(_widened(self.log_probs).dtype)


# What log-probs rounded to float32 leave of 1 is noise below this, even its sign.
_LEAST_COMPLEMENT = math.log(2.0**-24)

# Where there is no hard label: what torch.nn.functional.cross_entropy ignores.
NO_LABEL = -100


def sum_tolerance(dtype: torch.dtype) -> float:
    """How far from 1 the probabilities of all classes may sum, their logs rounded to `dtype`.

    An entry is off by p·|log p|·ε / 2 at most, so their sum by the entropy times that.
    """
    return max(1e-4, 8 * torch.finfo(dtype).eps)


def _widened(values: Tensor) -> Tensor:
    """Half precision is for storage: nothing is computed in it."""
    return values if values.dtype == torch.float64 else values.float()


register(SoftLabels, settings=("temperatures", "classes", "sampled"))

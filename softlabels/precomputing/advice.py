"""Choices of entries and codec: what each would give, and which to take, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

# Of these numbers of entries one is advised.
OFFERED = (8, 16, 32, 64, 128, 256)
# Doubling k is worth its bytes while it keeps so much more of the mass.
_WORTH = 0.005


class Estimate(BaseModel):
    """A number of the whole, and the interval it lies in 19 times of 20."""

    model_config = ConfigDict(frozen=True)

    low: float
    mean: float
    high: float

    def times(self, factor: float) -> Estimate:
        """Of something that there is `factor` of for each."""
        return Estimate(low=factor * self.low, mean=factor * self.mean, high=factor * self.high)

    def plus(self, known: float) -> Estimate:
        """Together with something that is known."""
        return Estimate(low=self.low + known, mean=self.mean + known, high=self.high + known)


class Choice(BaseModel):
    """What a number of entries and a codec would give.

    Attributes:
        k, codec: the choice.
        mass_kept: mean probability of the classes kept, at T = 1; None of drawn ones.
        bytes_per_position: of the shards, token ids and identities included.
        bytes: of the whole set: its shards, and its probes where it has any.
        added_kl: nats that storing adds, the tail as one class; mean, at `Forecast.kl_temperature`.
            None of drawn classes, whose weights are right in the mean alone.
    """

    model_config = ConfigDict(frozen=True)

    k: int
    codec: str
    mass_kept: float | None
    bytes_per_position: float
    bytes: Estimate
    added_kl: float | None

    @property
    def mass(self) -> float:
        """What the entries stand for: of drawn ones all of it."""
        return 1.0 if self.mass_kept is None else self.mass_kept


def advice(
    chosen: Choice,
    choices: Mapping[tuple[str, int], Choice],
    shares: Mapping[str, float],
    *,
    rejects: int,
    rows: int,
) -> Iterator[str]:
    """What to choose, a sentence each.

    Args:
        chosen: what the arguments say.
        choices: by codec and k; compact with the k that is chosen among them.
        shares: of the time that the stages take, by name.
        rejects, rows: of the sample.
    """
    if len(choices) > 1:
        yield _of_entries(chosen, choices)
    if chosen.codec == "plain" and ("compact", chosen.k) in choices:
        same = choices["compact", chosen.k]
        yield (
            f"compact would take {same.bytes.mean / chosen.bytes.mean:.0%} of plain's bytes and "
            f"add {same.added_kl or 0:.1e} nats"
        )
    slowest = max(shares, key=lambda name: shares[name])
    if slowest == "teacher":
        yield f"the teacher takes {shares['teacher']:.0%} of the time: nothing else is worth tuning"
    else:
        yield f"{slowest} takes {shares[slowest]:.0%} of the time, more than the teacher"
    if rejects:
        yield (
            f"{rejects} of {rows} rows could not be labelled: with on_error='raise' the job would "
            "stop at the first; see them with on_error='skip'"
        )


def _of_entries(chosen: Choice, choices: Mapping[tuple[str, int], Choice]) -> str:
    compact = [choices["compact", k] for k in OFFERED if ("compact", k) in choices] or [
        choices["compact", chosen.k]
    ]
    enough = next(
        (small for small, large in pairwise(compact) if large.mass - small.mass < _WORTH),
        compact[-1],
    )
    kept = f"k = {chosen.k} keeps {chosen.mass:.1%} of the mass"
    if chosen.mass >= 1 - _WORTH and chosen.k <= enough.k:
        return f"{kept}: nothing is left to gain"
    if chosen.mass - enough.mass >= _WORTH or enough.k == chosen.k:
        return f"{kept}, and every doubling on the way there adds more than half a percent"
    if enough.k < chosen.k:
        return (
            f"k = {enough.k} keeps {enough.mass:.1%} of the mass, k = {chosen.k} "
            f"{chosen.mass:.1%} at {chosen.bytes.mean / enough.bytes.mean:.1f} times the "
            "bytes: fewer entries would do"
        )
    return (
        f"{kept}, k = {enough.k} {enough.mass:.1%} for "
        f"{enough.bytes.mean / chosen.bytes.mean:.1f} times as much"
    )

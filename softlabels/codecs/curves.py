"""Numbers to codes of a few bits and back, each with its error bound."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

# A log-prob or logsumexp in steps of 2⁻¹⁰ nats.
SCALAR_STEPS = 1024
NULL, MINUS_INFINITY, FIRST = 0, 1, 2
MIDDLE = 1 << 31
_TAIL_CODES = 256
# Codes of probabilities: below 32 + 3 in steps of a nat, from there on by cube roots.
LOG_CODES, _LEAST_ROOT = 32, 3
MAX_SCALE = 255 - LOG_CODES
# A position's likeliest class is no rarer than 1/V, so that 34 bits tell its value to 10⁻⁶; sums of
# all kept ones stay below 2⁶³.
WEIGHT_BITS = 34
_MOST_LOG_WEIGHT = 8


def prob_codes(log_probs: Floats, scale: int) -> Codes:
    """Kept probabilities as 32 + round(scale · p^⅓), from 35 on; smaller ones in steps of a nat.

    The cells are narrow where an error costs much: at high rate the KL of a rounding error is
    p·δ²/2, and δ ∝ 1/(p^⅓) spends bits on a probability in proportion to what they save. Below the
    third cell that rule would be too coarse for temperatures above 1, at which small ones grow.
    Bound: |scale · p^⅓ − (code − 32)| ≤ ½ from 35 on; below, half a nat, down to (3/scale)³ · e⁻³⁴.
    """
    roots = np.exp(log_probs * np.float32(1 / 3)) * np.float32(scale)
    codes = np.rint(roots) + np.float32(LOG_CODES)
    small = roots < _LEAST_ROOT - 0.5
    if small.any():
        steps = np.rint(log_probs[small] - np.float32(3 * np.log(_LEAST_ROOT / scale)))
        codes[small] = LOG_CODES + _LEAST_ROOT + steps
    found: Codes = np.clip(codes, 1, 255).astype(np.uint8)
    return found


@cache
def code_logs() -> Floats:
    """Log of the value of each code, in units of scale⁻³, (256,); code 0 is −∞."""
    codes = np.arange(256.0)
    values = 3 * np.log(np.maximum(codes - LOG_CODES, _LEAST_ROOT))
    values += np.minimum(codes - LOG_CODES - _LEAST_ROOT, 0)
    values[0] = -np.inf
    logs: Floats = values.astype(np.float32)
    return logs


@cache
def code_weights() -> NDArray[np.int64]:
    """The value of each code in units of 2⁻³⁴ · scale⁻³, (256,): whole, so that sums are exact."""
    codes = np.arange(256.0)
    cubes = np.maximum(codes - LOG_CODES, _LEAST_ROOT) ** 3
    smaller = np.exp(np.minimum(codes - LOG_CODES - _LEAST_ROOT, 0))
    found: NDArray[np.int64] = np.rint(cubes * smaller * 2.0**WEIGHT_BITS).astype(np.int64)
    found[0] = 0
    return found


def _tail_angles(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """θ of a code, where the tail mass is sin²θ; −∞ and 0 apart, codes reach from 5e-9 to 1 − 5e-9.

    A step in θ costs the same KL at every mass; the curve makes steps small near both ends, where
    what matters is the ratio.
    """
    x = codes / _TAIL_CODES
    return np.pi / 2 * x * x * (3 - 2 * x)


# As log masses, so that no tail needs a sine: between 255 codes.
_ROUNDED_ONE = 1e-3
_TAIL_EDGES = 2 * np.log(np.sin(_tail_angles(np.arange(1.5, _TAIL_CODES - 1))))


def tail_codes(log_tails: Floats) -> Codes:
    """Log tail masses as one byte each; 0 only for −∞.

    Bound: θ, where the mass is sin²θ, is within half a cell of the curve, at most 0.0047 rad.
    """
    _check(log_tails <= _ROUNDED_ONE, log_tails, "log tail")
    codes = 1 + np.searchsorted(_TAIL_EDGES, log_tails)
    return np.where(log_tails == -np.inf, 0, codes).astype(np.uint8)


@cache
def code_log_tails() -> Floats:
    """The log tail mass of each code, (256,)."""
    with np.errstate(divide="ignore"):
        return (2 * np.log(np.sin(_tail_angles(np.arange(256.0))))).astype(np.float32)


@cache
def code_log_kept() -> NDArray[np.float64]:
    """Log of what each tail code leaves, 1 − its mass as float32 gives it, (256,)."""
    return np.log(-np.expm1(code_log_tails().astype(np.float64)))


def logsumexp_codes(values: Floats) -> NDArray[np.uint32]:
    """Logsumexps in steps of 2⁻¹⁰, around 2³¹. Bound: 2⁻¹¹.

    Raises:
        InputError: beyond ±2²¹, or not finite.
    """
    codes = np.rint(values.astype(np.float64) * SCALAR_STEPS)
    _check(np.abs(codes) < MIDDLE, values, "logsumexp")
    return (codes + MIDDLE).astype(np.uint32)


def code_logsumexps(codes: NDArray[np.uint32]) -> Floats:
    """The inverse of `logsumexp_codes`."""
    return ((codes.astype(np.float64) - MIDDLE) / SCALAR_STEPS).astype(np.float32)


def hard_codes(values: Floats) -> NDArray[np.uint32]:
    """Hard labels' log-probs in steps of 2⁻¹⁰; NaN (no label) is 0, −∞ is 1. Bound: 2⁻¹¹.

    Raises:
        InputError: below −2²¹, or above 0 by more than rounding.
    """
    steps = np.rint(-values.astype(np.float64) * SCALAR_STEPS)
    special = np.isnan(values) | (values == -np.inf)
    _check(special | ((steps >= 0) & (steps < MIDDLE)), values, "hard-label log-prob")
    codes = np.where(special, 0, steps).astype(np.uint32) + FIRST
    codes[np.isnan(values)] = NULL
    codes[values == -np.inf] = MINUS_INFINITY
    return codes


def code_hard(codes: NDArray[np.uint32]) -> Floats:
    """The inverse of `hard_codes`."""
    values = ((FIRST - codes.astype(np.float64)) / SCALAR_STEPS).astype(np.float32)
    values[codes == NULL] = np.nan
    values[codes == MINUS_INFINITY] = -np.inf
    return values


def weight_codes(log_weights: Floats) -> NDArray[np.uint16]:
    """Log weights in steps of 2⁻¹⁰ down from 8. Bound: 2⁻¹¹.

    Raises:
        InputError: above 8 or below −55.999.
    """
    codes = np.rint((_MOST_LOG_WEIGHT - log_weights.astype(np.float64)) * SCALAR_STEPS)
    _check((codes >= 0) & (codes < 1 << 16), log_weights, "log weight", instead="")
    return codes.astype(np.uint16)


def code_log_weights(codes: NDArray[np.uint32]) -> Floats:
    """The inverse of `weight_codes`."""
    return (_MOST_LOG_WEIGHT - codes.astype(np.float64) / SCALAR_STEPS).astype(np.float32)


def _check(
    good: NDArray[np.bool_],
    values: Floats,
    name: str,
    *,
    instead: str = '; use codec="plain"',
) -> None:
    if not good.all():
        raise InputError(
            f"the {name} {values[~good][0]:g} is outside what the codec can write{instead}"
        )

"""How DistillKit compresses a position: its config, log-probs as a curve, and ids as bits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from softlabels.errors import InputError, quoted
from softlabels.format.plan import first_problem
from softlabels.sharing.formats.sample import Int64s

_LEAST_SINGULAR_VALUE = 1e-5

Dtype = Literal["float16", "bfloat16", "float32", "float64"]


class Bin(BaseModel):
    """Residuals of some places, as whole numbers of a few bits times a scale."""

    model_config = ConfigDict(frozen=True)

    scale_dtype: Dtype
    element_bits: int = Field(gt=0, le=32)
    num_elements: int = Field(gt=0)


class Compression(BaseModel):
    """compression_config.yaml, under DistillKit's own names.

    Attributes:
        d: classes.
        k, exact_k: entries at a position, and how many of them are numbers.
        polynomial_terms: powers of an entry's place, "sqrt" and "exp".
        delta_encoding: each log-prob is stored less the one before it.
        normalize_t: places run from 0 to 1.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    d: int = Field(gt=1)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: Dtype = "float32"
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Of each id."""
        return (self.d - 1).bit_length()

    def terms(self, dtype: torch.dtype) -> Tensor:
        """(k − exact_k, terms)."""
        rest, named = self.k - self.exact_k, {"sqrt": torch.sqrt, "exp": torch.exp}
        places = torch.linspace(0, 1, rest) if self.normalize_t else torch.arange(rest)
        places = places.to(dtype)
        made = [
            named[term](places) if isinstance(term, str) else places**term
            for term in self.polynomial_terms or ()
        ]
        return torch.stack(made, -1) if made else torch.zeros(rest, 0, dtype=dtype)


def parse(text: str, where: str) -> Compression:
    """Read a config; raises `InputError` where it is none."""
    try:
        found = yaml.safe_load(text)
        made = Compression.model_validate(found)
        if made.exact_k > made.k or sum(b.num_elements for b in made.residual_bins) > (
            made.k - made.exact_k
        ):
            raise InputError(f"{where}: exact_k and the bins hold more than k entries")
        return made
    except yaml.YAMLError as error:
        raise InputError(f"{where}: this is no YAML: {quoted(error)}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None


def log_prob_bytes(config: Compression) -> int:
    """Of a position."""
    size = config.exact_k * _width(config.exact_dtype)
    size += len(config.polynomial_terms or ()) * _width(config.term_dtype)
    for each in config.residual_bins:
        size += _width(each.scale_dtype) + -(-each.element_bits * each.num_elements // 8)
    return size


def _width(dtype: Dtype) -> int:
    return int(getattr(torch, dtype).itemsize)


def expanded(data: Tensor, config: Compression) -> Tensor:
    """Bytes to log-probs, (n, k), float32."""
    at = 0

    def take(count: int, dtype: Dtype) -> Tensor:
        nonlocal at
        stop = at + count * _width(dtype)
        # Flat, because a single row counts as contiguous whatever its stride.
        part = data[:, at:stop].flatten().clone()
        at = stop
        return part.view(getattr(torch, dtype)).view(len(data), count)

    exact = take(config.exact_k, config.exact_dtype).float()
    coefficients = take(len(config.polynomial_terms or ()), config.term_dtype)
    terms = config.terms(coefficients.dtype)
    rest = (terms * coefficients[:, None, :]).sum(-1).float()
    done = 0
    for each in config.residual_bins:
        scale = take(1, each.scale_dtype).float()
        stop = at + -(-each.element_bits * each.num_elements // 8)
        codes = unpacked(data[:, at:stop].numpy(), each.element_bits, each.num_elements)
        at = stop
        steps = torch.from_numpy(codes).float()
        steps = 2 * steps - 1 if each.element_bits == 1 else steps - 2 ** (each.element_bits - 1)
        rest[:, done : done + each.num_elements] += steps * scale
        done += each.num_elements
    found = torch.cat([exact, rest], -1)
    return found.cumsum(-1) if config.delta_encoding else found


def compressed(log_probs: Tensor, config: Compression) -> Tensor:
    """Descending log-probs, (n, k) float32, to bytes, (n, …)."""
    if config.delta_encoding:
        log_probs = torch.cat([log_probs[:, :1], log_probs.diff(dim=-1)], -1)
    exact = log_probs[:, : config.exact_k].to(getattr(torch, config.exact_dtype)).contiguous()
    parts = [exact.view(torch.uint8)]
    if config.polynomial_terms:
        # In float64: the terms are all but dependent, and in float32 the fit is off by nats.
        left, sizes, right = torch.linalg.svd(config.terms(torch.float64), full_matrices=False)
        inverse = torch.where(sizes > _LEAST_SINGULAR_VALUE, 1 / sizes, 0)
        fitted = log_probs[:, config.exact_k :].double() @ left * inverse @ right
        parts.append(fitted.to(getattr(torch, config.term_dtype)).contiguous().view(torch.uint8))
    return torch.cat(parts, -1)


def packed(ids: Int64s, bits: int) -> NDArray[np.uint8]:
    """(n, k) ids to bytes, (n, …): bits, highest first, one id after another."""
    shifts = np.arange(bits - 1, -1, -1)
    flat = ((ids[..., None] >> shifts) & 1).astype(np.uint8).reshape(len(ids), ids.shape[1] * bits)
    return np.packbits(flat, axis=-1)


def unpacked(data: NDArray[np.uint8], bits: int, count: int) -> Int64s:
    """The ids again, (n, count)."""
    flat = np.unpackbits(data, axis=-1, count=bits * count)
    powers = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    return flat.reshape(len(data), count, bits).astype(np.int64) @ powers

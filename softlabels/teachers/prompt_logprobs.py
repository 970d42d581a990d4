"""Records to prompts, and what a server answers of a prompt's tokens to labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import quoted
from softlabels.labels import SoftLabels, sum_tolerance

# What servers write for −inf, which JSON cannot hold.
_NEVER = -9999.0


@dataclass(frozen=True)
class Prompt:
    """A record as it is sent.

    Attributes:
        tokens: up to the one after the last wanted position.
        positions: the wanted ones, ascending.
        hard_labels: theirs; −1 where there is none.
    """

    tokens: list[int]
    positions: list[int]
    hard_labels: list[int]


def prompts(
    input_ids: Tensor, wanted: Tensor, padding: Tensor, hard_labels: Tensor
) -> Iterator[Prompt]:
    """The records of a batch that have wanted positions; see `softlabels.teachers.LabelTeacher`."""
    done = 0
    for row, ids in enumerate(input_ids):
        positions = wanted[row].nonzero().flatten().tolist()
        if not positions:
            continue
        hard = hard_labels[done : done + len(positions)].tolist()
        done += len(positions)
        tokens = ids[~padding[row]].tolist()
        # Any token does after the last one: a causal model does not look ahead. The hard label,
        # where there is one, has its log-prob told.
        tokens.append(hard[-1] if hard[-1] >= 0 else tokens[-1])
        yield Prompt(tokens[: positions[-1] + 2], positions, hard)


class Unusable(Exception):
    """What is wrong with an answer."""


def soft_labels(answer: Any, prompt: Prompt, *, k: int, classes: int) -> SoftLabels:
    """The labels that an answer tells.

    `prompt_logprobs[i]` is the distribution that token i was drawn from, which is that of
    position i − 1; the first one is null.
    """
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        found = len(told)
    except (LookupError, TypeError):
        raise Unusable(
            "the answer has no choices[0].prompt_logprobs; a server that tells the log-probs of a "
            "prompt by token id is needed, as vLLM's does"
        ) from None
    if found != len(prompt.tokens):
        raise Unusable(f"{found} prompt_logprobs for a prompt of {len(prompt.tokens)} tokens")
    shape = len(prompt.positions), k + 1
    # A slot that is not filled sorts last.
    ids, ranks = np.full(shape, classes, np.int64), np.zeros(shape, np.int64)
    log_probs, hard = np.full(shape, -np.inf, np.float32), np.full(shape[0], np.nan, np.float32)
    for row, (t, label) in enumerate(zip(prompt.positions, prompt.hard_labels, strict=True)):
        entry = _entry(told[t + 1], t, k=k, token=prompt.tokens[t + 1])
        size = len(entry)
        ids[row, :size], log_probs[row, :size], ranks[row, :size] = zip(*entry, strict=True)
        hard[row] = next((value for token, value, _ in entry if token == label), np.nan)
    order = np.lexsort((ids, -log_probs))[:, :k]
    _check(ids, ranks, prompt.positions, k=k, classes=classes)
    kept = np.take_along_axis(log_probs, order, 1)
    _check_log_probs(kept, prompt.positions)
    values = torch.from_numpy(kept)
    return SoftLabels(
        ids=torch.from_numpy(np.take_along_axis(ids, order, 1)),
        log_probs=values,
        log_tails=_log_tails(values, classes),
        temperatures=(1.0,),
        hard_log_probs=torch.from_numpy(np.where(hard <= _NEVER, -np.inf, hard)),
        classes=classes,
    )


def _entry(found: Any, position: int, *, k: int, token: int) -> list[tuple[int, float, int]]:
    """Id, log-prob and rank of every class that is told of a position; rank 0 where none is."""
    try:
        entry = [
            (int(name), float(value["logprob"]), int(value.get("rank") or 0))
            for name, value in found.items()
        ]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise Unusable(
            f"position {position}: expected log-probs by token id, found "
            f"{quoted(json.dumps(found), limit=160)}"
        ) from None
    values = {name: value for name, value, _ in entry}
    if len(values) != len(entry) or not k <= len(entry) <= k + 1:
        raise Unusable(
            f"position {position}: {len(values)} classes in {len(entry)} entries; expected "
            f"{k}, or {k + 1} with the token that comes next"
        )
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise Unusable(
            f"position {position}: the log-prob of class {broken[0]} is {values[broken[0]]}; "
            "expected a finite number"
        )
    # Without this check, a prompt that the server changed would give each position its
    # neighbour's labels.
    if token not in values:
        raise Unusable(
            f"position {position}: the token that comes next, {token}, is not among those told; "
            "the server changed the prompt, or tells the log-probs of other positions"
        )
    return entry


def _check(
    ids: NDArray[np.int64],
    ranks: NDArray[np.int64],
    positions: Sequence[int],
    *,
    k: int,
    classes: int,
) -> None:
    # An empty slot holds `classes` itself, and only the last slot may be empty.
    outside = (ids < 0) | (ids > classes)
    outside[:, :k] |= ids[:, :k] == classes
    if outside.any():
        row = int(outside.any(1).argmax())
        raise Unusable(
            f"position {positions[row]}: class {ids[row][outside[row]][0]} is none of {classes}; "
            "pass the width of the model's logits as classes="
        )
    present = np.zeros((len(ids), k + 2), bool)
    np.put_along_axis(present, np.clip(ranks, 0, k + 1), True, 1)
    missing = ~present[:, 1 : k + 1] & (ranks[:, :k] > 0).all(1, keepdims=True)
    if missing.any():
        row = int(missing.any(1).argmax())
        raise Unusable(
            f"position {positions[row]}: the class of rank {int(missing[row].argmax()) + 1} is "
            f"not among the {k} likeliest told"
        )


def _check_log_probs(kept: NDArray[np.float32], positions: Sequence[int]) -> None:
    never = (kept <= _NEVER).any(1)
    if never.any():
        raise Unusable(
            f"position {positions[int(never.argmax())]}: only "
            f"{int((kept[int(never.argmax())] > _NEVER).sum())} classes have a probability above "
            "0; choose a smaller k"
        )
    sums = np.exp(kept.astype(np.float64)).sum(1)
    if (sums > 1 + sum_tolerance(torch.float32)).any():
        raise Unusable(
            f"position {positions[int(sums.argmax())]}: the probabilities told sum to "
            f"{sums.max():.6g}, above 1; they are no log-probs (vLLM: --logprobs-mode raw_logprobs)"
        )


def _log_tails(log_probs: Tensor, classes: int) -> Tensor:
    """log(1 − Σ p) in float64, shape (rows, 1), held to what the log-probs allow.

    Rounded to float32, they leave the complement unknown below 2⁻²⁴ or so, even its sign. The
    V − k classes that were not kept are no likelier than the least one kept:

        tail ≤ (V − k) · min p

    Args:
        log_probs: float32, (rows, k), at T = 1.
    """
    k, wide = log_probs.shape[-1], log_probs.double()
    if k == classes:
        return torch.full((len(log_probs), 1), -math.inf)
    complement = (1 - wide.exp().sum(-1, keepdim=True)).clamp(min=2.0**-24).log()
    at_most = wide.amin(-1, keepdim=True) + math.log(classes - k)
    return torch.minimum(complement, at_most).float()

"""What a reader finds in a golden set: its literals, by the formulas of docs/FORMAT.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden import INF, GoldenSet
from golden_packed import PackedSet, Position


def labels_of(golden: GoldenSet, row: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one record, None where the set has none.

    Returns:
        ids and log_probs (P, k), the ids of unused entries 0; log_tails (P, temperatures);
        logsumexp and hard_log_probs (P,), null as NaN. float32 where nothing is quantised and
        for what is stored in steps, else float64.
    """
    if isinstance(golden, PackedSet):
        return _packed(golden, row["labels"])
    k, temperatures = golden.plan["selection"]["k"], len(golden.plan["temperatures"])
    shapes = {
        "log_probs": (-1, k),
        "logsumexp": (-1,),
        "log_tails": (-1, temperatures),
        "hard_log_probs": (-1,),
    }
    found = {
        name: None if row[name] is None else np.array(row[name], np.float32).reshape(shape)
        for name, shape in shapes.items()
    }
    return {"ids": np.reshape(row["ids"], (-1, k)), **found}


def stored(golden: PackedSet, labels: list[Position]) -> np.ndarray:
    """The stored numbers of each entry by ascending rank, −1 where unused, (P, k)."""
    return _padded(golden, labels, lambda position, id: position.entries[id], -1)


def _packed(golden: PackedSet, labels: list[Position]) -> dict[str, Any]:
    codec = golden.plan["codec"]
    codes = stored(golden, labels)
    used = codes >= 0
    tails = np.array([position.tails for position in labels])
    logsumexp = np.array([position.logsumexp for position in labels], np.float32)
    hard = [np.nan if position.hard is None else position.hard for position in labels]
    log_tails: Any = None
    with np.errstate(divide="ignore", invalid="ignore"):
        if codec["name"] == "compact":
            x = tails / 256
            mass = np.sin(np.pi / 2 * x**2 * (3 - 2 * x)) ** 2
            log_tails = np.log(mass)
            logs = np.where(
                codes >= 35, 3 * np.log(np.maximum(codes - 32, 3)), 3 * np.log(3) + codes - 35.0
            )
            whole = np.sum(np.exp(logs), axis=1, where=used)
            log_probs = logs - np.log(np.maximum(whole, codec["scale"] ** 3))[:, None]
            if 1.0 in codec["temperatures"]:
                kept = np.log(1 - mass[:, codec["temperatures"].index(1.0)])
                sums = np.log(np.sum(np.exp(logs), axis=1, where=used))
                log_probs = logs - sums[:, None] + kept[:, None]
        elif codec["name"] == "lossless":
            log_tails = tails.astype(np.float32)
            logits = (np.maximum(codes, 0) << 16).astype(np.uint32).view(np.float32)
            log_probs = logits - logsumexp[:, None]
        elif codec["draws"] is not None:
            log_probs = np.log(codes / codec["draws"])
        else:
            log_probs = 8 - codes / 1024
    return {
        "ids": _padded(golden, labels, lambda _, id: id, 0),
        "log_probs": np.where(used, log_probs, -INF),
        "log_tails": log_tails,
        "logsumexp": logsumexp if codec["logits_known"] else None,
        "hard_log_probs": np.array(hard, np.float32),
    }


def _padded(golden: PackedSet, labels: list[Position], value: Any, fill: int) -> np.ndarray:
    """A value of each entry by ascending rank: ids of the table first, in its order."""
    places = {id: place for place, id in enumerate(golden.table)}
    out = np.full((len(labels), golden.plan["codec"]["k"]), fill, np.int64)
    for row, position in zip(out, labels, strict=True):
        ids = sorted(position.entries, key=lambda id: (places.get(id, len(places)), id))
        row[: len(ids)] = [value(position, id) for id in ids]
    return out

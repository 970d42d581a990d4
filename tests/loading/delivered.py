"""What a loader hands out, in a form that two loaders can be compared by."""

from __future__ import annotations

from typing import Any


def contents(loader: Any) -> dict[tuple[Any, int], tuple[Any, ...]]:
    """What each record's row of a batch holds, whatever the order."""
    found = {}
    for batch in loader:
        for row, key in enumerate(batch["key"]):
            length = int(batch["attention_mask"][row].sum())
            soft = batch["soft_labels"][row]
            found[key, int(batch["part"][row])] = (
                batch["input_ids"][row, :length].tolist(),
                soft.ids[:length].tolist(),
                soft.log_probs[:length].tolist(),
                soft.mask[:length].tolist(),
                int(batch["next_ids"][row]),
            )
    return found

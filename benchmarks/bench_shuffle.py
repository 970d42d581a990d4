"""How near to a uniform shuffle is the loader's order? No labels are needed.

    python benchmarks/bench_shuffle.py

Of an epoch: Spearman's rank correlation between where an item is stored and where it comes; how far
apart stored neighbours come, in items; and from how many blocks and shards a batch is made. A
uniform shuffle is measured in the same way. The order is checked first: every item once.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.loading.order import MIXED_BLOCKS, Order

Int64s = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=1 << 20, help="records of the set")
    parser.add_argument("--block", type=int, default=32, help="records of a row group")
    parser.add_argument("--shard", type=int, default=4096, help="records of a shard")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a set of 65,536 records")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    items = 1 << 16 if args.quick else args.items
    bounds = np.arange(0, items + 1, args.block)
    orders = {"stored order": Order(bounds, None)}
    orders |= {
        f"{mixed} blocks mixed" + (" (the loader's)" if mixed == MIXED_BLOCKS else ""): Order(
            bounds, 0, mixed
        )
        for mixed in (1, 16, MIXED_BLOCKS, 256)
    }
    found = {name: averaged(order, args) for name, order in orders.items()}
    found["uniform"] = averaged(None, args, items=items)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{items:,} items in blocks of {args.block}, shards of {args.shard}")
    print(f"{'':30}{'rank corr.':>11}{'neighbours':>12}{'blocks':>8}{'shards':>8}  a batch")
    for name, row in found.items():
        print(
            f"{name:30}{row['rank_correlation']:11.4f}{row['neighbours']:12,.0f}"
            f"{row['blocks']:8.2f}{row['shards']:8.2f}"
        )


def averaged(order: Order | None, args: Any, *, items: int = 0) -> dict[str, float]:
    """Means over epochs; None is uniform."""
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(args.epochs):
        come = (
            rng.permutation(items) if order is None else np.concatenate(list(order.windows(epoch)))
        )
        assert np.array_equal(np.sort(come), np.arange(len(come))), "an item is lost or doubled"
        rows.append(quality(come, args))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def quality(come: Int64s, args: Any) -> dict[str, float]:
    place = np.empty_like(come)
    place[come] = np.arange(len(come))
    whole = come[: len(come) - len(come) % args.batch_size].reshape(-1, args.batch_size)
    return {
        "rank_correlation": abs(float(np.corrcoef(np.arange(len(come)), place)[0, 1])),
        "neighbours": float(np.abs(np.diff(place)).mean()),
        "blocks": distinct(whole // args.block),
        "shards": distinct(whole // args.shard),
    }


def distinct(rows: Int64s) -> float:
    """How many different values a row has, on average."""
    return float((np.diff(np.sort(rows, axis=1), axis=1) > 0).sum(1).mean()) + 1


if __name__ == "__main__":
    main()

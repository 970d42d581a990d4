"""What is sent when a set on the Hub grows by 1 %? Needs hf_xet; nothing leaves this machine.

    python benchmarks/bench_dedup.py

A set is pushed by hf_xet's own client into a store in a folder, then the same set with 1 % more
samples: merged in by `derive`, at the end of the data, or in their midst, so that all later shards
begin elsewhere. The client cuts files where their content says so and sends the chunks that the
store lacks. Ours beside the same set without content-defined pages in Parquet. That the grown set
holds the old one's labels is checked first.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import machine

import softlabels as sl
from softlabels.format import shard_writing

CLASSES, K, WIDTH = 2048, 16, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="samples of the first set")
    parser.add_argument("--quick", action="store_true", help="400 samples")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = 400 if args.quick else args.rows
    # The client writes its log there.
    with tempfile.TemporaryDirectory(prefix="bench-dedup-") as folder:
        os.environ["HF_HOME"] = folder
        found = measured(Path(folder), samples(count + max(1, count // 100)), count)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(machine())
    print(f"{count:,} samples, then 1 % more; top {K} of {CLASSES:,} classes\n")
    print("| codec | pages | 1 % more | MB in all | MB sent | share | chunks sent |")
    print("|--|--|--|--:|--:|--:|--:|")
    for row in found:
        print(
            f"| {row['codec']} | {row['pages']} | {row['how']} | {row['bytes'] / 1e6:.2f} "
            f"| {row['sent'] / 1e6:.3f} | {row['sent'] / row['bytes']:.1%} "
            f"| {row['new_chunks']} of {row['chunks']} |"
        )


def measured(folder: Path, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """A row for each codec, kind of pages and way to grow."""
    old, new = rows[:count], rows[count:]
    middle = count // 2
    found = []
    for codec in ("plain", "compact"):
        for pages in ("by content", "by size"):
            with parquet_pages(by_content=pages == "by content"):
                base = labelled(folder / "base", old, codec)
                grown = {
                    "merged": sl.derive(
                        base, folder / "merged", merge=[labelled(folder / "new", new, codec)],
                        progress=False,
                    ),
                    "at the end": labelled(folder / "end", rows, codec),
                    "in the midst": labelled(
                        folder / "midst", [*old[:middle], *new, *old[middle:]], codec
                    ),
                }  # fmt: skip
            for how, labels in grown.items():
                check(base, labels, len(rows))
                sent = pushed(folder / "store", base.root, labels.root)
                found.append({"codec": codec, "pages": pages, "how": how, **sent})
            for name in ("base", "new", "merged", "end", "midst"):
                shutil.rmtree(folder / name)
    return found


def samples(count: int) -> list[dict[str, Any]]:
    """Samples of 32 to 224 tokens, with keys."""
    rng = np.random.default_rng(0)
    return [
        {"id": f"s{row}", "ids": rng.integers(0, CLASSES, rng.integers(32, 225)).tolist()}
        for row in range(count)
    ]


@functools.cache
def teacher() -> Any:
    """Logits of a low rank, by the last two tokens: by one alone, labels would be repeated."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(CLASSES, WIDTH, generator=generator)
    right = torch.randn(WIDTH, CLASSES, generator=generator)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        before = torch.nn.functional.pad(ids, (1, 0))[..., :-1]
        return (left[ids] + left[before]) @ right

    return sl.teachers.from_callable(logits, name="low rank", version="2", classes=CLASSES)


def labelled(out: Path, rows: list[dict[str, Any]], codec: str) -> sl.LabelSet:
    return sl.precompute(
        rows, teacher(), out, selection=sl.TopK(K), column="ids", key="id", codec=codec,
        progress=False,
    )  # fmt: skip


@contextmanager
def parquet_pages(*, by_content: bool) -> Iterator[None]:
    """Shards with pages cut by their content, or by their size alone."""
    writer = shard_writing.pq.ParquetWriter

    def by_size(*args: Any, **options: Any) -> Any:
        return writer(*args, **options | {"use_content_defined_chunking": False})

    shard_writing.pq.ParquetWriter = writer if by_content else by_size
    try:
        yield
    finally:
        shard_writing.pq.ParquetWriter = writer


def check(base: sl.LabelSet, grown: sl.LabelSet, rows: int) -> None:
    """The grown set has the old labels, and so many samples."""
    assert grown.totals.source_rows == rows
    for number in range(0, len(base), 97):
        key = base.identity([number])["key"][0].as_py()
        assert torch.equal(base[number].ids.sort()[0], grown.get(key).ids.sort()[0]), key


def pushed(store: Path, base: Path, grown: Path) -> dict[str, int]:
    """Bytes of the grown set, and what of it is sent into a store that has the first one."""
    import hf_xet

    shutil.rmtree(store, ignore_errors=True)
    session = hf_xet.XetSession()
    for root in (base, grown):
        commit = session.new_upload_commit(endpoint=f"local://{store}")
        for file in sorted(root.rglob("*.parquet")):
            commit.start_upload_file(str(file))
        metrics = commit.wait_to_finish().dedup_metrics
    return {
        "bytes": metrics.total_bytes,
        "sent": metrics.total_bytes_uploaded,
        "chunks": metrics.total_chunks,
        "new_chunks": metrics.new_chunks,
    }


if __name__ == "__main__":
    main()

"""The label sets that `students.py` compares, of one teacher on the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import softlabels as sl


def label(
    training: list[Any],
    held_out: list[Any],
    teacher: Any,
    out: Path,
    *,
    windows: int | None,
    dense_windows: int,
) -> dict[str, Path]:
    """Every label set, by name; those that hold less of the same are derived."""
    made: dict[str, Path] = {}

    def keep(name: str, rows: list[Any], selection: Any, *, unit_rows: int = 8) -> sl.LabelSet:
        made[name] = out / "labels" / name
        return sl.precompute(
            rows, teacher, made[name], selection=selection, key="id", max_length=512,
            unit_rows=unit_rows, progress=True,
        )  # fmt: skip

    def derive(name: str, source: str, k: int) -> sl.LabelSet:
        made[name] = out / "labels" / name
        return sl.derive(made[source], made[name], k=k)

    some, few = cut(training, windows), cut(training, dense_windows)
    keep("held-out", cut(held_out, windows and windows // 8), sl.TopK(256))
    keep("top-64", some, sl.TopK(64))
    derive("top-8", "top-64", 8)
    derive("top-32", "top-64", 32)
    drawn = {}
    for k in (8, 64):
        drawn[k] = sl.Sampled(equal_bytes(few[:8], teacher, k, out / "tried"))
        keep(f"drawn-{k}", some, drawn[k])
    keep("counted-12", some, sl.Sampled(12, head=0))
    keep("dense", few, sl.Dense(), unit_rows=1)
    keep("dense-top-64", few, sl.TopK(64))
    keep("dense-drawn-64", few, drawn[64])
    return made


def cut(rows: list[Any], windows: int | None) -> list[Any]:
    """The beginnings of all texts, of so many windows together (a token has some 4 characters)."""
    if windows is None:
        return rows
    each = max(1, round(windows / len(rows))) * 512 * 4
    return [{**row, "text": row["text"][:each]} for row in rows][: max(1, windows)]


def bytes_of(labels: sl.LabelSet) -> float:
    """Bytes of a position, everything included."""
    return labels.totals.bytes / labels.totals.positions


def equal_bytes(rows: list[Any], teacher: Any, k: int, tried: Path) -> int:
    """How many entries a sampled set of these texts may have to take as many bytes as top k."""

    def tries(name: str, selection: Any) -> float:
        return bytes_of(sl.precompute(rows, teacher, tried / name, selection=selection, key="id"))

    wanted, low, high = tries(f"top-{k}", sl.TopK(k)), 2, 2 * k
    while high - low > 1:
        n = (low + high) // 2
        fits = tries(f"drawn-{n}", sl.Sampled(n)) <= wanted
        low, high = (n, high) if fits else (low, n)
    return low

"""What was measured, as tables."""

from __future__ import annotations

from typing import Any

from timing import markdown

from loader_peers import OURS, SYSTEMS

Found = dict[str, dict[str, Any]]
WARM = ("in order, 0", "shuffled, 0", "in order, 2", "shuffled, 2")
COLD = ("in order, 0, cold", "shuffled, 0, cold")
# A file whose pages left memory is read from the disk again: at least this share of its bytes.
UNCACHED = 0.8
# How many times as fast as each, shuffled and both at their best, softlabels should be.
GOALS = {
    "mosaic": 3.0,
    "lit": 3.0,
    "web": 3.0,
    "lance": 3.0,
    "nested": 50.0,
    "flat": 1.0,
    "grain": 1.0,
    "pyarrow-ours": 0.7,
}
# And how many times as small as each peer.
SMALLER = 2.0


def tables(found: Found) -> str:
    """Speeds warm, speeds cold where they were measured, and ours over each."""
    parts = [
        "Thousand positions a second by wall clock, the files in memory; 0 or 2 worker processes\n",
        _warm(found),
    ]
    if all(COLD[0] in one for one in found.values()):
        parts += ["\nThe same from opening on, the files not in memory\n", _cold(found)]
    if OURS in found:
        parts += ["\nsoftlabels over each: above 1 is faster, or for bytes smaller\n", _over(found)]
        parts += ["\nGoals\n", _goals(found)]
    return "\n".join(parts)


def _warm(found: Found) -> str:
    header = ["system", "bytes a position", *WARM, "CPU s a million", "lookups a second", "peak MB"]
    rows = []
    for name, one in found.items():
        alone = one["shuffled, 0"]
        rows.append(
            [
                SYSTEMS[name].label + _share(name),
                f"{one['bytes_per_position']:.1f}",
                *(_thousands(one.get(column)) for column in WARM),
                f"{alone['cpu_s_per_million']:.3g}",
                f"{one['lookups']['lookups_per_s']:,.0f}" if "lookups" in one else "–",
                f"{alone['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    return markdown(header, rows)


def _cold(found: Found) -> str:
    header = ["system", *COLD, "read from the disk"]
    rows = []
    for name, one in found.items():
        shares = [one[c]["read_bytes_per_position"] / one["bytes_per_position"] for c in COLD]
        cached = "" if min(shares) >= UNCACHED else ": not cold"
        rows.append(
            [
                SYSTEMS[name].label + _share(name),
                *(_thousands(one[column]) for column in COLD),
                f"{min(shares):.0%}{cached}",
            ]
        )
    return markdown(header, rows)


def _over(found: Found) -> str:
    """Alone: no thread or worker. At best: our best number of threads over its best of workers."""
    header = ["softlabels over", "bytes", "alone, in order", "alone, shuffled"]
    header += ["at best, in order", "at best, shuffled", "lookups", "CPU"]
    ours = found[OURS]
    rows = []
    for name, one in found.items():
        if SYSTEMS[name].module == "ours":
            continue
        cpu = [o["shuffled, 0"]["cpu_s_per_million"] for o in (one, ours)]
        looked = "–"
        if "lookups" in one:
            looked = _times(ours["lookups"]["lookups_per_s"] / one["lookups"]["lookups_per_s"])
        rows.append(
            [
                SYSTEMS[name].label,
                _times(one["bytes_per_position"] / ours["bytes_per_position"]),
                *(_times(_rate(ours[c]) / _rate(one[c])) for c in WARM[:2]),
                *(
                    _times(_best_of_ours(found, c) / _best(one, c))
                    for c in ("in order", "shuffled")
                ),
                looked,
                _times(cpu[0] / cpu[1]),
            ]
        )
    return markdown(header, rows)


def _goals(found: Found) -> str:
    """Told, and never a failure: times are the machine's too."""
    rows = []
    for name, goal in GOALS.items():
        if name in found:
            ratio = _best_of_ours(found, "shuffled") / _best(found[name], "shuffled")
            met = "met" if ratio >= goal else "missed"
            rows.append([SYSTEMS[name].label, f"{goal:g}", _times(ratio), met])
    sizes = {n: o["bytes_per_position"] for n, o in found.items() if SYSTEMS[n].folder is None}
    if sizes:
        least = min(sizes, key=lambda name: sizes[name])
        ratio = sizes[least] / found[OURS]["bytes_per_position"]
        met = "met" if ratio >= SMALLER else "missed"
        rows.append([f"bytes, {SYSTEMS[least].label}", f"{SMALLER:g}", _times(ratio), met])
    return markdown(["at best, shuffled, over", "at least", "found", ""], rows)


def _best_of_ours(found: Found, order: str) -> float:
    return max(_best(found[n], order) for n in found if SYSTEMS[n].module == "ours")


def _best(one: dict[str, Any], order: str) -> float:
    return max(_rate(one[column]) for column in WARM if column.startswith(order) and column in one)


def _rate(measured: dict[str, float]) -> float:
    return measured["positions_per_s"]


def _thousands(measured: dict[str, float] | None) -> str:
    return "–" if measured is None else f"{_rate(measured) / 1e3:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 100 else f"{ratio:,.0f}"


def _share(name: str) -> str:
    share = SYSTEMS[name].share
    return "" if share == 1 else f" (1/{share} of the records)"

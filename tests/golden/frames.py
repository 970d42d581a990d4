"""The frames of the packed codecs, from docs/FORMAT.md alone: no softlabels here."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from typing import Any

import zstandard
from golden_packed import PackedSet, Position

SHORT = 96
DICTIONARY_BYTES = 1024


def with_frames(golden: PackedSet) -> PackedSet:
    """The set with its plan complete, and `entries` and `packed` in its rows for `labels`."""
    table = zstandard.compress(struct.pack(f"<{len(golden.table)}I", *golden.table))
    trained = b""
    if golden.with_dictionary:
        trained = zstandard.train_dictionary(DICTIONARY_BYTES, samples(golden)).as_bytes()
    codec = {
        **golden.plan["codec"],
        "table": base64.b64encode(table).decode(),
        "dictionary": base64.b64encode(trained).decode(),
    }
    units = [
        replace(unit, rows=[with_frame(golden, row, trained) for row in unit.rows])
        for unit in golden.units
    ]
    return replace(golden, plan={**golden.plan, "codec": codec}, units=units)


def with_frame(golden: PackedSet, row: dict[str, Any], trained: bytes) -> dict[str, Any]:
    labels = row["labels"]
    given = None
    if trained and len(labels) < SHORT:
        given = zstandard.ZstdCompressionDict(trained)
    compressor = zstandard.ZstdCompressor(
        level=19, dict_data=given, write_content_size=True, write_checksum=True, write_dict_id=False
    )
    packed = compressor.compress(planes(golden, labels)) + b"\x01"
    columns = {name: value for name, value in row.items() if name != "labels"}
    return {**columns, "entries": sum(len(p.entries) for p in labels), "packed": packed}


def samples(golden: PackedSet) -> list[bytes]:
    """Frames of every run of up to nine positions, to train a dictionary from."""
    records = [row["labels"] for unit in golden.units for row in unit.rows]
    runs = [labels[i : i + n] for labels in records for n in range(1, 10) for i in range(200)]
    return [planes(golden, run) for run in runs if run]


def planes(golden: PackedSet, labels: list[Position]) -> bytes:
    codec = golden.plan["codec"]
    rank = {id: r for r, id in enumerate(golden.table)}
    others = (id for id in range(codec["classes"]) if id not in rank)
    rank.update({id: len(golden.table) + r for r, id in enumerate(others)})
    ranked = [sorted(position.entries, key=rank.__getitem__) for position in labels]
    gaps = []
    for ids in ranked:
        before = -1
        for id in ids:
            gaps.append(rank[id] - before - 1)
            before = rank[id]
    out = bytes(min(gap, 255) for gap in gaps)
    most = max(0, codec["classes"] - 256)
    out += bytes_of([gap - 255 for gap in gaps if gap >= 255], (most.bit_length() + 7) // 8)
    out += {"compact": compact, "lossless": lossless, "sampled": sampled}[codec["name"]](
        golden,
        labels,
        [[p.entries[id] for id in ids] for p, ids in zip(labels, ranked, strict=True)],
    )
    counts = [len(ids) for ids in ranked]
    if sum(counts) != len(labels) * codec["k"]:
        out += bytes_of(counts, 4)
    return out


def compact(golden: PackedSet, labels: list[Position], values: list[list[int]]) -> bytes:
    out = above_floors(values, 1)
    for place in range(len(golden.plan["codec"]["temperatures"])):
        out += bytes(position.tails[place] for position in labels)
    return out + logsumexps(golden, labels) + hard_labels(labels)


def lossless(golden: PackedSet, labels: list[Position], values: list[list[int]]) -> bytes:
    out = above_floors([[v ^ 0xFFFF if v >> 15 else v | 0x8000 for v in at] for at in values], 2)
    for place in range(len(golden.plan["codec"]["temperatures"])):
        out += floats([position.tails[place] for position in labels])
    out += floats([position.logsumexp for position in labels])
    return out + floats([float("nan") if p.hard is None else p.hard for p in labels])


def sampled(golden: PackedSet, labels: list[Position], values: list[list[int]]) -> bytes:
    draws = golden.plan["codec"]["draws"]
    flat = [value for at in values for value in at]
    out = bytes_of(flat, 1 if draws is not None and draws <= 255 else 2)
    return out + logsumexps(golden, labels) + hard_labels(labels)


def above_floors(values: list[list[int]], width: int) -> bytes:
    floors = [min(at, default=0) for at in values]
    above = [value - floor for at, floor in zip(values, floors, strict=True) for value in at]
    return bytes_of(above, width) + bytes_of(floors, width)


def logsumexps(golden: PackedSet, labels: list[Position]) -> bytes:
    if not golden.plan["codec"]["logits_known"]:
        return b""
    return bytes_of([2**31 + round(1024 * position.logsumexp) for position in labels], 4)


def hard_labels(labels: list[Position]) -> bytes:
    def code(log_prob: float | None) -> int:
        if log_prob is None:
            return 0
        return 1 if log_prob == float("-inf") else 2 + round(-1024 * log_prob)

    return bytes_of([code(position.hard) for position in labels], 4)


def floats(values: list[float]) -> bytes:
    return bytes_of([struct.unpack("<I", struct.pack("<f", value))[0] for value in values], 4)


def bytes_of(values: list[int], width: int) -> bytes:
    """`width` planes, lowest byte first."""
    return b"".join(bytes(value >> 8 * place & 255 for value in values) for place in range(width))

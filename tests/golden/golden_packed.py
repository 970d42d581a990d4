"""What the golden sets of packed codecs hold, as literals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from golden import BARE, INF, TEXT, GoldenSet, Unit, shard_schema

LABELS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs")


@dataclass(frozen=True)
class Position:
    """The labels of one position as they are stored.

    Attributes:
        entries: class id → value code (compact), bits of the logit (lossless), draws or code of
            the weight (sampled).
        tails: at each temperature, the tail code (compact) or the log tail (lossless).
        hard: log-prob of the hard label; None where there is none.
    """

    entries: dict[int, int]
    tails: list[Any] = field(default_factory=list)
    logsumexp: float = 0.0
    hard: float | None = None


@dataclass(frozen=True)
class PackedSet(GoldenSet):
    """A set whose shards hold frames: rows have `labels`, a list of Position.

    Attributes:
        table: class ids by descending frequency.
        with_dictionary: whether make.py trains one for the short records.
    """

    table: tuple[int, ...] = ()
    with_dictionary: bool = False


def packed_schema(key: pa.DataType, ids: pa.DataType) -> pa.Schema:
    identity = [column for column in shard_schema(key, ids) if column.name not in LABELS]
    frame = [
        pa.field("entries", pa.int32(), nullable=False),
        pa.field("packed", pa.binary(), nullable=False),
    ]
    return pa.schema([*identity, *frame])


def plan(base: GoldenSet, codec: dict[str, Any], **other: Any) -> dict[str, Any]:
    """The base's plan with another codec, and what must agree with that."""
    known = codec.get("logits_known", True)
    return {
        **base.plan,
        "teacher": {
            **base.plan["teacher"], "classes": codec["classes"], "logits_known": known,
        },
        "selection": {**base.plan["selection"], "k": codec["k"]},
        "codec": codec,
        "temperatures": codec["temperatures"],
        **other,
    }  # fmt: skip


def record(key: Any, tokens: list[int], labels: list[Position], **other: Any) -> dict[str, Any]:
    """A row that holds a whole sample, all of it labelled, unless `other` says something else."""
    return {
        "key": key,
        "part": 0,
        "view": 0,
        "source_start": 0,
        "source_length": len(tokens),
        "length": len(tokens),
        "positions": len(labels),
        "label_spans": None,
        "tokens": tokens,
        "input_ids": tokens,
        "next_id": None,
        "labels": labels,
        **other,
    }


def windows(key: Any, tokens: list[int], labels: list[Position]) -> list[dict[str, Any]]:
    """A sample in windows of 128 tokens at most of which one overlaps: two rows."""
    whole = len(tokens)
    spans = [{"start": 1, "length": whole - 128}]
    first, second = tokens[:128], tokens[127:]
    return [
        record(key, first, labels[:128], source_length=whole, next_id=tokens[128]),
        record(
            key, second, labels[128:], part=1, source_start=127, source_length=whole,
            label_spans=spans,
        ),
    ]  # fmt: skip


VOID = {"part": 0, "reason": "empty: it has no tokens"}
PREPARATION = {**TEXT.plan["preparation"], "max_length": 128}

# Large gaps of three bytes, two temperatures, fewer than k entries and none, a shard without
# records, and 95 positions, the most that the dictionary is for.
LONG = [(300 + 977 * t * t) % 70_000 for t in range(223)]
COMPACT = PackedSet(
    plan=plan(
        TEXT,
        {
            "name": "compact",
            "classes": 70_000,
            "k": 3,
            "temperatures": [1.0, 2.0],
            "logits_known": True,
            "scale": 223,
        },
        preparation=PREPARATION,
    ),
    schema=packed_schema(pa.string(), pa.uint32()),
    table=(300, 11, 69_999, 65_536, 0, 258),
    with_dictionary=True,
    units=[
        Unit(
            sources={"été": [[5, 69_999, 7, 1, 300]], "void": [[]]},
            rows=[
                record(
                    "été",
                    [5, 69_999, 7, 1, 300],
                    [
                        Position({300: 132, 69_999: 82, 1: 82}, [128, 1], 3.5, -0.25),
                        Position({7: 132, 65_536: 82}, [128, 255], -1.25, -INF),
                        Position({69_998: 255}, [0, 0], 2_000_000.0, 0.0),
                        Position({}, [255, 255], -0.0009765625, -1000.5),
                        Position({256: 1, 251: 255, 65_535: 2}, [64, 192], 0.0, None),
                    ],
                )
            ],
            rejects=[{"key": "void", **VOID}],
        ),
        Unit(
            sources={"nothing": [[]], "blank": [[]]},
            rows=[],
            rejects=[{"key": "nothing", **VOID}, {"key": "blank", **VOID}],
        ),
        Unit(
            sources={"long": [LONG], "a": [[3, 300, 11]]},
            rows=[
                *windows(
                    "long",
                    LONG,
                    [
                        Position(
                            {
                                300 * (t % 3): 200 - t % 50,
                                1 + 7 * t: 90 + t % 11,
                                69_999 - t * t: 10 + t % 5,
                            },
                            [t, 255 - t],
                            t / 8 - 4,
                            -t / 16,
                        )
                        for t in range(223)
                    ],
                ),
                record(
                    "a",
                    [3, 300, 11],
                    [
                        Position({300: 240, 12: 100}, [9, 5], 1.5, None),
                        Position({11: 240, 12: 100}, [9, 5], 1.5, -0.5),
                    ],
                    positions=2,
                    label_spans=[{"start": 0, "length": 1}, {"start": 2, "length": 1}],
                ),
            ],
        ),
    ],
)

# Large gaps of no bytes, no table, no tail at T = 1, no dictionary, no inputs, logits not known.
COMPACT_BARE = PackedSet(
    plan=plan(
        BARE,
        {
            "name": "compact",
            "classes": 256,
            "k": 2,
            "temperatures": [4.0],
            "logits_known": False,
            "scale": 100,
        },
    ),
    schema=packed_schema(pa.int64(), pa.uint16()),
    units=[
        Unit(
            sources={0: [[255, 1]], 1: [[2]]},
            rows=[
                record(
                    0,
                    [255, 1],
                    [
                        Position({255: 50, 0: 10}, [128], hard=-0.5),
                        Position({0: 100, 254: 1}, [0]),
                    ],
                    input_ids=None,
                ),
                record(1, [2], [Position({255: 80}, [100])], input_ids=None),
            ],
        )
    ],
)

# Logits in bfloat16 with a logsumexp and the log tail that it leaves at T = 1: both signs, both
# zeros, the smallest number.
LOGITS = [
    ([0x4040, 0x4000, 0x3F80, 0x3F00], 3.6, -2.0404594),
    ([0x0001, 0x8000, 0xBF80, 0xC0A0], 1.2, -1.2560418),
    ([0x41C8, 0x41C7, 0x3DCD, 0xC2F6], 25.75, -2.2002864),
]


def lossless_position(t: int) -> Position:
    logits, logsumexp, log_tail = LOGITS[t % 3]
    entries = {(j * 300 + t * (j + 1)) % 1000: logits[(t + j) % 4] for j in range(4)}
    return Position(entries, [log_tail, -0.01 * t], logsumexp, -0.3 * t)


LOSSLESS = PackedSet(
    plan=plan(
        TEXT,
        {
            "name": "lossless",
            "classes": 1000,
            "k": 4,
            "temperatures": [1.0, 2.0],
            "logits_known": True,
            "dtype": "bfloat16",
        },
        data={**TEXT.plan["data"], "key": None, "key_type": "int64"},
        preparation=PREPARATION,
    ),
    schema=packed_schema(pa.int64(), pa.uint16()),
    table=(300, 11, 999, 0, 258),
    with_dictionary=True,
    units=[
        Unit(
            sources={0: [[5, 999, 7, 1]], 1: [[]]},
            rows=[
                record(
                    0,
                    [5, 999, 7, 1],
                    [
                        Position(
                            {300: 0x4040, 5: 0x3F80, 999: 0x8000, 256: 0xBF80},
                            [-6.0684044, -1.5], 3.1875, -0.1875,
                        ),
                        Position({0: 0xC0A0, 255: 0xC0A1}, [-2.66212, -1e-30], -4.25, -INF),
                        Position({}, [0.0, 0.0], 0.3, None),
                        Position(
                            {1: 0x7F7F, 2: 0xFB00, 11: 0x0001, 998: 0x0000},
                            [-INF, -INF], 3.3895313892515355e38, -87.1,
                        ),
                    ],
                )
            ],
            rejects=[{"key": 1, **VOID}],
        ),
        Unit(
            sources={2: [[t * t % 1000 for t in range(200)]]},
            rows=windows(
                2,
                [t * t % 1000 for t in range(200)],
                [lossless_position(t) for t in range(200)],
            ),
        ),
    ],
)  # fmt: skip


# Counts of two bytes, of 1000 draws.
SAMPLED = PackedSet(
    plan=plan(
        TEXT,
        {
            "name": "sampled",
            "classes": 300,
            "k": 3,
            "temperatures": [],
            "logits_known": True,
            "draws": 1000,
        },
        preparation=PREPARATION,
    ),
    schema=packed_schema(pa.string(), pa.uint16()),
    table=(299, 11, 256, 0),
    with_dictionary=True,
    units=[
        Unit(
            sources={"été": [[5, 299, 7]], "void": [[]]},
            rows=[
                record(
                    "été",
                    [5, 299, 7],
                    [
                        Position({299: 744, 1: 255, 255: 1}, [], 3.5, -0.25),
                        Position({256: 1000}, [], -1.25, -INF),
                        Position({11: 500, 10: 500}, [], 0.0, None),
                    ],
                )
            ],
            rejects=[{"key": "void", **VOID}],
        ),
        Unit(
            sources={"long": [[t * t % 300 for t in range(200)]]},
            rows=windows(
                "long",
                [t * t % 300 for t in range(200)],
                [
                    Position(
                        {t: 700 - 3 * t, 299 - t // 3: 299 + t, 220 + t % 7: 1 + 2 * t},
                        [], t / 8 - 4, -t / 16,
                    )
                    for t in range(200)
                ],
            ),
        ),
    ],
)  # fmt: skip

# Weights that are no counts, from exp(8) to exp(-56); no dictionary, no inputs, no logits.
SAMPLED_WEIGHTS = PackedSet(
    plan=plan(
        BARE,
        {
            "name": "sampled",
            "classes": 257,
            "k": 2,
            "temperatures": [],
            "logits_known": False,
            "draws": None,
        },
    ),
    schema=packed_schema(pa.int64(), pa.uint16()),
    units=[
        Unit(
            sources={0: [[255, 1]], 1: [[2]]},
            rows=[
                record(
                    0,
                    [255, 1],
                    [Position({255: 8192, 0: 8902}, hard=-0.5), Position({1: 0, 254: 65_535})],
                    input_ids=None,
                ),
                record(1, [2], [Position({256: 8193})], input_ids=None),
            ],
        )
    ],
)

# Counts of one byte, of the most draws that it is for.
SAMPLED_FEW = replace(
    SAMPLED_WEIGHTS,
    plan={**SAMPLED_WEIGHTS.plan, "codec": {**SAMPLED_WEIGHTS.plan["codec"], "draws": 255}},
    units=[
        Unit(
            sources={0: [[255, 1]]},
            rows=[
                record(
                    0,
                    [255, 1],
                    [Position({255: 1, 0: 254}, hard=-0.5), Position({255: 255})],
                    input_ids=None,
                )
            ],
        )
    ],
)

PACKED = {
    "1.0-draft-compact": COMPACT,
    "1.0-draft-compact-bare": COMPACT_BARE,
    "1.0-draft-lossless": LOSSLESS,
    "1.0-draft-sampled": SAMPLED,
    "1.0-draft-sampled-few": SAMPLED_FEW,
    "1.0-draft-sampled-weights": SAMPLED_WEIGHTS,
}

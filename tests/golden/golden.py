"""What the golden sets hold, as literals: the one source of what is in them and what is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

INF = float("inf")
IDENTITY = ("part", "view", "source_start", "source_length", "length", "positions")
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
A golden set.
"""


@dataclass(frozen=True)
class Unit:
    """One work unit.

    Attributes:
        sources: key → values of the labelled source columns, rejected rows included.
        rows: the shard's columns, and `tokens`, the ids that were labelled.
        rejects: as in the footer.
    """

    sources: dict[Any, list[Any]]
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class GoldenSet:
    """A whole set."""

    plan: dict[str, Any]
    schema: pa.Schema
    units: list[Unit]
    card: str = CARD
    # Whether parts of its shard table can be checked; else it has the layout that came before.
    digested: bool = False


def shard_schema(key: pa.DataType, ids: pa.DataType) -> pa.Schema:
    span = pa.struct(
        [
            pa.field("start", pa.int32(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
        ]
    )
    floats = pa.list_(pa.float32())
    return pa.schema(
        [
            pa.field("key", key, nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in IDENTITY),
            pa.field("label_spans", pa.list_(span)),
            pa.field("input_digest", pa.binary(8), nullable=False),
            pa.field("prepared_digest", pa.binary(8), nullable=False),
            pa.field("input_ids", pa.list_(ids)),
            pa.field("next_id", ids),
            pa.field("ids", pa.list_(ids), nullable=False),
            pa.field("log_probs", floats, nullable=False),
            pa.field("logsumexp", floats),
            pa.field("log_tails", floats),
            pa.field("hard_log_probs", floats),
        ]
    )


# Windows of one sample, spans, a null hard label, −inf, a reject, two temperatures.
TEXT = GoldenSet(
    plan={
        "format": "1.0-draft",
        "kind": "categorical",
        "requires": [],
        "writer": "by hand",
        "teacher": {
            "name": "golden",
            "revision": None,
            "weights": "000102030405060708090a0b0c0d0e0f",
            "dtype": "bfloat16",
            "engine": "transformers",
            "engine_version": "5.0",
            "classes": 8,
            "logits_known": True,
        },
        "tokenizer": None,
        "data": {
            "name": "letters",
            "revision": None,
            "split": None,
            "columns": ["ids"],
            "key": "name",
            "key_type": "string",
            "limit": None,
        },
        "preparation": {
            "kind": "input_ids",
            "max_length": 3,
            "overlap": 1,
            "on_long": "window",
            "special_tokens": True,
            "assistant_only": False,
        },
        "selection": {"name": "top_k", "k": 2, "algorithm": "by hand"},
        "codec": {
            "name": "plain",
            "classes": 8,
            "temperatures": [1.0, 2.0],
            "id_type": "uint16",
            "value_type": "float32",
        },
        "temperatures": [1.0, 2.0],
        "hard_label_alignment": "next",
        "store_inputs": True,
        "unit_rows": 2,
        "batch_tokens": 64,
        "a field of the future": {"is": "ignored"},
    },
    schema=shard_schema(pa.string(), pa.uint16()),
    units=[
        Unit(
            sources={"été": [[5, 6, 7, 1]], "void": [[]]},
            rows=[
                {
                    "key": "été",
                    "part": 0,
                    "view": 0,
                    "source_start": 0,
                    "source_length": 4,
                    "length": 3,
                    "positions": 3,
                    "label_spans": None,
                    "tokens": [5, 6, 7],
                    "input_ids": [5, 6, 7],
                    "next_id": 1,
                    "ids": [6, 0, 7, 3, 1, 2],
                    "log_probs": [-0.25, -2.0, -0.5, -1.5, -0.125, -INF],
                    "logsumexp": [3.5, -1.25, 100.0],
                    "log_tails": [-2.4549913, -1.5, -1.7699636, -1.25, -2.1412907, -1.5],
                    "hard_log_probs": [-0.25, -0.5, -0.125],
                },
                {
                    "key": "été",
                    "part": 1,
                    "view": 0,
                    "source_start": 2,
                    "source_length": 4,
                    "length": 2,
                    "positions": 1,
                    "label_spans": [{"start": 1, "length": 1}],
                    "tokens": [7, 1],
                    "input_ids": [7, 1],
                    "next_id": None,
                    "ids": [4, 5],
                    "log_probs": [-0.6875, -1.0],
                    "logsumexp": [0.0],
                    "log_tails": [-2.0457053, -1.0],
                    "hard_log_probs": [None],
                },
            ],
            rejects=[{"key": "void", "part": 0, "reason": "empty: it has no tokens"}],
        ),
        Unit(
            sources={"a": [[3]]},
            rows=[
                {
                    "key": "a",
                    "part": 0,
                    "view": 0,
                    "source_start": 0,
                    "source_length": 1,
                    "length": 1,
                    "positions": 1,
                    "label_spans": None,
                    "tokens": [3],
                    "input_ids": [3],
                    "next_id": None,
                    "ids": [0, 1],
                    "log_probs": [-0.75, -0.75],
                    "logsumexp": [1.0],
                    "log_tails": [-2.8955812, -1.75],
                    "hard_log_probs": [None],
                },
            ],
        ),
    ],
)

# Integer keys, ids of four bytes, no inputs, nothing known but normalised log-probs.
BARE = GoldenSet(
    plan={
        **TEXT.plan,
        "teacher": {
            **TEXT.plan["teacher"],
            "weights": None,
            "dtype": None,
            "classes": 70_000,
            "logits_known": False,
        },
        "data": {**TEXT.plan["data"], "key": None, "key_type": "int64"},
        "selection": {"name": "top_k", "k": 1, "algorithm": "by hand"},
        "codec": {
            "name": "plain",
            "classes": 70_000,
            "temperatures": [],
            "id_type": "uint32",
            "value_type": "float32",
        },
        "temperatures": [],
        "store_inputs": False,
        "unit_rows": 3,
    },
    schema=shard_schema(pa.int64(), pa.uint32()),
    units=[
        Unit(
            sources={0: [[69_999, 1]], 1: [[2]]},
            rows=[
                {
                    "key": 0,
                    "part": 0,
                    "view": 0,
                    "source_start": 0,
                    "source_length": 2,
                    "length": 2,
                    "positions": 2,
                    "label_spans": None,
                    "tokens": [69_999, 1],
                    "input_ids": None,
                    "next_id": None,
                    "ids": [65_536, 69_999],
                    "log_probs": [-0.5, 0.0],
                    "logsumexp": None,
                    "log_tails": None,
                    "hard_log_probs": None,
                },
                {
                    "key": 1,
                    "part": 0,
                    "view": 0,
                    "source_start": 0,
                    "source_length": 1,
                    "length": 1,
                    "positions": 1,
                    "label_spans": None,
                    "tokens": [2],
                    "input_ids": None,
                    "next_id": None,
                    "ids": [7],
                    "log_probs": [-0.25],
                    "logsumexp": None,
                    "log_tails": None,
                    "hard_log_probs": None,
                },
            ],
        )
    ],
)

SETS = {
    "1.0-draft-plain": TEXT,
    "1.0-draft-plain-bare": BARE,
    "1.0-draft-plain-digested": replace(TEXT, digested=True),
}

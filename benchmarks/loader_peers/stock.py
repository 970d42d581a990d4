"""Real labels, cut into records of 512 tokens and repeated: as a label set and for the peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import softlabels as sl
from loader_peers.contents import LENGTH
from softlabels.format.plan import Plan, with_codec
from softlabels.format.records import Records, schema
from softlabels.format.summary import UnitSummary
from softlabels.inputs.digests import prepared_digest, unit_digest
from softlabels.labels import concatenate
from softlabels.labelset.writer import begin

# Source rows in a shard, the default of `precompute`; positions that id tables are learnt from.
UNIT, LEARNT = 256, 8192


@dataclass(frozen=True)
class Stock:
    """Distinct real records.

    Attributes:
        plan: of the set they came from.
        tokens: (D, 512) int64.
        labels: of batch shape (D · 512,).
    """

    plan: Plan
    tokens: np.ndarray
    labels: sl.SoftLabels

    @classmethod
    def read(cls, paths: Sequence[Path], k: int) -> Stock:
        """Of label sets of one teacher, their positions one after another.

        Raises:
            SystemExit: they are of two teachers, have fewer entries or other tails.
        """
        sets = [sl.LabelSet.open(path) for path in paths]
        first, tokens, labels = sets[0].plan, [], []
        for found, path in zip(sets, paths, strict=True):
            plan = found.plan
            same = plan.teacher.classes, plan.temperatures, plan.teacher.name
            if same != (first.teacher.classes, first.temperatures, first.teacher.name):
                raise SystemExit(
                    f"{path} is of another teacher than {paths[0]}, or has other tails"
                )
            if plan.selection.k < k or not plan.store_inputs:
                raise SystemExit(f"{path} has {plan.selection.k} entries, or no token ids")
            for records in found.groups():
                assert records.token_ids is not None
                tokens.append(records.token_ids[records.wanted])
                labels.append(replace(records.labels.top(k), logits=None))
        whole = sum(map(len, tokens)) // LENGTH
        if not whole:
            raise SystemExit(f"{paths[0]} has fewer than {LENGTH} positions")
        joined = concatenate(labels)[: whole * LENGTH]
        return cls(first, np.concatenate(tokens)[: len(joined)].reshape(whole, LENGTH), joined)

    def give(self, folder: Path) -> None:
        """Write what the peers are given."""
        wide = self.plan.teacher.token_ids > 1 << 16
        shape = (*self.tokens.shape, -1)
        exact = self.labels.log_probs.numpy().reshape(shape)
        arrays = {
            "input_ids": self.tokens.astype(np.uint32 if wide else np.uint16),
            "ids": self.labels.ids.numpy().reshape(shape).astype(np.uint32 if wide else np.uint16),
            "log_probs": exact.astype(np.float16),
            "log_tails": self.labels.log_tail(1.0).numpy().reshape(self.tokens.shape),
            "exact_log_probs": exact,
        }
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)

    def write(self, folder: Path, records: int) -> None:
        """The records, repeated under fresh keys, as a label set in the default codec."""
        k = self.labels.k
        plan = self.plan.model_copy(
            update={
                "selection": self.plan.selection.model_copy(update={"k": k}),
                "data": self.plan.data.model_copy(update={"key": None, "key_type": "int64"}),
                "unit_rows": UNIT,
                "probes": 0,
                "tokenizer": None,
            }
        )
        learnt = self.labels[:: -(-len(self.labels) // LEARNT)]
        plan = with_codec(plan, "compact", None, lambda: learnt)
        starts = range(0, records, UNIT)
        with begin(folder, plan, save_tokenizer=None) as writer:
            for unit, start in enumerate(starts):
                numbers = np.arange(start, min(start + UNIT, records))
                made = self._records(numbers, plan)
                digests = made.identity["input_digest"].to_pylist()
                summary = UnitSummary(unit, len(numbers), unit_digest(numbers.tolist(), digests))
                writer.publish(made, summary)
            writer.finish(len(starts))

    def _records(self, numbers: np.ndarray, plan: Plan) -> Records:
        places = numbers % len(self.tokens)
        tokens = self.tokens[places]
        digests = [prepared_digest(row) for row in tokens]
        zeros, lengths = np.zeros(len(numbers)), np.full(len(numbers), LENGTH)
        columns = {
            "key": numbers,
            "part": zeros,
            "view": zeros,
            "source_start": zeros,
            "source_length": lengths,
            "input_digest": digests,
            "prepared_digest": digests,
        }
        whole = schema("int64", plan.make_codec(), token_type=pa.uint32())
        kinds = pa.schema([whole.field(name) for name in columns])
        identity = pa.table(
            {n: pa.array(v, kinds.field(n).type) for n, v in columns.items()}, schema=kinds
        )
        offsets = np.arange(len(numbers) + 1) * LENGTH
        entries = (places[:, None] * LENGTH + np.arange(LENGTH)).ravel()
        return Records(
            identity=identity,
            token_offsets=offsets,
            token_ids=tokens.ravel(),
            next_ids=np.full(len(numbers), -1),
            wanted=np.ones(tokens.size, bool),
            labels=self.labels[torch.from_numpy(entries)],
            label_offsets=offsets,
        )

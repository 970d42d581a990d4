"""How many bytes do real labels take, what does that cost them, how fast are they unpacked?

    python benchmarks/bench_storage.py runs/quickstart/labels [--quick]

Takes any finished set of the codec `plain`. `compact` learns its id table from the odd records;
the even ones are measured, one thread. Both codecs must give the same ids back.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from timing import interleaved_medians, machine, markdown

import softlabels as sl
from softlabels.codecs import Codec, Compact, Plain
from softlabels.codecs.idtable import IdTable
from softlabels.labels import concatenate

HEADER = ("codec, k", "bytes a position", "added KL, nats", "write M/s", "read M/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="a finished label set of the codec plain")
    parser.add_argument("--quick", action="store_true", help="one run of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    labels = sl.LabelSet.open(args.labels)
    learnt, records = labels[1::2], labels[::2]
    offsets = np.cumsum([0, *(int(r.mask.sum()) for r in records)])
    everything = concatenate([r[r.mask] for r in records])
    rows = []
    for k in (k for k in (64, 16, 8) if k <= labels.plan.selection.k):
        ids = np.concatenate([r.ids[r.mask][:, :k].numpy().ravel() for r in learnt])
        classes, kept = labels.plan.teacher.classes, fewer(everything, k)
        table = IdTable.count(classes, ids)
        of_k = [Plain(classes, kept.temperatures), Compact(classes, k, kept.temperatures, table)]
        rows += [measure(codec, kept, offsets, runs=1 if args.quick else 5) for codec in of_k]
    print(f"{len(everything):,} positions of {labels.plan.teacher.name}. {machine()}\n")
    print(markdown(HEADER, rows))


def fewer(labels: sl.SoftLabels, k: int) -> sl.SoftLabels:
    """The k likeliest entries; what is left out joins the tails."""
    tails = []
    for temperature in labels.temperatures:
        dropped = labels.log_probs_at(temperature).double()[..., k:].logsumexp(-1)
        tails.append(torch.logaddexp(labels.log_tail(temperature).double(), dropped))
    log_tails = torch.stack(tails, -1).float()
    return replace(
        labels, ids=labels.ids[:, :k], log_probs=labels.log_probs[:, :k], log_tails=log_tails
    )


def measure(
    codec: Codec, labels: sl.SoftLabels, offsets: np.ndarray, *, runs: int
) -> tuple[str, ...]:
    data = written(codec, labels, offsets)
    found = read(codec, data)
    assert torch.equal(found.ids.sort(-1).values, labels.ids.sort(-1).values)
    seconds = interleaved_medians(
        {
            "write": lambda: written(codec, labels, offsets),
            "read": lambda: read(codec, data),
        },
        runs=runs,
    )
    count = len(labels)
    return (
        f"{codec.to_json()['name']}, {labels.k}",
        f"{data.size / count:.1f}",
        f"{added_kl(labels, found):.1e}",
        *(f"{count / seconds[name] / 1e6:.2f}" for name in ("write", "read")),
    )


def written(codec: Codec, labels: sl.SoftLabels, offsets: np.ndarray) -> pa.Buffer:
    """Parquet, as in a shard, without identity and token ids."""
    positions = pa.array(np.diff(offsets).astype(np.int32))
    table = pa.table({"positions": positions, **codec.encode(labels, offsets)})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, use_dictionary=False, use_byte_stream_split=codec.split_columns,
        write_page_checksum=True,
        compression="NONE" if codec.packed_columns else "ZSTD",
    )  # fmt: skip
    return sink.getvalue()


def read(codec: Codec, data: pa.Buffer) -> sl.SoftLabels:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True, use_threads=False)
    return codec.decode(table)[0]


def added_kl(teacher: sl.SoftLabels, stored: sl.SoftLabels) -> float:
    """Mean KL(teacher ‖ stored) over kept classes and the rest, T = 1."""
    by, order = teacher.ids.argsort(-1), stored.ids.argsort(-1)
    log_p = teacher.log_probs_at(1.0).double().gather(-1, by)
    log_q = stored.log_probs_at(1.0).double().gather(-1, order)
    rest_p, rest_q = teacher.log_tail(1.0).double(), stored.log_tail(1.0).double()
    rest = torch.where(rest_p == -torch.inf, 0, rest_p.exp() * (rest_p - rest_q))
    return float(((log_p.exp() * (log_p - log_q)).sum(-1) + rest).mean())


if __name__ == "__main__":
    main()

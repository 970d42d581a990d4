"""How many bytes do real labels take, what does that cost them, how fast are they read?

    python benchmarks/bench_storage.py LABELS [--learn OTHER] [--figure docs/storage.png] [--quick]

LABELS is a finished label set with exact log-probs, of 50,000 positions or more and k of 64 or
more; pipelines/four_texts.py makes texts and says how to label them. Ours and what others do
(storage_peers.py) write the same positions, give the same ids back or the run ends, and are read in
turn on one core. Id tables are learnt from OTHER, a set of other text; without it from the odd
records, and the even ones are measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from storage_fidelity import AddedKL, added_kl, dense_probes, draw
from storage_peers import GROUP, Bounds, DistillKit, Entries, NestedLists, Peer, peers
from timing import interleaved, machine, markdown

import softlabels as sl
from softlabels import codecs
from softlabels.codecs import engines, unpack_numpy
from softlabels.codecs.limit import limit
from softlabels.deriving.derive import derive
from softlabels.format.records import Records

# Ours: a codec, and for what teacher, if it keeps logits.
CODECS = {
    "compact": None,
    "lossless bfloat16": torch.bfloat16,
    "lossless float32": torch.float32,
    "plain": None,
}
NOTE = """\
Peers store entries alone. At T = 1 the rest is what their kept mass lacks of 1; at T = 2 it is
that, spread evenly over the other classes, which is better than what their readers do.
lossless bfloat16 is held to a teacher that gives its logits in bfloat16."""
TEMPERATURES = (1.0, 2.0)
BETWEEN = (1.5, 2.0, 3.0, 4.0)
# Of sums in float64, in nats.
ROUNDING = 1e-12
# Positions that tables are learnt from, evenly spaced. Nine times as many save 0.2 % of bytes, an
# eighth costs 1 %.
LEARNT = 8_192
# What a contestant of each turn runs for.
MEASURED_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="a finished label set with exact log-probs")
    parser.add_argument("--learn", type=Path, help="a label set of other text")
    parser.add_argument("--figure", type=Path, help="a PNG to draw")
    parser.add_argument("--quick", action="store_true", help="fewer records, one run of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    datasets.disable_progress_bars()

    labels = sl.LabelSet.open(args.labels)
    if labels.plan.codec["name"] not in ("lossless", "plain"):
        raise SystemExit(f"{args.labels} has rounded log-probs; label with --codec lossless")
    numbers = np.arange(0, len(labels), 1 if args.learn else 2)
    measured = labels.take(numbers[:GROUP] if args.quick else numbers)
    if args.learn:
        other = sl.LabelSet.open(args.learn)
        learnt = other.take(np.arange(len(other))).labels
    else:
        learnt = labels.take(np.arange(1, len(labels), 2)).labels
    bench = Bench(measured, learnt[:: -(-len(learnt) // LEARNT)], labels.plan.teacher.classes)
    print(f"{bench.describe()} of {labels.plan.teacher.name}. {machine()}")
    show_bytes(bench, args.figure)
    show_speed(bench, runs=1 if args.quick else 7)
    show_tails(bench, labels)
    show_random(args.labels, touches=10 if args.quick else 100)


@dataclass(frozen=True)
class Bench:
    """What every layout writes.

    Attributes:
        records: measured.
        learnt: labels of other positions.
        classes: V.
    """

    records: Records
    learnt: sl.SoftLabels
    classes: int

    @property
    def bounds(self) -> Bounds:
        return self.records.label_offsets.tolist()

    def top(self, k: int) -> sl.SoftLabels:
        return replace(self.records.labels.top(k), logits=None)

    def describe(self) -> str:
        records, count = len(self.records), len(self.records.labels)
        return f"{count:,} positions in {records} records, {count / records:.0f} each,"

    def ours(self, name: str, k: int) -> Ours:
        learnt = of_teacher(name, self.learnt.top(k))
        needs = codecs.Needs(self.classes, k, learnt.temperatures)
        return Ours(name, codecs.resolve(name.split()[0], needs, pilot=lambda: learnt))


@dataclass(frozen=True)
class Ours:
    """A codec in Parquet as a shard has it, checked by digest and frame on reading, as a shard is.

    Attributes:
        engine: what unpacks; None for what the library chooses.
    """

    name: str
    codec: codecs.Codec
    engine: ModuleType | None = None
    share: int = 1

    def write(
        self, labels: sl.SoftLabels, bounds: Bounds, *, tokens: Records | None = None
    ) -> bytes:
        offsets = np.asarray(bounds)
        columns = {"positions": pa.array(np.diff(offsets).astype(np.int32))}
        columns |= self.codec.encode(labels, offsets)
        split = list(self.codec.split_columns)
        if tokens is not None and tokens.token_ids is not None:
            starts = pa.array(tokens.token_offsets.astype(np.int32))
            wide = int(tokens.token_ids.max()) >> 16
            ids = pa.array(tokens.token_ids.astype(np.uint32 if wide else np.uint16))
            columns["input_ids"] = pa.ListArray.from_arrays(starts, ids)
            split.append("input_ids.list.element")
        zstd = dict.fromkeys(["positions", "entries", *split], "ZSTD")
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns), sink, row_group_size=GROUP, use_dictionary=False,
            write_statistics=False, use_byte_stream_split=split, write_page_checksum=True,
            compression=zstd | dict.fromkeys(self.codec.packed_columns, "NONE"),
        )  # fmt: skip
        data = sink.getvalue().to_pybytes()
        return data + xxhash.xxh3_64_digest(data)

    def read(self, data: bytes) -> Iterator[sl.SoftLabels]:
        shard = memoryview(data)[:-8]
        if xxhash.xxh3_64_digest(shard) != data[-8:]:
            raise SystemExit(f"{self.name} is not what was written")
        file = pq.ParquetFile(pa.BufferReader(shard))
        for i in range(file.num_row_groups):
            table = file.read_row_group(i, use_threads=False)
            with unpacking(self.engine):
                labels, _ = self.codec.decode(table)
            yield labels


@contextmanager
def unpacking(engine: ModuleType | None) -> Iterator[None]:
    """Codecs unpack by this module meanwhile."""
    chosen = engines.cpu
    if engine is not None:
        engines.cpu = lambda: engine
    try:
        yield
    finally:
        engines.cpu = chosen


def of_teacher(name: str, labels: sl.SoftLabels) -> sl.SoftLabels:
    """What a teacher that gives logits of the codec's dtype would have given."""
    dtype = CODECS.get(name)
    if dtype is None:
        return labels
    assert labels.logsumexp is not None
    logsumexp = labels.logsumexp[:, None]
    logits = (labels.log_probs.double() + logsumexp).to(dtype)
    return replace(labels, logits=logits, log_probs=logits.float() - logsumexp)


def joined(found: Iterator[Any]) -> Any:
    pieces = list(found)
    if isinstance(pieces[0], sl.SoftLabels):
        return sl.labels.concatenate(pieces)
    return Entries(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


@dataclass(frozen=True)
class Row:
    """Bytes a position and added KL of a layout; None for what it does not store."""

    name: str
    k: int
    entries: float
    kl: AddedKL
    tails: float | None = None
    scalars: float | None = None
    limit: float | None = None


def show_bytes(bench: Bench, figure: Path | None) -> None:
    rows = []
    for k in (k for k in (128, 64, 50, 16, 8) if k <= bench.records.labels.k):
        labels = bench.top(k)
        names = CODECS if k in (64, 16, 8) else ["compact"]
        rows += [our_row(bench, name, labels) for name in names]
        rows += [peer_row(bench, peer, labels) for peer in peers(k, bench.classes)]
    print("\nBytes a position, and what storing adds to the KL, in nats\n")
    header = ["layout, k", "entries", "tails", "scalars and token", "limit of entries"]
    header += [f"KL T = {t:g}, {kind}" for t in TEMPERATURES for kind in ("mean", "worst")]
    print(markdown([*header, "kept alone"], [cells(row) for row in rows]))
    print(f"\n{NOTE}")
    if figure is not None:
        draw(rows, figure, temperatures=TEMPERATURES)


def cells(row: Row) -> list[str]:
    sizes = (row.entries, row.tails, row.scalars, row.limit)
    kls = [found[t] for t in TEMPERATURES for found in (row.kl.mean, row.kl.worst)]
    return [
        f"{row.name}, {row.k}",
        *("–" if size is None else f"{size:.1f}" for size in sizes),
        *("0" if abs(kl) < ROUNDING else f"{kl:.1e}" for kl in (*kls, row.kl.kept_mean)),
    ]


def our_row(bench: Bench, name: str, labels: sl.SoftLabels) -> Row:
    ours, bounds = bench.ours(name, labels.k), bench.bounds
    labels = of_teacher(name, labels)
    found = joined(ours.read(ours.write(labels, bounds)))
    kl = added_kl(name, labels, found, classes=bench.classes, temperatures=TEMPERATURES)
    if name != "compact" and max(map(abs, (*kl.worst.values(), kl.kept_mean))) > ROUNDING:
        raise SystemExit(f"{name} did not give back what was written")
    # By difference: a constant field takes next to nothing.
    plainer = blank(labels, "logsumexp", "hard_log_probs")
    written = [
        ours.write(blank(plainer, "log_tails"), bounds),
        ours.write(plainer, bounds),
        ours.write(labels, bounds, tokens=bench.records),
    ]
    entries, with_tails, everything = (len(data) / len(labels) for data in written)
    bound = limit(labels).total if name == "compact" else None
    return Row(name, labels.k, entries, kl, with_tails - entries, everything - with_tails, bound)


def blank(labels: sl.SoftLabels, *fields: str) -> sl.SoftLabels:
    return replace(labels, **{name: torch.full_like(getattr(labels, name), -1) for name in fields})


def peer_row(bench: Bench, peer: Peer, labels: sl.SoftLabels) -> Row:
    data = peer.write(labels, bench.bounds)
    found = joined(peer.read(data))
    # A fitted curve is far off where two classes are equal and the third is far below.
    far = 1e-4 if isinstance(peer, DistillKit) else 0.0
    kl = added_kl(
        peer.name, labels, found, classes=bench.classes, temperatures=TEMPERATURES, far=far
    )
    return Row(peer.name, labels.k, len(data) / len(labels), kl)


def show_speed(bench: Bench, *, runs: int) -> None:
    print("\nMillion positions per CPU second, to tensors; how many times that compact does\n")
    header = ("layout, k", "write M/s", "compact / it", "read M/s", "compact / it")
    rows = []
    for k in (k for k in (64, 16, 128, 50) if k <= bench.records.labels.k):
        compact = bench.ours("compact", k)
        contestants: list[Peer | Ours] = [compact, *peers(k, bench.classes)]
        if k in (64, 16):
            contestants.append(NestedLists("datasets, nested lists as NumPy", form="numpy"))
            contestants.append(replace(compact, name="compact, NumPy alone", engine=unpack_numpy))
            contestants += [bench.ours(name, k) for name in CODECS if name != "compact"]
        rows += speeds(bench, contestants, bench.top(k), runs=runs)
    print(markdown(header, rows))


def speeds(
    bench: Bench, contestants: list[Peer | Ours], labels: sl.SoftLabels, *, runs: int
) -> list[list[str]]:
    """Of the first contestant and of the others, beside it."""
    writes, reads, rows = {}, {}, {}
    for one in contestants:
        bounds = bench.bounds[: 1 + -(-len(bench.records) // one.share)]
        given = of_teacher(one.name, labels[: bounds[-1]])
        writes[one.name] = partial(one.write, given, bounds)
        reads[one.name] = partial(exhaust, one, one.write(given, bounds))
        share = "" if one.share == 1 else f" (1/{one.share} of the records)"
        rows[one.name] = [f"{one.name}, {labels.k}{share}"]
    for runners in (writes, reads):
        turns = {name: turns_of(run) for name, run in runners.items()}
        many = {name: partial(repeat, run, turns[name]) for name, run in runners.items()}
        taken = {
            name: runs_of.cpu / turns[name]
            for name, runs_of in interleaved(many, runs=runs).items()
        }
        rates = {
            one.name: bench.bounds[-(-len(bench.records) // one.share)] / taken[one.name] / 1e6
            for one in contestants
        }
        for name, rate in rates.items():
            rows[name] += [f"{rate:.2g}", f"{rates[contestants[0].name] / rate:.2g}"]
    return list(rows.values())


def turns_of(run: Callable[[], Any]) -> int:
    """How often it must be run to be measured as work that goes on, not as work that begins."""
    began = time.process_time()
    run()
    return max(1, round(MEASURED_SECONDS / (time.process_time() - began)))


def repeat(run: Callable[[], Any], turns: int) -> None:
    for _ in range(turns):
        run()


def exhaust(one: Peer | Ours, data: bytes) -> None:
    for _ in one.read(data):
        pass


def show_tails(bench: Bench, labels: sl.LabelSet) -> None:
    probes = dense_probes(labels)
    if probes is None:
        return
    print(f"\nTail mass at T from those stored at {probes.teacher.temperatures}, by compact,")
    print(f"against {len(probes.logits):,} dense positions: mean / worst absolute error\n")
    rows = []
    for k in (k for k in (64, 16, 8) if k <= probes.teacher.k):
        ours = bench.ours("compact", k)
        stored = joined(ours.read(ours.write(probes.teacher.top(k), [0, len(probes.logits)])))
        row = [f"{k}"]
        for temperature in BETWEEN:
            found = stored.log_tail(temperature).double().exp()
            error = (found - probes.log_tails(stored.ids, temperature).exp()).abs()
            row.append(f"{float(error.mean()):.4f} / {float(error.max()):.3f}")
        rows.append(row)
    print(markdown(["k", *(f"T = {t:g}" for t in BETWEEN)], rows))


def show_random(source: Path, *, touches: int) -> None:
    """One record at a time from a label set on disk, its files in the system's page cache."""
    with tempfile.TemporaryDirectory() as folder:
        derive(source, Path(folder) / "labels", codec="compact", k=64)
        path, exact = Path(folder) / "labels", sl.LabelSet.open(source)
        random, opened = np.random.default_rng(0), sl.LabelSet.open(path)
        for i in range(len(opened)):
            if not torch.equal(opened[i].ids.sort(-1)[0], exact[i].top(64).ids.sort(-1)[0]):
                raise SystemExit(f"record {i} of the derived set has other ids")
        first, unread, again = [], [], []
        for i in random.integers(len(opened), size=touches).tolist():
            first.append(milliseconds(sl.LabelSet.open(path), i))
        for i in random.integers(len(opened), size=2 * touches).tolist():
            unread.append(milliseconds(with_another_group_read(path, i), i))
        for i in range(len(opened)):
            opened[i]
        for i in random.integers(len(opened), size=20 * touches).tolist():
            again.append(milliseconds(opened, i))
    print("\nOne random record of compact at k = 64, milliseconds\n")
    rows = [
        [name, f"{statistics.median(times):.2f}", f"{statistics.quantiles(times, n=20)[-1]:.2f}"]
        for name, times in (
            ("the first of a set just opened", first),
            ("of a row group not read before", unread),
            ("of one that was", again),
        )
    ]
    print(markdown(["", "median", "p95"], rows))


def with_another_group_read(path: Path, index: int) -> sl.LabelSet:
    """A set just opened, of which a row group beside that record's has been read, in its shard."""
    labels = sl.LabelSet.open(path)
    groups = list(labels.row_groups)
    (group,) = labels.row_groups.of(np.array([index])).tolist()
    others = [g for n, g in enumerate(groups) if n != group] or groups
    labels[min(others, key=lambda g: (g.shard != groups[group].shard, g.start)).start]
    return labels


def milliseconds(labels: sl.LabelSet, index: int) -> float:
    began = time.perf_counter()
    labels[index]
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()

"""How does a label set of 10^5 shards and 10^9 records open, and what does a work unit cost?

    python benchmarks/bench_scale.py [--groups 1 10] [--folder FOLDER] [--quick]

Sets of that size are synthesised. One shard is real: 10^4 records of a token each, by a teacher
whose logits are all zero, in as many row groups as --groups says (313 are what 10^4 records of 512
tokens make). All shards are hard links to it, so that each can be opened, checked and read, but
they have the same records; their receipts are its own but for path, unit, and a sha256 and an input
digest that are random, as real ones are. There is no key index. `softlabels verify` would refuse
such a set; what is measured reads it as any other.

Then 10^3, 10^4 and 10^5 work units of four records: real data, receipts with the true digest of
each unit's rows, and shards that are links again. The command that labels them finds all of them
done, checks that the data is the same, and finishes the set: its three stages are timed one by one.
Some units are labelled for comparison.

Every measure has a process of its own, softlabels loaded, with its files in the page cache.
Memory is what is resident above that. Beside seconds stand those of the processor, which do not
depend on what else the machine does. Ten minutes and 2 GB, one with --quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from timing import machine, markdown, peak_extra_bytes

from softlabels import LabelSet, TopK, loader, precompute, teachers
from softlabels.cli.look import show_info
from softlabels.format import keys, layout, manifest, shard_writing
from softlabels.format import plan as plans
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.shard import file_sha256
from softlabels.inputs.digests import input_digests, unit_digest
from softlabels.labelset.writer import LabelSetWriter

RECORDS, UNIT_ROWS, CLASSES = 10_000, 4, 16
# ext4 takes 65,000 names for one file.
LINKS = 50_000
LABELLED_UNITS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 10], help="in each shard")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--units", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="for the sets, on the disk that is measured")
    parser.add_argument("--quick", action="store_true", help="10^4 shards; 10^3 and 10^4 units")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, where = args.child
        print(json.dumps(CHILDREN[name](Path(where))))
        return
    if args.quick:
        args.shards, args.units, args.groups = 10_000, [1_000, 10_000], args.groups[:1]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = [_reading(Path(folder), args.shards, groups) for groups in args.groups]
        print(f"{args.shards:,} shards, {args.shards * RECORDS:,} records\n")
        print(markdown(["row groups a shard", "shards.parquet", *READING], rows), flush=True)
        rows = [_making(Path(folder), units) for units in args.units]
        print(f"\nms a unit, and MB of memory\n\n{markdown(MAKING, rows)}")
        alone = _child("labelling", Path(folder))
        print(f"\nLabelled, a unit takes {alone['ms']:.1f} ms; a key's place in the index ", end="")
        index = _child("index", Path(folder))
        print(f"{index['ns']:.0f} ns of the processor\n\n{machine()}")


READING = ("open", "first batch", "of a shuffled epoch", "info")
STAGES = ("plan", "resume", "finish", "open")
MAKING = ("units", *STAGES, "memory")


def _reading(folder: Path, shards: int, groups: int) -> list[str]:
    root = folder / f"read-{groups}"
    synthesise(root, shards, groups)
    table = (root / layout.SHARDS).stat().st_size
    found = [_child(name, root) for name in ("open", "ordered", "shuffled", "info")]
    cells = [f"{one['s']:.2f} s ({one['cpu']:.2f}), {one['mb']:.0f} MB" for one in found]
    return [f"{groups}", f"{table / 1e6:.0f} MB", *cells]


def _making(folder: Path, units: int) -> list[str]:
    root = folder / f"made-{units}"
    synthesise_units(root, units)
    found = _child("resume", root)
    per_unit = 1e3 / units
    each = [
        f"{found[stage] * per_unit:.3f} ({found[f'{stage} cpu'] * per_unit:.3f})"
        for stage in STAGES
    ]
    return [f"{units:,}", *each, f"{found['mb']:.0f}"]


def _child(name: str, where: Path) -> dict[str, float]:
    """A measure, in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(where)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def null_teacher() -> Any:
    """All classes are as likely everywhere."""
    return teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, CLASSES), name="null", version="1", classes=CLASSES
    )


def label(data: Any, out: Path, **options: Any) -> LabelSet:
    return precompute(
        data, null_teacher(), out, selection=TopK(4), column="ids", codec="plain",
        progress=False, **options,
    )  # fmt: skip


def synthesise(root: Path, shards: int, groups: int) -> None:
    """A finished set of so many shards of 10^4 records in so many row groups."""
    usual = shard_writing.ROW_GROUP_POSITIONS
    shard_writing.ROW_GROUP_POSITIONS = -(-RECORDS // groups)
    try:
        rows = [{"ids": [i % CLASSES]} for i in range(RECORDS)]
        labels = label(rows, root, unit_rows=RECORDS)
    finally:
        shard_writing.ROW_GROUP_POSITIONS = usual
    real = labels.receipts[0]
    assert len(real.group_rows) == groups
    _link(root, real, shards)
    random = np.random.default_rng(0)
    made = (
        real.model_copy(
            update={
                "path": layout.shard_path("train", unit),
                "unit": unit,
                "sha256": random.bytes(32).hex(),
                "input_digest": random.bytes(16).hex(),
            }
        )
        for unit in range(shards)
    )
    footer = manifest.write_shard_table(root / layout.SHARDS, made)
    one = manifest.total([real]).model_dump()
    finished = Manifest(
        format=labels.plan.format,
        plan_sha256=plans.digest((root / layout.PLAN).read_bytes()),
        totals=manifest.Totals(**{name: count * shards for name, count in one.items()}),
        files={layout.SHARDS: file_sha256(root / layout.SHARDS)},
        shards_footer=footer,
    )
    (root / layout.MANIFEST).write_bytes(finished.to_bytes())


def _link(root: Path, real: Receipt, shards: int) -> None:
    original = root / real.path
    data = original.read_bytes()
    for unit in range(1, shards):
        path = root / layout.shard_path("train", unit)
        if unit % LINKS:
            os.link(original, path)
        else:
            path.write_bytes(data)
            original = path


def synthesise_units(root: Path, units: int) -> None:
    """Data beside the set, and a set of which every unit is done and nothing else."""
    count = units * UNIT_ROWS
    rows = np.arange(count)
    ids = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * count + 1, 2), pa.int32()),
        pa.array(np.stack([rows % CLASSES, rows // CLASSES % CLASSES], 1).ravel()),
    )
    table = pa.table({"ids": ids})
    pq.write_table(table, f"{root}.parquet", row_group_size=1 << 16)
    real = label(table.slice(0, UNIT_ROWS).to_pylist(), root, unit_rows=UNIT_ROWS).receipts[0]
    for path in root.iterdir():
        if path.is_file() and path.name != layout.PLAN:
            path.unlink()
    (root / layout.RECEIPTS).mkdir()
    _link(root, real, units)
    for unit in range(units):
        first = unit * UNIT_ROWS
        digests = input_digests(table.slice(first, UNIT_ROWS), ["ids"])
        update = {
            "path": layout.shard_path("train", unit),
            "unit": unit,
            "input_digest": unit_digest(range(first, first + UNIT_ROWS), digests),
        }
        data = real.model_copy(update=update).model_dump_json()
        (root / layout.receipt_path(unit)).write_text(data)


def _timed(run: Callable[[], Any]) -> dict[str, float]:
    found: dict[str, float] = {}

    def timed() -> None:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        found["s"], found["cpu"] = time.perf_counter() - began, time.process_time() - cpu

    return {"mb": peak_extra_bytes(timed) / 1e6} | found


def _first_batch(root: Path, seed: int | None) -> None:
    batch = next(iter(loader(LabelSet.open(root), batch_size=8, seed=seed)))
    assert batch["soft_labels"].ids.shape == (8, 1, 4)


def _info(root: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        show_info(str(root), as_json=False)


def _resume(root: Path) -> dict[str, float]:
    """Seconds of each stage of a command that finds everything done."""
    times: list[tuple[float, float]] = []
    begin, finish = LabelSetWriter.__init__, LabelSetWriter.finish

    def note() -> None:
        times.append((time.perf_counter(), time.process_time()))

    def began(writer: LabelSetWriter, *args: Any) -> None:
        note()
        begin(writer, *args)

    def finished(writer: LabelSetWriter, *args: Any) -> Any:
        note()
        made = finish(writer, *args)
        note()
        return made

    def run() -> None:
        note()
        label(f"{root}.parquet", root, unit_rows=UNIT_ROWS)
        note()

    with mock.patch.multiple(LabelSetWriter, __init__=began, finish=finished):
        found = {"mb": _timed(run)["mb"]}
    for stage, before, after in zip(STAGES, times, times[1:], strict=False):
        found |= {stage: after[0] - before[0], f"{stage} cpu": after[1] - before[1]}
    return found


def _labelling(folder: Path) -> dict[str, float]:
    rows = [{"ids": [i % CLASSES]} for i in range(LABELLED_UNITS * UNIT_ROWS)]
    found = _timed(lambda: label(rows, folder / "labelled", unit_rows=UNIT_ROWS))
    return {"ms": found["s"] / LABELLED_UNITS * 1e3}


def _index(folder: Path) -> dict[str, float]:
    """An index that is sorted in parts."""
    count = 1 << 22

    def made() -> Iterator[pa.Array]:
        for start in range(0, count, RECORDS):
            yield pa.array(range(start, min(start + RECORDS, count)))

    file = folder / layout.KEYS
    found = _timed(lambda: keys.write_index(file, made(), records=count, scratch=folder))
    return {"ns": found["cpu"] / count * 1e9}


CHILDREN: dict[str, Callable[[Path], dict[str, float]]] = {
    "open": lambda root: _timed(lambda: LabelSet.open(root)),
    "ordered": lambda root: _timed(lambda: _first_batch(root, None)),
    "shuffled": lambda root: _timed(lambda: _first_batch(root, 0)),
    "info": lambda root: _timed(lambda: _info(root)),
    "resume": _resume,
    "labelling": _labelling,
    "index": _index,
}

if __name__ == "__main__":
    main()

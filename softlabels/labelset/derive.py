"""derive: another codec or fewer entries, from a set alone; the teacher is never needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from softlabels import codecs
from softlabels.errors import InputError, LabelSetError
from softlabels.labels import SoftLabels, concatenate
from softlabels.labelset import layout
from softlabels.labelset import plan as plans
from softlabels.labelset.manifest import Receipt
from softlabels.labelset.plan import Origin, Plan, SelectionPlan
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.records import Records, join
from softlabels.labelset.shard import UnitSummary, file_sha256
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.progress import Tracker, shown
from softlabels.selection import Dense, TopK

# What a codec learns its id table and its dictionary from: the beginnings of a seeded sample of
# records. More change little (docs/RESULTS.md).
_SAMPLE_RECORDS, _SAMPLE_POSITIONS = 256, 16


def derive(
    source: str | os.PathLike[str] | LabelSet,
    out: str | os.PathLike[str],
    *,
    codec: str | None = None,
    k: int | None = None,
    progress: bool | None = None,
) -> LabelSet:
    """Write a label set again, in another codec or with fewer entries at each position.

    The mass of the entries left out joins the tails. From a `lossless` set the labels are those
    that labelling with fewer entries would have given, to float32 rounding.
    Run again after a crash: finished shards are skipped.

    Args:
        source: a finished label set.
        out: a folder, new, empty or from an earlier run.
        codec: as `softlabels.precompute` takes it; the source's by default.
        k: entries at each position; all of the source's by default.
        progress: show it on standard error; None shows it in a terminal only.

    Returns:
        the finished set, opened. Its plan names the source, and where that came from.

    Raises:
        InputError: more entries than the source has, or logits that it does not have.
        PlanMismatchError: the folder was begun with another recipe.
        CorruptShardError: the source is damaged.
    """
    labels = source if isinstance(source, LabelSet) else LabelSet.open(source)
    root = Path(out)
    check_directory(root)
    if not labels.finished:
        raise LabelSetError(
            f"{labels.name} is unfinished; run the `softlabels precompute` that began it again"
        )
    if labels.plan.codec["name"] == "sampled":
        raise InputError(
            f"{labels.name} is sampled: a part of unbiased weights is biased, and no other codec "
            "writes weights; label again with another selection"
        )
    kept = _entries(labels.plan, codec, k)
    if codec is not None:
        codecs.Needs(labels.plan.teacher.classes, kept, ()).check(codecs.preset(codec).codec)
    name = str(labels.plan.codec["name"]) if codec is None else codecs.preset(codec).codec
    if name == "lossless" and labels.codec.logits_dtype is None:
        raise InputError(
            f"{labels.name} is written with the codec {labels.plan.codec['name']}, which does not "
            "keep the teacher's logits; lossless can be derived from lossless alone"
        )
    check_writable(root)
    plan = _plan(labels, name, kept, root)
    with (
        shown(progress, doing="deriving", first="learning the id table") as report,
        begin(root, plan, save_tokenizer=_tokenizer(labels)) as writer,
    ):
        tracker = Tracker(report, sum(receipt.source_rows for receipt in labels.receipts))
        for receipt in labels.receipts:
            if writer.receipt(receipt.unit) is not None:
                tracker.skip(receipt.source_rows)
                continue
            tracker.start(receipt.source_rows)
            records, summary = _unit(labels, receipt, kept)
            tracker.advance(len(records.labels), len(records.labels))
            _copy_probes(labels, receipt, writer)
            made = writer.publish(records, summary)
            tracker.finish(made.bytes, made.positions)
        writer.check_no_more_than(len(labels.receipts))
        writer.finish(len(labels.receipts))
    return LabelSet.open(root)


def _entries(plan: Plan, codec: str | None, k: int | None) -> int:
    """Entries to keep."""
    if k is None:
        k = plan.selection.k if codec != "tiny" else min(codecs.PRESETS["tiny"].k, plan.selection.k)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= plan.selection.k:
        raise InputError(
            f"k is {k!r}; the source holds {plan.selection.k} entries at a position, of which 1 to "
            f"{plan.selection.k} can be kept"
        )
    return k


def _plan(labels: LabelSet, name: str, k: int, root: Path) -> Plan:
    """The source's plan, but for what is derived; the codec of an earlier run stays."""
    origin = Origin(
        plan_sha256=plans.digest((labels.root / layout.PLAN).read_bytes()),
        shards_sha256=file_sha256(labels.root / layout.SHARDS),
        codec=str(labels.plan.codec["name"]),
        k=labels.plan.selection.k,
        writer=labels.plan.writer,
    )
    plan = labels.plan.model_copy(
        update={
            "format": plans.FORMAT,
            "writer": f"softlabels {metadata.version('softlabels')}",
            "selection": _selection(labels.plan.selection, k),
            "derived_from": (*labels.plan.derived_from, origin),
        }
    )
    return plans.with_codec(plan, name, plans.earlier(root), lambda: _sample(labels, k))


def _selection(source: SelectionPlan, k: int) -> SelectionPlan:
    """Of all classes, a part are the likeliest."""
    if source.name == Dense.name and k < source.k:
        return SelectionPlan.of(TopK(k))
    return source.model_copy(update={"k": k})


def _sample(labels: LabelSet, k: int) -> SoftLabels:
    """Labels of the beginnings of a seeded sample of records."""
    count = min(_SAMPLE_RECORDS, len(labels))
    chosen = np.random.default_rng(0).choice(len(labels), count, replace=False, shuffle=False)
    parts = [labels.take([number]).labels[:_SAMPLE_POSITIONS] for number in np.sort(chosen)]
    return _fewer(labels, concatenate(parts or [labels.take([]).labels]), k)


def _unit(labels: LabelSet, receipt: Receipt, k: int) -> tuple[Records, UnitSummary]:
    """The records of one shard, with k entries at each position."""
    shard = labels.open_shard(receipt)
    groups = range(shard.metadata.num_row_groups)
    parts = [shard.records(group, labels.codec) for group in groups]
    parts = parts or [labels.take([])]
    derived = [replace(part, labels=_fewer(labels, part.labels, k)) for part in parts]
    return join(derived), shard.summary()


def _fewer(source: LabelSet, labels: SoftLabels, k: int) -> SoftLabels:
    return labels.first(k) if source.codec.ordered else labels.top(k)


def _copy_probes(labels: LabelSet, receipt: Receipt, writer: LabelSetWriter) -> None:
    if receipt.probes:
        file = labels.probes_file(receipt)
        writer.publish_probes(receipt.unit, lambda path: shutil.copyfile(file, path))


def _tokenizer(labels: LabelSet) -> Callable[[Path], object] | None:
    folder = labels.tokenizer_folder()
    if folder is None:
        return None
    return lambda to: shutil.copytree(folder, to, dirs_exist_ok=True)

"""derive: another codec, fewer entries, some of the records, sets merged; from sets alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from softlabels import codecs
from softlabels.deriving.bounds import bounds
from softlabels.deriving.choice import Keys, choose
from softlabels.deriving.sources import Sources, check_apart, check_sources
from softlabels.deriving.unit import Recipe, derive_unit, fewer
from softlabels.errors import InputError
from softlabels.format import plan as plans
from softlabels.format.derived_from import Origin
from softlabels.format.plan import Plan, SelectionPlan
from softlabels.labels import Labels, concatenate
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.writer import LabelSetWriter, begin, check_directory, check_writable
from softlabels.parallel import in_order, worker_count
from softlabels.progress import Tracker, shown
from softlabels.selection import Dense, TopK
from softlabels.stores.target import Out, destination, earlier

# What a codec learns its id table and its dictionary from: the beginnings of a seeded sample of
# records. More change little (docs/RESULTS.md).
_SAMPLE_RECORDS, _SAMPLE_POSITIONS = 256, 16
# Records of vectors, of which a book of product codes takes many.
_SAMPLE_VECTORS = 4096
# An id, a log-prob and a logit; of a unit, at most.
_ENTRY_BYTES, _UNIT_BYTES = 16, 2 << 30

Source = str | os.PathLike[str] | LabelSet


def derive(
    source: Source,
    out: Out,
    *,
    merge: Source | Iterable[Source] = (),
    codec: str | None = None,
    k: int | None = None,
    keys: Keys | None = None,
    where: str | None = None,
    fraction: float | None = None,
    seed: int = 0,
    shard_records: int | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> LabelSet:
    """Write a label set again: in another codec, with fewer entries, some records, sets merged.

    The mass of the entries left out joins the tails. From a `lossless` set the labels are those
    that labelling with fewer entries would have given, to float32 rounding. With the source's codec
    and entries, labels are copied as they are stored. Run again after a crash: finished shards are
    skipped.

    A set grows by merging: label the new samples alone, with the same settings, then append them.

        new = sl.precompute("new.jsonl", teacher, "labels/new", key="id")
        sl.derive("labels/docs", "labels/all", merge=[new])

    Args:
        source: a finished label set.
        out: a folder, new, empty or from an earlier run; or the URL of a prefix of an object store.
        merge: one or more finished sets, appended in this order: of the same teacher, preparation,
            selection, temperatures and codec, and of other samples.
        codec: as `softlabels.precompute` takes it; the source's by default.
        k: entries at each position; all of the source's by default.
        keys: only the samples with these keys: a list; or a file, text with a key in each line, or
            Parquet with a column "key".
        where: only the records for which this holds, such as "entropy < 2 and mass > .9"; the
            statistics are `softlabels.deriving.where.STATISTICS`. Rejects have none.
        fraction: only this share of the samples, by a hash of seed and key alone: whatever else a
            set holds, and a smaller share is a part of a larger one.
        seed: which samples.
        shard_records: records in a shard, at most, but the windows of a sample stay together; by
            default every shard of a source makes one.
        workers: threads; one for each core, at most eight.
        progress: show it on standard error; None shows it in a terminal only.

    Returns:
        the finished set, opened. Its plan names the sources, what was taken of them, and where they
        came from.

    Raises:
        InputError: an argument cannot be used; more entries than the source has, or logits that it
            does not have; sets that differ in what their labels mean.
        DuplicateKeyError: a key is in two of the sets.
        PlanMismatchError: the folder was begun with another recipe.
        CorruptShardError: a source is damaged.
    """
    threads = worker_count(workers)
    check_directory(out)
    if isinstance(merge, (str, os.PathLike, LabelSet)):
        merge = [merge]  # one: a text would be taken for a list of its letters
    sets = tuple(s if isinstance(s, LabelSet) else LabelSet.open(s) for s in (source, *merge))
    check_sources(sets)
    _check_outside(sets, out)
    kept = _entries(sets[0].plan, codec, k)
    name = _codec_name(sets[0], codec, kept, k)
    _check_shard_records(shard_records, sets, kept)
    choice = choose(sets, keys=keys, where=where, fraction=fraction, seed=seed)
    check_apart(sets, choice)
    if name == "lossless" and kept == sets[0].plan.selection.k:
        _check_wide_enough(sets)
    sources = Sources(sets)
    origin = sources.origin(**choice.in_plan(), shard_records=shard_records)
    check_writable(out)
    plan = _plan(sets, origin, name, kept, out)
    with (
        shown(progress, doing="deriving", first="looking at what is there") as report,
        begin(out, plan, save_tokenizer=_tokenizer(sets[0])) as writer,
    ):
        places = bounds(sources, choice, shard_records=shard_records, workers=threads)
        recipe = Recipe(sources, choice, places, kept)
        tracker = Tracker(report, int(recipe.source_rows[-1]))
        _derive_units(recipe, writer, tracker, workers=threads)
        writer.check_no_more_than(len(recipe))
        writer.finish(len(recipe))
    return LabelSet.open(out)


def _derive_units(
    recipe: Recipe, writer: LabelSetWriter, tracker: Tracker, *, workers: int
) -> None:
    """Derive and publish every unit that is not there yet."""
    rows = np.diff(recipe.source_rows).tolist()
    todo = []
    for unit in range(len(recipe)):
        if writer.receipt(unit) is None:
            todo.append(unit)
        else:
            tracker.skip(rows[unit])
    made = in_order(partial(derive_unit, recipe, writer=writer), todo, workers=workers)
    for receipt in made:
        tracker.start(rows[receipt.unit])
        tracker.advance(receipt.positions, receipt.positions)
        tracker.finish(receipt.bytes, receipt.positions)


def _entries(plan: Plan, codec: str | None, k: int | None) -> int:
    """Entries to keep."""
    if k is None:
        k = plan.selection.k if codec != "tiny" else min(codecs.PRESETS["tiny"].k, plan.selection.k)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= plan.selection.k:
        raise InputError(
            f"k is {k!r}; the source holds {plan.selection.k} entries at a position, of which 1 to "
            f"{plan.selection.k} can be kept"
        )
    if k < plan.selection.k and plan.kind != "categorical":
        raise InputError(
            f"k is {k!r}, and labels of the kind {plan.kind} are kept as they are: leave it out"
        )
    return k


def _codec_name(labels: LabelSet, codec: str | None, kept: int, k: int | None) -> str:
    plan = labels.plan
    if plan.codec["name"] == "sampled" and (codec is not None or k is not None):
        raise InputError(
            f"{labels.name} is sampled: a part of unbiased weights is biased, and no other codec "
            "writes weights; leave out codec and k, or label again with another selection"
        )
    if codec is None:
        return str(plan.codec["name"])
    name = codecs.preset(codec, plan.kind).codec
    codecs.check(name, codecs.Needs(plan.teacher.classes, kept, (), kind=plan.kind))
    if name == "lossless" and labels.codec.logits_dtype is None:
        raise InputError(
            f"{labels.name} is written with the codec {plan.codec['name']}, which does not "
            "keep the teacher's logits; lossless can be derived from lossless alone"
        )
    return name


def _check_wide_enough(sets: Sequence[LabelSet]) -> None:
    """Refuse where the first set's codec, which stays, cannot hold the logits of another."""
    held = sets[0].codec.logits_dtype
    for labels in sets[1:]:
        kind = labels.codec.logits_dtype
        if held is not None and kind is not None and torch.promote_types(held, kind) != held:
            raise InputError(
                f"{sets[0].name} keeps logits in {held}, which cannot hold those of {labels.name} "
                f"({kind}): name that set first"
            )


def _check_outside(sets: Sequence[LabelSet], out: Out) -> None:
    """Refuse a folder within a source, where it would be a stray file of that set."""
    place = Path(destination(out).address)
    for labels in sets:
        if Path(labels.name).absolute() in place.parents:
            raise InputError(f"{place} is inside the source {labels.name}: choose another folder")


def _check_shard_records(count: int | None, sets: Sequence[LabelSet], k: int) -> None:
    if count is None:
        return
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"shard_records is {count!r}; it must be a whole number, at least 1")
    totals = [labels.totals for labels in sets]
    positions = sum(t.positions for t in totals) / max(1, sum(t.records for t in totals))
    most = max(1, int(_UNIT_BYTES / max(1.0, _ENTRY_BYTES * k * positions)))
    if count > most:
        raise InputError(
            f"shard_records is {count:,}; a shard is held in memory while it is made, and with "
            f"{positions:,.0f} positions a record and {k} entries at each that is more than 2 GiB: "
            f"choose at most {most:,}"
        )


def _plan(sets: Sequence[LabelSet], origin: Origin, name: str, k: int, out: Out) -> Plan:
    """The first source's plan, but for what is derived; the codec of an earlier run stays."""
    first = sets[0].plan
    selection = _selection(first.selection, k)
    update = {
        "format": plans.FORMAT,
        "writer": f"softlabels {metadata.version('softlabels')}",
        "selection": selection,
        "probes": sum(labels.plan.probes for labels in sets),
        "derived_from": (*first.derived_from, origin),
    }
    if len(sets) > 1:
        update["data"] = first.data.model_copy(update={"limit": None})
    plan = first.model_copy(update=update)
    if (name, selection) == (first.codec["name"], first.selection):
        return plan
    return plans.with_codec(plan, name, earlier(out), lambda: _sample(sets, k))


def _selection(source: SelectionPlan, k: int) -> SelectionPlan:
    """Of all classes, a part are the likeliest."""
    if source.name == Dense.name and k < source.k:
        return SelectionPlan.of(TopK(k))
    return source.model_copy(update={"k": k})


def _sample(sets: Sequence[LabelSet], k: int) -> Labels:
    """Labels of the beginnings of a seeded sample of records."""
    starts = np.cumsum([0, *map(len, sets)])
    total = int(starts[-1])
    many = sets[0].plan.kind == "embedding"
    count = min(_SAMPLE_VECTORS if many else _SAMPLE_RECORDS, total)
    chosen = np.random.default_rng(0).choice(total, count, replace=False, shuffle=False)
    parts = []
    for number in np.sort(chosen):
        of = int(np.searchsorted(starts, number, side="right")) - 1
        labels = sets[of].take([number - starts[of]]).labels[:_SAMPLE_POSITIONS]
        parts.append(fewer(sets[of], labels, k))
    return concatenate(parts or [fewer(sets[0], sets[0].take([]).labels, k)])


def _tokenizer(labels: LabelSet) -> Callable[[Path], object] | None:
    folder = labels.tokenizer_folder()
    if folder is None:
        return None
    return lambda to: shutil.copytree(folder, to, dirs_exist_ok=True)

"""The front door to loading: what a user asks for becomes a Loader."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.sources import Source
from softlabels.inputs.views import Views
from softlabels.labelset.reader import LabelSet
from softlabels.loading.asked import Asked
from softlabels.loading.assemble import Assembler, Shape
from softlabels.loading.choice import AndUnlabelled, Choice, Parts, choose, numbers
from softlabels.loading.feed import Feed, OrderedFeed
from softlabels.loading.join import ON_MISSING, Join, OnMissing
from softlabels.loading.loader import VERIFY, Loader, Verify, count
from softlabels.loading.order import MIXED_BLOCKS, Order
from softlabels.loading.ranks import Ranks
from softlabels.loading.rows import Rows, open_for
from softlabels.loading.stream import StreamedFeed
from softlabels.loading.teachers import Fuse, Teachers

Int64s = NDArray[np.int64]

logger = logging.getLogger("softlabels")


def loader(
    labels: LabelSet | Sequence[LabelSet] | Mapping[str, LabelSet],
    data: Any = None,
    *,
    batch_size: int = 8,
    shuffle: bool | None = None,
    seed: int | None = None,
    records: Sequence[int] | None = None,
    parts: Parts = "all",
    max_length: int | None = None,
    row_length: int | None = None,
    by_length: bool = False,
    fuse: Fuse | None = None,
    weights: Sequence[float] | None = None,
    disagreement: bool = False,
    columns: Sequence[str] | None = None,
    tokenizer: Any = None,
    views: Views | None = None,
    class_names: Sequence[str] | None = None,
    on_missing: OnMissing = "error",
    verify_inputs: Verify = "always",
    drop_last: bool = False,
    pad_id: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
    device: torch.device | str = "cpu",
) -> Loader:
    """Batches of inputs and soft labels.

    Args:
        labels: an opened label set; or several of the same samples, in a list or by name, whose
            labels come as a list or a dict. The first one chooses the records.
        data: what was labelled, joined by key: anything that `softlabels.precompute` takes, any
            torch dataset of mappings. Where it has random access the labels lead; a stream leads
            itself. May be left out when the set carries its inputs.
        batch_size: rows in a batch of one rank.
        shuffle: each epoch in its own order; by default if a seed is given. False is the set's
            order.
        seed: of everything drawn; 0 where it is shuffled without one.
        records: only these record numbers.
        parts: of a sample that was cut into several records: "all", "one" drawn anew for each
            (epoch, key), or in turn ("cycle").
        max_length: tokens of a record, at most; labels are cut with them.
        row_length: put several records into each row of so many tokens, none of them longer; see
            `softlabels.loading.collate.collate_packed` for what such a batch has.
        by_length: put records of about one length into a batch, to pad less.
        fuse: make one of several sets' labels: the "mixture" of their distributions (at T = 1, see
            `softlabels.loading.fuse.mixture`), or one of them for each record by (epoch, key), the
            "choice".
        weights: of the sets in it; equal by default.
        disagreement: of several sets, put into each batch how far the teachers are apart, float32
            nats of the labels' batch shape; see `softlabels.loading.fuse.disagreement`.
        columns: of `data`, to put into batches; all but the key and the labelled ones by default.
        tokenizer: the student's; refused if it is not the teacher's.
        views: what made the set's views, to make them again of their stored parameters.
        class_names: of the student's classes in its own order: labels come with its numbers, and
            a set that names others is refused.
        on_missing: rows of the data without labels raise ("error"), are left out ("skip"), or come
            without labels, for a loss on their hard labels ("hard-label"). Labels without a row
            are left out and reported.
        verify_inputs: hold every row to the digest of what was labelled, "always", in the
            "first-epoch" that is read, or "never".
        drop_last: leave out batches with fewer rows than the others, and a last round of batches
            that has none for some ranks.
        pad_id: stands where a batch has no token.
        rank: whose batches these are, of world_size; torch.distributed's by default.
        threads: that make batches; half the cores, at most 4, by default. 0 makes each when it is
            asked for.
        prefetch: batches that are made before they are asked for; twice the threads by default.
        device: where the tensors are wanted. On CUDA packed labels are copied and unpacked there,
            the rest copied from pinned memory without waiting.

    Returns:
        a `Loader` of dicts; see `softlabels.loading.collate.collate` for their fields.

    Raises:
        VocabularyMismatchError: the tokenizer differs from the teacher's.
        JoinError: labels and data do not belong together.
        InputError: no data for a set without inputs; no records; options that do not fit.
    """
    shuffle = seed is not None if shuffle is None else shuffle
    drawn = count(0 if seed is None else seed, "seed")
    teachers = Teachers.of(
        labels, fuse=fuse, weights=weights, seed=drawn, class_names=class_names,
        disagreement=disagreement,
    )  # fmt: skip
    leader = teachers.leader
    wanted = None if records is None else numbers(leader, records)
    single = leader.plan.single
    shape = Shape(pad_id, max_length, row_length, torch.device(device), single=single)
    _check(leader, data, columns=columns, on_missing=on_missing, verify_inputs=verify_inputs)
    if tokenizer is not None:
        leader.check_tokenizer(tokenizer)
    asked = Asked(batch_size, drawn if shuffle else None, shape, by_length)
    asked.check(on_missing)
    if leader.plan.preparation.kind == "array" and not (max_length is row_length is None):
        raise InputError("max_length and row_length are of tokens, and this set labels arrays")
    wanted = _of_all(teachers, wanted, on_missing)
    source = None if data is None else open_for(leader, data)
    if source is not None and source.read is None:
        _check_stream(shuffle=shuffle, records=records, parts=parts, shared=wanted)
        rows = Rows(leader, source, columns=columns, tokenizer=tokenizer, views=views)
        feed: Feed[Any] = _streamed(teachers, data, source, rows, asked, on_missing)
    else:
        join = None
        if source is not None:
            join = Join(
                leader, data, source, records=wanted, chosen=records is not None, columns=columns,
                tokenizer=tokenizer, views=views, on_missing=on_missing,
            )  # fmt: skip
            wanted = join.records
        feed = _ordered(teachers, join, wanted, asked, parts=parts, seed=drawn)
    made = Loader(
        feed,
        drop_last=drop_last,
        ranks=Ranks.find(rank, world_size),
        threads=_threads(threads),
        prefetch=2 * _threads(threads) if prefetch is None else count(prefetch, "prefetch"),
        verify_inputs=verify_inputs,
    )
    items = feed.items()
    if items is not None and (not items or (drop_last and not len(made))):
        raise made.without_batches()
    return made


def _of_all(teachers: Teachers, wanted: Int64s | None, on_missing: OnMissing) -> Int64s | None:
    """The records that every set has labels of.

    Raises:
        JoinError: there are others, and nobody said that they may be left out.
    """
    if len(teachers) > 1 and on_missing == "hard-label":
        raise InputError(
            "on_missing='hard-label' is for one label set; of several, leave out what not all of "
            "them have with on_missing='skip'"
        )
    shared = teachers.shared()
    if shared is None:
        return wanted
    kept = shared if wanted is None else np.intersect1d(shared, wanted)
    lacking = np.setdiff1d(np.arange(len(teachers.leader)) if wanted is None else wanted, kept)
    if len(lacking) and on_missing == "error":
        key = teachers.leader.identity(lacking[:1])["key"][0].as_py()
        raise JoinError(
            f"key {quoted(key)} and {len(lacking) - 1} other records of {teachers.leader.name} "
            "have no labels in one of the other sets; pass on_missing='skip' to leave them out"
        )
    if len(lacking):
        logger.warning(
            "%d records of %s have no labels in one of the other sets and are left out",
            len(lacking),
            teachers.leader.name,
        )
    return kept


def _ordered(
    teachers: Teachers,
    join: Join | None,
    wanted: Int64s | None,
    asked: Asked,
    *,
    parts: Parts,
    seed: int,
) -> OrderedFeed:
    choice: Choice = choose(teachers.leader, wanted, parts=parts, seed=seed)
    if join is not None and len(join.unlabelled):
        choice = AndUnlabelled(choice, len(join.unlabelled))
    mixed = min(MIXED_BLOCKS, teachers.leader.groups_in_memory)
    arrangement, lengths = asked.arrangement(teachers.leader)
    if lengths is not None:
        lengths(np.arange(len(teachers.leader)) if wanted is None else wanted)  # whether they fit
    return OrderedFeed(
        Assembler(teachers, None if join is None else join.rows, asked.shape),
        join,
        choice=choice,
        order=Order(choice.bounds, asked.seed, mixed),
        arrangement=arrangement,
        lengths=lengths,
    )


def _streamed(
    teachers: Teachers,
    data: Any,
    source: Source,
    rows: Rows,
    asked: Asked,
    on_missing: OnMissing,
) -> StreamedFeed:
    arrangement, lengths = asked.arrangement(teachers.leader)
    return StreamedFeed(
        teachers.leader,
        data,
        source,
        rows=rows,
        assembler=Assembler(teachers, rows, asked.shape),
        arrangement=arrangement,
        lengths=lengths,
        on_missing=on_missing,
    )


def _check(
    labels: LabelSet,
    data: Any,
    *,
    columns: Sequence[str] | None,
    on_missing: OnMissing,
    verify_inputs: Verify,
) -> None:
    if on_missing not in ON_MISSING:
        raise InputError(f"on_missing is {on_missing!r}; it is one of {', '.join(ON_MISSING)}")
    if on_missing == "hard-label" and labels.plan.preparation.answers is not None:
        raise InputError(
            f"{labels.name} has the teacher's answers to prompts; a prompt without labels has no "
            "answer to train on: leave it out with on_missing='skip'"
        )
    if verify_inputs not in VERIFY:
        raise InputError(f"verify_inputs is {verify_inputs!r}; it is one of {', '.join(VERIFY)}")
    if data is None and not labels.plan.store_inputs:
        raise InputError(
            f"{labels.name} does not carry its inputs (store_inputs=False); pass the data that "
            "was labelled: sl.loader(labels, data)"
        )
    if data is None and columns:
        raise InputError("columns= names columns of the data; pass it: sl.loader(labels, data)")


def _check_stream(
    *, shuffle: bool, records: Sequence[int] | None, parts: Parts, shared: Int64s | None
) -> None:
    """Refuse what needs to know a stream's rows before they come."""
    if shuffle:
        raise InputError(
            "data is a stream, which comes in its own order; shuffle the stream (of datasets: "
            "stream.shuffle(seed=…, buffer_size=…)), or pass data with random access"
        )
    if records is not None:
        raise InputError(
            "data is a stream, which gives the records of its rows; leave out records= and filter "
            "the stream, or pass data with random access"
        )
    if parts != "all":
        raise InputError(f"data is a stream; parts={parts!r} needs data with random access")
    if shared is not None:
        raise InputError(
            "the other label sets lack records of the first one, and data is a stream, of which "
            "they cannot be left out; pass data with random access, or put the set with the "
            "fewest records first"
        )


def _threads(threads: int | None) -> int:
    if threads is not None:
        return count(threads, "threads")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, max(1, (cores or 2) // 2))

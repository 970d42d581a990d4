"""Rows of the data beside their labels: checked, tokenised again, and their own columns."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, quoted
from softlabels.format.records import VIEW_PARAMS, Records
from softlabels.inputs.arrays import PACKED, array_of
from softlabels.inputs.digests import DIGEST_TYPE, input_digests, prepared_digest
from softlabels.inputs.prepare import prepare
from softlabels.inputs.sources import Source, open_source
from softlabels.inputs.views import Views
from softlabels.inputs.windows import Windows
from softlabels.labels import Labels
from softlabels.labelset.reader import LabelSet
from softlabels.loading.collate import ARRAY_FIELDS, FIELDS
from softlabels.loading.replay import Replay

Int64s = NDArray[np.int64]
_TOLD_BY = ("key", "part", "prepared_digest")


class Rows:
    """What a set's plan says of the rows that it labelled, and how to hold new ones to it.

    Args:
        labels: the set.
        source: the data, as `open_for` opens it.
        columns: of the data, to put into batches; by default all but the key, the labelled one
            and those that bear the name of a batch's own field.
        tokenizer: prepares text again; the set's own by default.
        views: make those of arrays again, of the parameters that are stored.

    Attributes:
        columns: those that go into batches.
        needed: those that are read.

    Raises:
        InputError: the data has no such columns, or the views are not those of the set.
    """

    def __init__(
        self,
        labels: LabelSet,
        source: Source,
        *,
        columns: Sequence[str] | None,
        tokenizer: Any,
        views: Views | None,
    ) -> None:
        self._plan, self._labels, self._tokenizer = labels.plan, labels, tokenizer
        self._lock = threading.Lock()
        self._arrays = self._plan.preparation.kind == "array"
        self._replay = Replay.of(labels, source, views)
        self._fields = ARRAY_FIELDS if self._arrays else FIELDS
        self.columns = _extra_columns(source, columns, self._fields)
        self._chosen, self._first = columns is not None, frozenset(source.schema.names)
        self.needed = [*source.columns, *(c for c in self.columns if c not in source.columns)]
        if not self._plan.store_inputs and not self._arrays:
            self._load_tokenizer()

    def of_first_columns(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """A stream's tables, none of which has a column that its first rows lack.

        Raises:
            InputError: one has, and nobody chose others.
        """
        row = 0
        for table in tables:
            known = self._first.union(self._fields)
            late = [] if self._chosen else sorted({*table.column_names} - known)
            if late:
                raise InputError(
                    f"rows {row} to {row + len(table) - 1} of the stream have a column "
                    f"{quoted(late[0])}, which the first rows lack; give it to all of them, null "
                    "where it has no value, or choose others: sl.loader(…, columns=[…])"
                )
            yield table
            row += len(table)

    def check(self, table: pa.Table, records: Records, rows: Int64s) -> None:
        """Hold rows to the digests of what was labelled.

        Args:
            table: a row for each record.
            rows: their numbers, for errors.

        Raises:
            JoinError: a row is not the one that was labelled.
        """
        self.check_keys(table, records, rows)
        found = input_digests(table, self._plan.data.columns)
        labelled = (records.identity[name].to_pylist() for name in ("key", "input_digest"))
        for row, digest, key, expected in zip(rows.tolist(), found, *labelled, strict=True):
            if digest != expected:
                raise JoinError(
                    f"key {quoted(key)}: the data's row {row} has input digest "
                    f"{digest.hex()}, labelled was {expected.hex()} (columns "
                    f"{', '.join(self._plan.data.columns)}); the row was changed or moved after "
                    "labelling: join the data that was labelled, or label again"
                )

    def check_keys(self, table: pa.Table, records: Records, rows: Int64s) -> None:
        """Confirm what was found by the hash of its key.

        Raises:
            JoinError: a row has another key than its labels.
        """
        if self._plan.data.key is None:
            return
        stored = table.column(self._plan.data.key).to_pylist()
        for row, found, key in zip(rows, stored, records.identity["key"].to_pylist(), strict=True):
            if found != key:
                raise JoinError(
                    f"key {quoted(key)} has labels but no row in the data: row {row}, found by the "
                    f"key's hash, has key {quoted(found)}; join the data that was labelled"
                )

    def with_inputs(self, table: pa.Table, records: Records) -> Records:
        """The records with their tokens or arrays, prepared again from their rows.

        Raises:
            JoinError: they are not those that were labelled.
        """
        if self._arrays:
            return self._replay.with_arrays(table, records)
        windows = self._prepare(table)
        places = {
            (int(row), int(part)): index
            for index, (row, part) in enumerate(zip(windows.rows, windows.parts, strict=True))
        }
        labelled = (records.identity[name].to_pylist() for name in _TOLD_BY)
        tokens, following = [], []
        for row, (key, part, digest) in enumerate(zip(*labelled, strict=True)):
            index = places.get((row, part))
            bounds = (0, 0) if index is None else windows.offsets[index : index + 2]
            assert windows.token_ids is not None
            found = windows.token_ids[slice(*bounds)]
            if index is None or prepared_digest(found) != digest:
                raise JoinError(
                    f"key {quoted(key)}, part {part}: its tokens are not those that were labelled; "
                    "the tokenizer or the preparation differs: use the tokenizer stored with the "
                    "set"
                )
            tokens.append(found)
            following.append(windows.next_ids[index])
        return replace(
            records, token_ids=np.concatenate(tokens), next_ids=np.asarray(following, np.int64)
        )

    def unlabelled(self, table: pa.Table, keys: pa.Array, like: Labels) -> tuple[Records, Any]:
        """Records of rows that have no labels: their tokens, and no position labelled.

        Args:
            keys: of each row.
            like: labels of no position, with the fields that others have.

        Returns:
            the records, in windows as the plan cuts them, and the row of each, (R,). Rows that no
            teacher could label (empty ones, say) have none.
        """
        windows = self._prepare(table)
        names = ("key", "part", "view", "source_start", "source_length")
        rows = pa.array(windows.rows)
        found = (keys.take(rows), windows.parts, 0 * windows.parts, windows.starts)
        numbers = dict(zip(names, (*found, windows.source_lengths), strict=True))
        inputs = pa.array(input_digests(table, self._plan.data.columns)).take(rows)
        told = {} if self._plan.views is None else {VIEW_PARAMS: pa.nulls(len(windows))}
        prepared = pa.array(windows.digests, DIGEST_TYPE)
        identity = numbers | {"input_digest": inputs, "prepared_digest": prepared} | told
        schema = self._labels.take([]).identity.schema
        records = Records(
            identity=pa.table({n: pa.array(v) for n, v in identity.items()}).cast(schema),
            token_offsets=windows.offsets,
            token_ids=windows.token_ids,
            next_ids=None if self._arrays else windows.next_ids,
            wanted=np.zeros(windows.size, bool),
            labels=like,
            label_offsets=np.zeros(len(windows) + 1, np.int64),
            arrays=None if windows.arrays is None else tuple(windows.arrays),
        )
        return records, windows.rows

    def with_tokens(self, table: pa.Table) -> Int64s:
        """The rows that `unlabelled` makes records of, ascending."""
        return np.unique(self._prepare(table).rows) if len(table) else np.empty(0, np.int64)

    def extra(self, table: pa.Table) -> dict[str, Any]:
        """The data's own columns: numbers as tensors of shape (B,), all else as lists."""
        return {name: _values(table.column(name)) for name in self.columns}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _prepare(self, table: pa.Table) -> Windows:
        if self._arrays:
            return self._replay.unlabelled(table)
        # A tokenizer's settings are its state: two threads would change them under each other.
        with self._lock:
            self._load_tokenizer()
            return self._prepared(table)

    def _prepared(self, table: pa.Table) -> Windows:
        return prepare(
            table.column(self._plan.data.columns[0]),
            self._plan.preparation,
            tokenizer=self._tokenizer,
            classes=self._plan.teacher.token_ids,
        )

    def _load_tokenizer(self) -> None:
        if self._tokenizer is None and self._plan.preparation.kind != "input_ids":
            self._tokenizer = _stored_tokenizer(self._labels)


def open_for(labels: LabelSet, data: Any) -> Source:
    """Data that labels belong to.

    Raises:
        JoinError: its columns hold something else than what was labelled.
    """
    identity, kind = labels.plan.data, labels.plan.preparation.kind
    source = open_source(
        data,
        column=identity.columns[0],
        key=identity.key,
        label=identity.label,
        arrays=kind == "array",
    )
    if source.kind != kind:
        raise JoinError(
            f"column {quoted(identity.columns[0])} holds {source.kind}, labelled was {kind}; "
            "pass the data that was labelled"
        )
    if source.identity.key_type != identity.key_type:
        raise JoinError(
            f"the key column {quoted(identity.key)} is {source.identity.key_type}, keys of "
            f"the labels are {identity.key_type}; pass the data that was labelled"
        )
    return source


def _extra_columns(
    source: Source, columns: Sequence[str] | None, fields: Sequence[str]
) -> list[str]:
    names, identity = source.schema.names, source.identity
    if columns is None:
        own = {identity.columns[0], identity.key, *fields}
        return [name for name in names if name not in own]
    for name in columns:
        if name not in names:
            raise InputError(
                f"there is no column {quoted(name)}; the data has {', '.join(map(quoted, names))}"
            )
        if name in fields:
            raise InputError(
                f"the data's column {quoted(name)} has the name of a batch's own field "
                f"({', '.join(fields)}); rename it"
            )
    return list(columns)


def _values(column: pa.ChunkedArray) -> Any:
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if numeric and not column.null_count:
        return torch.from_numpy(column.to_numpy().copy())
    if kind == PACKED:
        return [None if value is None else array_of(value) for value in column.to_pylist()]
    return column.to_pylist()


def _stored_tokenizer(labels: LabelSet) -> Any:
    folder = labels.tokenizer_folder()
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError(
            f"{labels.name} does not carry its inputs, so the data's text must be tokenised again; "
            "pip install 'softlabels[transformers]', or pass tokenizer="
        ) from None
    return AutoTokenizer.from_pretrained(folder)

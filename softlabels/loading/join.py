"""Join labels to data by key, and check that each row is the one that was labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.digests import input_digests, key_hashes, prepared_digest
from softlabels.inputs.prepare import prepare
from softlabels.inputs.sources import KEY_BATCH_ROWS, chunks, open_source
from softlabels.labelset import layout
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.records import Records
from softlabels.loading.collate import FIELDS

_TOLD_BY = ("key", "part", "prepared_digest")


class Join:
    """Rows of a dataset that labels belong to.

    Args:
        labels: the set.
        data: anything with random access that `softlabels.precompute` takes.
        records: the record numbers that will be fetched; the others need no row.
        columns: of the data, to put into batches; by default all but the key, the labelled ones
            and those that bear the name of a batch's own field.
        tokenizer: prepares text again where the set does not carry its inputs; the set's own by
            default.

    Raises:
        JoinError: labels whose key the data does not have.
        InputError: the data has no such columns, or no random access.
        DuplicateKeyError: a key stands in two rows.
    """

    def __init__(
        self,
        labels: LabelSet,
        data: Any,
        *,
        records: NDArray[np.int64],
        columns: Sequence[str] | None,
        tokenizer: Any,
    ) -> None:
        self._plan, self._data = labels.plan, data
        self._open()
        self._source.check_unique_keys()
        self.columns = self._extra_columns(columns)
        self._rows = self._find_rows(labels, records)
        self._tokenizer = tokenizer
        if not self._plan.store_inputs and self._plan.preparation.kind != "input_ids":
            self._tokenizer = tokenizer or _stored_tokenizer(labels)

    def __getstate__(self) -> dict[str, Any]:
        # Open data holds closures; another process opens it again.
        return {k: v for k, v in self.__dict__.items() if k not in ("_source", "_read")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def fetch(self, numbers: Sequence[int], records: Records) -> pa.Table:
        """The data's row for each record, checked.

        Raises:
            JoinError: a row is not the one that was labelled.
        """
        rows = self._rows[np.asarray(numbers)]
        table = self._read(rows.tolist(), [*self._source.columns, *self.columns])
        found = input_digests(table, self._plan.data.columns)
        labelled = (records.identity[name].to_pylist() for name in ("key", "input_digest"))
        for place, (digest, key, expected) in enumerate(zip(found, *labelled, strict=True)):
            if self._plan.data.key is not None:
                stored = table.column(self._plan.data.key)[place].as_py()
                if stored != key:
                    raise JoinError(
                        f"key {quoted(key)} has labels but no row in the data: row {rows[place]}, "
                        f"found by the key's hash, has key {quoted(stored)}; join the data that "
                        "was labelled"
                    )
            if digest != expected:
                raise JoinError(
                    f"key {quoted(key)}: the data's row {rows[place]} has input digest "
                    f"{digest.hex()}, labelled was {expected.hex()} (columns "
                    f"{', '.join(self._plan.data.columns)}); the row was changed or moved after "
                    "labelling: join the data that was labelled, or label again"
                )
        return table

    def inputs(self, table: pa.Table, records: Records) -> Records:
        """The records with their tokens, prepared again from their rows.

        Raises:
            JoinError: they are not those that were labelled.
        """
        windows = prepare(
            table.column(self._plan.data.columns[0]),
            self._plan.preparation,
            tokenizer=self._tokenizer,
            classes=self._plan.teacher.token_ids,
        )
        places = {
            (int(row), int(part)): index
            for index, (row, part) in enumerate(zip(windows.rows, windows.parts, strict=True))
        }
        labelled = (records.identity[name].to_pylist() for name in _TOLD_BY)
        tokens, following = [], []
        for row, (key, part, digest) in enumerate(zip(*labelled, strict=True)):
            index = places.get((row, part))
            bounds = (0, 0) if index is None else windows.offsets[index : index + 2]
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

    def extra(self, table: pa.Table) -> dict[str, Any]:
        """The data's own columns: numbers as tensors of shape (B,), all else as lists."""
        return {name: _values(table.column(name)) for name in self.columns}

    def _open(self) -> None:
        identity, kind = self._plan.data, self._plan.preparation.kind
        source = open_source(self._data, column=identity.columns[0], key=identity.key)
        if source.read is None or source.rows is None:
            raise InputError(
                "data is a stream, and labels are joined by key, which needs random access; pass "
                "a datasets.Dataset, a path or a list of rows"
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
        self._source, self._read = source, source.read

    def _extra_columns(self, columns: Sequence[str] | None) -> list[str]:
        names, identity = self._source.schema.names, self._plan.data
        if columns is None:
            own = {*identity.columns, identity.key, *FIELDS}
            return [name for name in names if name not in own]
        for name in columns:
            if name not in names:
                raise InputError(
                    f"there is no column {quoted(name)}; the data has "
                    f"{', '.join(map(quoted, names))}"
                )
            if name in FIELDS:
                raise InputError(
                    f"the data's column {quoted(name)} has the name of a batch's own field "
                    f"({', '.join(FIELDS)}); rename it"
                )
        return list(columns)

    def _find_rows(self, labels: LabelSet, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each record's key, (R,); −1 where no row has it."""
        keys, rows = labels.identities["key"], self._source.rows
        if self._plan.data.key is None:
            found = keys.to_numpy()
            found = np.where(found < rows, found, -1)
        else:
            hashes, order = self._index()
            wanted = key_hashes(keys)
            place = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
            found = np.where(hashes[place] == wanted, order[place], -1)
        missing = records[found[records] < 0]
        if len(missing):
            raise JoinError(
                f"key {quoted(keys[int(missing[0])].as_py())} has labels but no row in the data, "
                f"as have {len(missing) - 1} other records; join the data that was labelled, or "
                "choose with records= those whose rows are there"
            )
        return found

    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of the data's keys, ascending, and the row of each."""
        key, rows = self._plan.data.key, self._source.rows
        assert key is not None
        assert rows is not None
        hashes = np.concatenate(
            [
                key_hashes(self._source.keys(self._read(chunk, [key]), chunk.start))
                for chunk in chunks(rows, KEY_BATCH_ROWS)
            ]
        )
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order


def _values(column: pa.ChunkedArray) -> Any:
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if numeric and not column.null_count:
        return torch.from_numpy(column.to_numpy().copy())
    return column.to_pylist()


def _stored_tokenizer(labels: LabelSet) -> Any:
    folder = labels.root / layout.TOKENIZER
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError(
            f"{labels.root} does not carry its inputs, so the data's text must be tokenised again; "
            "pip install 'softlabels[transformers]', or pass tokenizer="
        ) from None
    return AutoTokenizer.from_pretrained(folder)

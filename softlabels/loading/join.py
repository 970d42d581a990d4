"""Join labels to data by key, and check that each row is the one that was labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from softlabels.errors import InputError, JoinError, quoted
from softlabels.inputs.digests import input_digests, key_hashes, prepared_digest
from softlabels.inputs.prepare import prepare
from softlabels.inputs.sources import KEY_BATCH_ROWS, chunks, open_source
from softlabels.labelset import layout
from softlabels.labelset.reader import LabelSet
from softlabels.loading.collate import Picked


class Join:
    """Rows of a dataset that labels belong to.

    Args:
        labels: the set.
        data: anything with random access that `softlabels.precompute` takes.
        columns: of the data, to put into batches; every other than key and labelled ones by
            default.
        tokenizer: prepares text again where the set does not carry its inputs; the set's own by
            default.

    Raises:
        JoinError: labels whose key the data does not have.
        InputError: the data has no such columns, or no random access.
        DuplicateKeyError: a key stands in two rows.
    """

    def __init__(
        self, labels: LabelSet, data: Any, *, columns: Sequence[str] | None, tokenizer: Any
    ) -> None:
        self._plan, identity = labels.plan, labels.plan.data
        source = open_source(data, column=identity.columns[0], key=identity.key)
        if source.read is None or source.rows is None:
            raise InputError(
                "data is a stream, and labels are joined by key, which needs random access; pass "
                "a datasets.Dataset, a path or a list of rows"
            )
        if source.kind != self._plan.preparation.kind:
            raise JoinError(
                f"column {quoted(identity.columns[0])} holds {source.kind}, labelled was "
                f"{self._plan.preparation.kind}; pass the data that was labelled"
            )
        source.check_unique_keys()
        self._source, self._read = source, source.read
        own = {*identity.columns, identity.key}
        others = [name for name in source.schema.names if name not in own]
        self.columns = others if columns is None else list(columns)
        missing = [name for name in self.columns if name not in source.schema.names]
        if missing:
            raise InputError(
                f"there is no column {quoted(missing[0])}; the data has "
                f"{', '.join(map(quoted, source.schema.names))}"
            )
        self._rows = self._find_rows(labels, source.rows)
        self._tokenizer = tokenizer
        if not self._plan.store_inputs and self._plan.preparation.kind != "input_ids":
            self._tokenizer = tokenizer or _stored_tokenizer(labels)

    def fetch(self, numbers: Sequence[int], picked: Sequence[Picked]) -> pa.Table:
        """The data's row for each record, checked.

        Raises:
            JoinError: a row is not the one that was labelled.
        """
        rows = self._rows[np.asarray(numbers)]
        table = self._read(rows.tolist(), [*self._source.columns, *self.columns])
        found = input_digests(table, self._plan.data.columns)
        for place, (one, digest) in enumerate(zip(picked, found, strict=True)):
            key, expected = one.identity("key"), one.identity("input_digest")
            if self._plan.data.key is not None:
                stored = table.column(self._plan.data.key)[place].as_py()
                if stored != key:
                    raise JoinError(
                        f"row {rows[place]} has key {quoted(stored)}, not {quoted(key)}"
                    )
            if digest != expected:
                raise JoinError(
                    f"key {quoted(key)}: the data's row {rows[place]} has input digest "
                    f"{digest.hex()}, labelled was {expected.hex()} (columns "
                    f"{', '.join(self._plan.data.columns)}); the row was changed or moved after "
                    "labelling: join the data that was labelled, or label again"
                )
        return table

    def token_ids(self, table: pa.Table, picked: Sequence[Picked]) -> list[Tensor]:
        """Tokens of each record, prepared again from its row.

        Raises:
            JoinError: they are not those that were labelled.
        """
        windows = prepare(
            table.column(self._plan.data.columns[0]),
            self._plan.preparation,
            tokenizer=self._tokenizer,
            classes=self._plan.teacher.classes,
        )
        places = {
            (int(row), int(part)): index
            for index, (row, part) in enumerate(zip(windows.rows, windows.parts, strict=True))
        }
        found = []
        for row, one in enumerate(picked):
            index = places.get((row, one.identity("part")))
            bounds = (0, 0) if index is None else windows.offsets[index : index + 2]
            tokens = windows.token_ids[slice(*bounds)]
            if prepared_digest(tokens) != one.identity("prepared_digest"):
                raise JoinError(
                    f"key {quoted(one.identity('key'))}, part {one.identity('part')}: its tokens "
                    "are not those that were labelled; the tokenizer or the preparation differs: "
                    "use the tokenizer stored with the set"
                )
            found.append(torch.from_numpy(tokens))
        return found

    def extra(self, table: pa.Table) -> dict[str, Any]:
        """The data's own columns: numbers as tensors of shape (B,), all else as lists."""
        return {name: _values(table.column(name)) for name in self.columns}

    def _find_rows(self, labels: LabelSet, rows: int) -> Any:
        """The row of each record's key, (R,)."""
        keys = labels.identities["key"]
        if self._plan.data.key is None:
            found = keys.to_numpy()
            missing = np.flatnonzero(found >= rows)
        else:
            hashes, order = self._index(rows)
            wanted = key_hashes(keys)
            place = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
            found, missing = order[place], np.flatnonzero(hashes[place] != wanted)
        if len(missing):
            key = keys[int(missing[0])].as_py()
            raise JoinError(
                f"key {quoted(key)} has labels but no row in the data, as have {len(missing) - 1} "
                "other records; join the data that was labelled, or choose records="
            )
        return found

    def _index(self, rows: int) -> tuple[Any, Any]:
        key = self._plan.data.key
        assert key is not None
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

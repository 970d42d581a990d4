"""NumPy arrays: a folder of .npy files, or one .npz; never pickled.

Ragged, as it is written: `input_ids` (N,) of all samples, `offsets` (R + 1,), `labelled` (N,), and
`ids` and `log_probs` (P, k) of the labelled positions. Rectangular, as many scripts leave it:
`input_ids` (R, T), `ids` and `log_probs` (R, T, k), and, where rows are padded, `attention_mask`
and `labelled` (R, T). Entry t is over token t + 1; −inf is unused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
from numpy.lib.format import open_memmap

from softlabels.arrow import numpy_of
from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.sharing.formats.parquet import whole
from softlabels.sharing.formats.sample import Sample, check_exportable
from softlabels.sharing.formats.windows import COLUMNS, columns_of, windows

_NAMES = ("input_ids", "offsets", "labelled", "attention_mask", "ids", "log_probs")


@dataclass(frozen=True)
class Arrays:
    """A folder or file of arrays.

    Attributes:
        source: where they are.
        key: the array of keys, (R,), if samples are to have other keys than their numbers.
        part: the array that numbers the windows of a key, (R,): see `FloatLists`.
    """

    source: Path
    key: str | None = None
    part: str | None = None
    classes: ClassVar[int | None] = None
    rounding: ClassVar[float] = 1e-2

    @cached_property
    def _arrays(self) -> Mapping[str, Any]:
        own = [name for name in (self.key, self.part) if name is not None]
        names = [*_NAMES, *COLUMNS, *own]
        try:
            if self.source.is_dir():
                found = {n: self.source / f"{n}.npy" for n in names}
                there = {name: file for name, file in found.items() if file.is_file()}
                arrays: dict[str, Any] = {
                    name: np.load(file, mmap_mode="r", allow_pickle=False)
                    for name, file in there.items()
                }
            else:
                with np.load(self.source, allow_pickle=False) as opened:
                    arrays = {name: opened[name] for name in names if name in opened}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            why = quoted(error, limit=200)
            raise InputError(f"{self.source}: the arrays cannot be read: {why}") from None
        for name in ("input_ids", "ids", "log_probs", *own):
            if name not in arrays:
                raise InputError(f"{self.source}: there is no array {quoted(name)}")
        _check_shapes(arrays, self.source, [*own, *self._windows(arrays).values()])
        return arrays

    def _windows(self, arrays: Mapping[str, Any]) -> dict[str, str]:
        there = {name: array.dtype.kind in "iu" for name, array in arrays.items()}
        return columns_of(there, str(self.source), key=self.key, part=self.part)

    def longest(self) -> int:
        """See `Format`."""
        arrays = self._arrays
        if arrays["input_ids"].ndim == 2:
            return int(arrays["input_ids"].shape[1])
        return int(np.diff(arrays["offsets"]).max(initial=0))

    def read(self) -> Iterator[Sample]:
        """See `Format`."""
        arrays = self._arrays
        keys = arrays[self.key] if self.key else None
        pieces = _rectangular(arrays) if arrays["input_ids"].ndim == 2 else _ragged(arrays)
        said = {field: arrays[name] for field, name in self._windows(arrays).items()}
        for row, (tokens, labelled, ids, log_probs) in enumerate(pieces):
            where = f"{self.source}, sample {row}"
            own = {field: [array[row].item()] for field, array in said.items()}
            values = np.asarray(log_probs, np.float32)
            if np.isnan(values).any():
                raise InputError(f"{where}: a log-prob is NaN")
            kept = np.where(values > -np.inf, ids, 0)
            there = (values > -np.inf).any(-1)
            yield Sample(
                where=where,
                key=None if keys is None else keys[row].item(),
                token_ids=whole(np.asarray(tokens), f"{where}: input_ids"),
                positions=np.flatnonzero(labelled)[there],
                ids=whole(kept, f"{where}: ids")[there],
                log_probs=values[there],
                window=next(windows(own, 1, where=str(self.source), first=row)),
            )

    def write(self, labels: LabelSet, out: Path) -> int:
        """See `Format`; log-probs in float32, as they are."""
        check_exportable(labels, "NumPy arrays")
        lengths = numpy_of(labels.columns(["length"])["length"])
        tokens, positions, k = int(lengths.sum()), labels.totals.positions, labels.plan.selection.k
        out.mkdir(parents=True, exist_ok=True)

        def array(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
            return open_memmap(out / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

        np.save(out / "offsets.npy", np.append(0, np.cumsum(lengths, dtype=np.int64)))
        identity = labels.identities
        for name in COLUMNS:
            np.save(out / f"{name}.npy", identity[name].to_numpy())
        keys = identity["key"].to_pylist()
        np.save(out / "key.npy", np.asarray(keys) if keys else np.zeros(0, np.int64))
        all_tokens, wanted = (
            array("input_ids", np.int64, (tokens,)),
            array("labelled", bool, (tokens,)),
        )
        ids = array("ids", np.int64, (positions, k))
        log_probs = array("log_probs", np.float32, (positions, k))
        token = position = 0
        for records in labels.groups():
            found = records.soft
            all_tokens[token : (token := token + len(records.wanted))] = records.token_ids
            wanted[token - len(records.wanted) : token] = records.wanted
            place = slice(position, position := position + len(found))
            ids[place, : found.k], ids[place, found.k :] = found.ids.numpy(), 0
            log_probs[place, : found.k] = found.log_probs.float().numpy()
            log_probs[place, found.k :] = -np.inf
        return len(labels)


def _check_shapes(arrays: Mapping[str, Any], source: Path, one_each: Sequence[str]) -> None:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    tokens, ids = shapes["input_ids"], shapes["ids"]
    fits = ids == shapes["log_probs"]
    if len(tokens) == 2:
        fits &= len(ids) == 3 and ids[:2] == tokens
        fits &= all(shapes.get(n, tokens) == tokens for n in ("attention_mask", "labelled"))
        samples = tokens[0]
    else:
        offsets = arrays.get("offsets")
        fits &= len(tokens) == 1 and len(ids) == 2 and offsets is not None and offsets.ndim == 1
        fits &= shapes.get("labelled", tokens) == tokens
        samples = 0 if offsets is None else len(offsets) - 1
        if fits and offsets is not None:
            fits &= samples >= 0 and offsets[0] == 0 and offsets[-1] == tokens[0]
            fits &= bool((np.diff(offsets) >= 0).all())
            labelled = arrays.get("labelled")
            fits &= ids[0] == (tokens[0] if labelled is None else int(np.count_nonzero(labelled)))
    fits &= all(shapes[name] == (samples,) for name in one_each)
    if not fits:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"{source}: the arrays do not fit each other ({told}); expected input_ids (R, T) with "
            "ids and log_probs (R, T, k), or input_ids (N,) and offsets (R + 1,) with ids and "
            "log_probs (P, k) of the P labelled positions"
        )


def _rectangular(arrays: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
    for row, tokens in enumerate(arrays["input_ids"]):
        real = np.ones(len(tokens), bool)
        if "attention_mask" in arrays:
            real = np.asarray(arrays["attention_mask"][row]) != 0
        labelled = real.copy()
        if "labelled" in arrays:
            labelled &= np.asarray(arrays["labelled"][row]) != 0
        ids, log_probs = arrays["ids"][row][labelled], arrays["log_probs"][row][labelled]
        yield tokens[real], labelled[real], ids, log_probs


def _ragged(arrays: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
    done = 0
    offsets = arrays["offsets"].tolist()
    for start, stop in pairwise(offsets):
        labelled = np.ones(stop - start, bool)
        if "labelled" in arrays:
            labelled = np.asarray(arrays["labelled"][start:stop]) != 0
        place = slice(done, done := done + int(labelled.sum()))
        yield (
            arrays["input_ids"][start:stop],
            labelled,
            arrays["ids"][place],
            (arrays["log_probs"][place]),
        )

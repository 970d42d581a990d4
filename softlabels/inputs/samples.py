"""Rows to arrays, and arrays to their views: what a teacher of arrays and later a student sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import InputError, quoted
from softlabels.inputs.arrays import Array, array_of, values_of
from softlabels.inputs.digests import array_digest, key_hashes
from softlabels.inputs.sources import KEY_BATCH_ROWS, Source, chunks
from softlabels.inputs.views import Views, partner_of

T = TypeVar("T")


class Partners:
    """The samples that a view may be made of beside its own, found by key; all keys are held.

    Whatever the order of the data, one number draws one key: the first whose hash is not below it.

    Args:
        source: data with random access.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source}

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        source = self._source
        assert source.read is not None
        assert source.rows is not None
        key = source.identity.key
        found = []
        for chunk in chunks(source.rows, KEY_BATCH_ROWS):
            rows = source.read(chunk, [key]) if key else pa.table({"": pa.nulls(_length(chunk))})
            found.append(source.keys(rows, chunk.start))
        return pa.chunked_array(found)

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of all keys, ascending, and the row of each."""
        hashes = key_hashes(self._keys)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def drawn(self, seed: int, but: str | int) -> str | int:
        """The key that a number draws, another one than the sample's own.

        Raises:
            InputError: there is no other one.
        """
        hashes, rows = self._by_hash
        number = np.random.default_rng([seed, 1]).integers(1 << 64, dtype=np.uint64)
        place = int(np.searchsorted(hashes, number))
        for step in range(2):
            key: str | int = self._keys[int(rows[(place + step) % len(rows)])].as_py()
            if key != but:
                return key
        raise InputError("a view is made of two samples, and the data has one")

    def samples(self, keys: Iterable[str | int]) -> dict[str | int, Array]:
        """The arrays of some keys.

        Raises:
            InputError: the data has no such key, or no array under it.
        """
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return {}
        hashes, rows = self._by_hash
        places = np.searchsorted(hashes, key_hashes(pa.array(wanted))) % len(hashes)
        found = sorted(zip(rows[places].tolist(), wanted, strict=True))
        for row, key in found:
            if self._keys[row].as_py() != key:
                raise InputError(
                    f"a view is made of the sample with key {quoted(key)} too, and the data has "
                    "none; pass the data that was labelled, all of it"
                )
        name, read = self._source.identity.columns[0], self._source.read
        assert read is not None
        values = values_of(read([row for row, _ in found], [name]).column(name))
        return {key: array_of(value) for (_, key), value in zip(found, values, strict=True)}


def _length(chunk: slice) -> int:
    return int(chunk.stop - chunk.start)


@dataclass(frozen=True)
class Drawn:
    """The views of a unit's samples, one after another.

    Attributes:
        rows: source row of each within the unit, (R,).
        views: its number among the sample's, (R,).
        told: the parameters that are stored of it, JSON; None where it is the sample as it is.
        arrays: the views themselves.
        failures: (source row, reason) of samples without them.
    """

    rows: list[int]
    views: list[int]
    told: list[str | None]
    arrays: list[Array]
    failures: list[tuple[int, str]]


def drawn(
    column: pa.ChunkedArray, keys: pa.Array, views: Views | None, partners: Partners | None
) -> Drawn:
    """The samples of a unit and their views, drawn anew.

    Args:
        column: what is labelled.
        keys: of its rows.
        views: None for the samples as they are.
        partners: for views that are made of two samples.
    """
    reasons: dict[int, str] = {}
    places: list[tuple[int, int]] = []
    samples: list[Array] = []
    told: list[str | None] = []
    for row, value in enumerate(values_of(column)):
        try:
            if value is None:
                raise InputError("empty: it is null")
            sample = array_of(value)
            found = [None] if views is None else _told(sample, keys[row].as_py(), views, partners)
        except InputError as error:
            reasons[row] = str(error)
            continue
        places += [(row, view) for view in range(len(found))]
        samples += [sample] * len(found)
        told += found
    arrays = _realised(samples, told, views, partners)
    _check_once_more(samples, told, views, partners, arrays)
    for (row, _), found_or_not in zip(places, arrays, strict=True):
        if isinstance(found_or_not, InputError):
            reasons.setdefault(row, str(found_or_not))
    whole = [i for i, (row, _) in enumerate(places) if row not in reasons]
    return Drawn(
        rows=[places[i][0] for i in whole],
        views=[places[i][1] for i in whole],
        told=[told[i] for i in whole],
        arrays=[array for i in whole if isinstance(array := arrays[i], np.ndarray)],
        failures=sorted(reasons.items()),
    )


def _check_once_more(
    samples: Sequence[Array],
    told: Sequence[str | None],
    views: Views | None,
    partners: Partners | None,
    arrays: Sequence[Array | InputError],
) -> None:
    """Make one view again: parameters that do not tell all of it are no use to a student.

    Raises:
        InputError: it is another one.
    """
    made = (i for i, params in enumerate(told) if params and isinstance(arrays[i], np.ndarray))
    place = next(made, None)
    if views is None or place is None:
        return
    one = slice(place, place + 1)
    (again,) = _realised(samples[one], told[one], views, partners)
    first = arrays[place]
    assert isinstance(first, np.ndarray)
    if isinstance(again, InputError) or array_digest(again) != array_digest(first):
        raise InputError(
            f"{views.identity.name} made another view of the same sample and parameters when it "
            "was called again, so no student could see what the teacher sees; draw everything in "
            "draw(rng, sample), nothing in augment(sample, params)"
        )


def replayed(
    column: pa.ChunkedArray,
    told: Sequence[str | None],
    views: Views | None,
    partners: Partners | None,
) -> list[Array]:
    """The views that stored parameters tell of, of a row each.

    Raises:
        InputError: a row has no array, or a view cannot be made.
    """
    samples = [array_of(value) for value in values_of(column)]
    arrays = []
    for found in _realised(samples, told, views, partners):
        if isinstance(found, InputError):
            raise found
        arrays.append(found)
    return arrays


def _told(
    sample: Array, key: str | int, views: Views, partners: Partners | None
) -> list[str | None]:
    def partner(seed: int) -> Any:
        assert partners is not None
        return partners.drawn(seed, key)

    return [
        _watched(views, views.params, key, view, sample, partner) for view in range(views.count)
    ]


def _realised(
    samples: Sequence[Array],
    told: Sequence[str | None],
    views: Views | None,
    partners: Partners | None,
) -> list[Array | InputError]:
    """Each view, or why there is none."""
    if views is None:
        return list(samples)
    others: dict[Any, Array] = {}
    keys = [partner_of(params) if views.partner else None for params in told]
    if partners is not None:
        others = partners.samples(key for key in keys if key is not None)
    made: list[Array | InputError] = []
    for sample, params, key in zip(samples, told, keys, strict=True):
        try:
            made.append(_watched(views, views.realise, sample, params, others.get(key)))
        except InputError as error:
            made.append(error)
    return made


def _watched(views: Views, make: Callable[..., T], *given: Any) -> T:
    """What a user's function makes; its error as one of the sample's."""
    try:
        return make(*given)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{views.identity.name} raised {type(error).__name__}: {error}") from error

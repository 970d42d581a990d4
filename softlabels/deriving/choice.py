"""Which records of a set are taken: by key, by a share of the samples, by what labels show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from softlabels.arrow import numpy_of
from softlabels.deriving.where import Condition, parse, statistics
from softlabels.errors import InputError, quoted
from softlabels.format.records import Records
from softlabels.inputs.digests import canonical, key_hashes
from softlabels.labelset.reader import LabelSet

Bools = NDArray[np.bool_]
Keys = Iterable[str | int] | str | os.PathLike[str]
_HASHES = 1 << 64


@dataclass(frozen=True)
class Choice:
    """What is taken: the records that pass everything that is not None.

    Attributes:
        keys: of samples, different ones, ascending.
        fraction, seed: a sample is taken where the hash of its key, a function of key and seed
            alone, is below this share of all hashes.
        where: on the statistics of a record.
    """

    keys: pa.Array | None = None
    fraction: float | None = None
    seed: int = 0
    where: Condition | None = None

    @property
    def everything(self) -> bool:
        """Whether no record can be left out."""
        return self.keys is None and self.fraction is None and self.where is None

    def of_keys(self, keys: pa.Array | pa.ChunkedArray) -> Bools:
        """Which of these samples are taken, as far as their keys say, (N,)."""
        taken = np.ones(len(keys), bool)
        if self.keys is not None:
            taken &= np.asarray(pc.is_in(keys, value_set=self.keys), bool)
        if self.fraction is not None:
            least = int(self.fraction * _HASHES)
            hashes = (xxhash.xxh3_64_intdigest(key, self.seed) for key in _bytes(keys))
            taken &= np.fromiter((h < least for h in hashes), bool, len(keys))
        return taken

    def of_records(self, records: Records) -> Bools:
        """Which of these are taken, as far as their labels say, (R,)."""
        if self.where is None:
            return np.ones(len(records), bool)
        return self.where(statistics(records, {"positions", *self.where.names}))

    def in_plan(self) -> dict[str, Any]:
        """The fields of `derived_from.Origin`."""
        found: dict[str, Any] = {}
        if self.keys is not None:
            listed = b"".join(canonical(key) for key in self.keys.to_pylist())
            found |= {"keys": len(self.keys), "keys_digest": xxhash.xxh3_128_hexdigest(listed)}
        if self.fraction is not None:
            found |= {"fraction": self.fraction, "seed": self.seed}
        if self.where is not None:
            found["where"] = self.where.text
        return found


def _bytes(keys: pa.Array | pa.ChunkedArray) -> Iterable[bytes]:
    if pa.types.is_integer(keys.type):
        return (number.tobytes() for number in numpy_of(keys).astype("<i8"))
    return (key.encode() for key in keys.to_pylist())


def choose(
    sets: Sequence[LabelSet],
    *,
    keys: Keys | None,
    where: str | None,
    fraction: float | None,
    seed: int,
) -> Choice:
    """Check the arguments of `derive` that choose records.

    Raises:
        InputError: they choose nothing, or cannot be read, or name a key that no set has.
    """
    if fraction is not None and (
        not isinstance(fraction, (int, float))
        or isinstance(fraction, bool)
        or not 0 < fraction <= 1
    ):
        raise InputError(f"fraction is {fraction!r}; it must be above 0 and at most 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < _HASHES:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 on, below 2⁶⁴")
    listed = None if keys is None else _listed(keys, sets[0].plan.data.key_type)
    if listed is not None:
        _check_known(listed, sets)
    return Choice(
        keys=listed,
        fraction=None if fraction is None else float(fraction),
        seed=seed,
        where=None if where is None else parse(where),
    )


def _listed(keys: Keys, key_type: str) -> pa.Array:
    """Different keys, ascending.

    Raises:
        InputError: there are none, or not of the set's type.
    """
    wanted = pa.string() if key_type == "string" else pa.int64()
    values: Any = keys
    where = "keys"
    if isinstance(keys, (str, os.PathLike)):
        where = f"keys {quoted(keys)}"
        values = _from_file(Path(keys), key_type, where)
    elif not isinstance(keys, Iterable):
        raise InputError(f"keys is a {type(keys).__name__}; expected a list of keys, or a file")
    try:
        # Inferred first: told the type, Arrow makes numbers of floats.
        found = values if isinstance(values, pa.Array) else pa.array(list(values))
        if not len(found):
            raise InputError(f"{where}: there are no keys in it; name one at least")
        same = pa.types.is_integer(found.type) == (key_type == "int64")
        if found.null_count or not same:
            raise pa.ArrowInvalid(f"found {found.type}, {found.null_count} nulls")
        distinct = pc.unique(found.cast(wanted))
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise InputError(
            f"{where}: they are not all {key_type}, as the set's are ({quoted(error)[1:-1]})"
        ) from None
    return distinct.take(pc.sort_indices(distinct))


def _from_file(path: Path, key_type: str, where: str) -> Any:
    """Keys, one a line; or of a Parquet file the column "key", or its only one."""
    if not path.is_file():
        raise InputError(f"{where}: there is no such file; expected text with a key in each line")
    if path.suffix == ".parquet":
        try:
            names = pq.read_schema(path).names
            name = "key" if "key" in names or len(names) != 1 else names[0]
            return pq.read_table(path, columns=[name])[name].combine_chunks()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise InputError(f"{where}: it has no column of keys ({quoted(error)})") from None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: this is no UTF-8 text ({error})") from None
    lines = [line.removesuffix("\r") for line in lines]
    lines = [line for line in lines if line]
    if key_type == "string":
        return lines
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{where}: keys of this set are whole numbers ({quoted(error)})") from None


def _check_known(keys: pa.Array, sets: Sequence[LabelSet]) -> None:
    """Refuse keys that no set has: they are of other data, or mistyped."""
    hashes = key_hashes(keys)
    missing = np.ones(len(keys), bool)
    for labels in sets:
        # A hit by hash alone suffices: what is taken is decided by the keys themselves.
        places, _ = labels.match(keys)
        missing[places] = False
        if labels.totals.rejects:
            rejected = pa.array(list(labels.rejected), keys.type)
            missing &= ~np.isin(hashes, key_hashes(rejected))
    if missing.any():
        first = keys[int(np.flatnonzero(missing)[0])].as_py()
        raise InputError(
            f"keys: {int(missing.sum())} of {len(keys)} are not in "
            f"{' or '.join(labels.name for labels in sets)}, {quoted(first)} for one; leave them "
            "out of the list"
        )

"""Views: augmented versions of a sample, told by parameters from which they are made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from softlabels.errors import InputError, quoted
from softlabels.inputs.arrays import Array
from softlabels.inputs.digests import key_hashes

Params = Mapping[str, Any]
Keep = Literal["params", "seeds"]
PARTNER = "partner"
_MOST_PARAMS = 1 << 16


class ViewsIdentity(BaseModel):
    """Which views a set has, as its plan keeps it.

    Attributes:
        name, version: of what makes them.
        count: of each sample.
        seed: of what is drawn.
        clean: whether the first one is the sample as it is.
        keep: "params" where each record has the parameters themselves, "seeds" where it has a
            number that they are drawn by.
        partner: whether a view is made of a second sample too.
        libraries: versions of the packages that the result may depend on, by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    version: str
    count: int = Field(ge=1)
    seed: int
    clean: bool = False
    keep: Keep = "params"
    partner: bool = False
    libraries: dict[str, str] = {}


@dataclass(frozen=True)
class Views:
    """How augmented versions of a sample are made, each of parameters that are stored with it.

    What is drawn for a view depends on the seed, the sample's key and the view's number alone:
    not on the order of the data, on batches or on who labels.

    Args:
        augment: `augment(sample, params)` gives the view, an array, of a sample as the column has
            it and the parameters; with `partner`, `augment(sample, params, other)`. The same
            arguments must give the same bits: draw nothing in it.
        draw: `draw(rng, sample)` gives the parameters of a view, what JSON can hold, of a NumPy
            generator and the sample. With `seeds` they are not stored: `draw` makes them again.
        count: V, views of each sample; much fewer than the epochs of a student will do.
        seed: of the generators.
        name, version: what `augment` and `draw` are together: change the version when the
            result changes. By default the name of `augment`, and "1".
        clean: make the first view the sample as it is.
        keep: "params", or "seeds" to store a number in their place.
        partner: give `augment` a second sample, drawn by key: for mixup and cutmix. The parameters
            hold its key as "partner". Of data with random access only.
        libraries: packages whose version the result may depend on; with seeds NumPy is one.

    Raises:
        InputError: arguments that cannot be.
    """

    augment: Callable[..., Array]
    draw: Callable[[np.random.Generator, Array], Params]
    count: int
    seed: int = 0
    name: str | None = None
    version: str = "1"
    clean: bool = False
    keep: Keep = "params"
    partner: bool = False
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.augment) or not callable(self.draw):
            raise InputError("Views: augment and draw are functions; see softlabels.Views")
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise InputError(f"Views: count is {self.count!r}; it is a whole number, at least 1")
        if self.keep not in ("params", "seeds"):
            raise InputError(f"Views: keep is {self.keep!r}; it is 'params' or 'seeds'")
        _ = self.identity

    @cached_property
    def identity(self) -> ViewsIdentity:
        """What a plan keeps of it."""
        return ViewsIdentity(
            name=str(self.name or getattr(self.augment, "__name__", type(self.augment).__name__)),
            version=self.version,
            count=self.count,
            seed=self.seed,
            clean=self.clean,
            keep=self.keep,
            partner=self.partner,
            libraries={name: _version(name) for name in self._libraries},
        )

    @property
    def _libraries(self) -> tuple[str, ...]:
        """A seed means what NumPy's generators make of it."""
        return self.libraries if self.keep == "params" else ("numpy", *self.libraries)

    def params(
        self, key: str | int, view: int, sample: Array, partner: Callable[[int], Any] | None
    ) -> str | None:
        """What is stored of a view, JSON; None of a clean one.

        Args:
            partner: gives the key that a number draws.

        Raises:
            InputError: `draw` gives what JSON cannot hold.
        """
        if self.clean and view == 0:
            return None
        seed = self._seed(key, view)
        found = {"seed": seed} if self.keep == "seeds" else dict(self._drawn(seed, sample))
        if self.partner:
            assert partner is not None
            found[PARTNER] = partner(seed)
        try:
            told = json.dumps(found, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the parameters of {self.identity.name} cannot be stored: {quoted(error)[1:-1]}; "
                "draw() has to give text, finite numbers, and lists and dicts of them (of NumPy "
                "call .item() or .tolist())"
            ) from None
        if len(told) > _MOST_PARAMS:
            raise InputError(
                f"the parameters of {self.identity.name} take {len(told):,} bytes a view; keep a "
                "seed in their place: softlabels.Views(…, keep='seeds')"
            )
        return told

    def realise(self, sample: Array, told: str | None, other: Array | None) -> Array:
        """The view that stored parameters tell of, an array of its own.

        Args:
            other: the partner's sample.

        Raises:
            InputError: `augment` gives no array of numbers.
        """
        if told is None:
            return sample
        params = json.loads(told)
        if self.keep == "seeds":
            partner = {PARTNER: params[PARTNER]} if PARTNER in params else {}
            params = {**self._drawn(params["seed"], sample), **partner}
        given = [sample] if other is None else [sample, other]
        # What it writes into an array must not reach the next view. Decoded images are read-only.
        arrays = [array.copy() if array.flags.writeable else array for array in given]
        found = self.augment(arrays[0], params, *arrays[1:])
        # Tensors and images say how they are arrays.
        array = np.asarray(found)
        if array.dtype.kind not in "biuf" or not array.size:
            raise InputError(
                f"{self.identity.name} gave {type(found).__name__} of {array.dtype}, shape "
                f"{array.shape}; augment() has to give an array of numbers"
            )
        return array

    def _seed(self, key: str | int, view: int) -> int:
        """63 bits of (seed, key, view)."""
        hashed = int(key_hashes(pa.array([key]))[0])
        sequence = np.random.SeedSequence([self.seed & ((1 << 64) - 1), hashed, view])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _drawn(self, seed: int, sample: Array) -> Params:
        found = self.draw(np.random.default_rng(seed), sample)
        if not isinstance(found, Mapping):
            raise InputError(
                f"draw() of {self.identity.name} gave a {type(found).__name__}; it has to give a "
                "dict of parameters"
            )
        return found


def partner_of(told: str | None) -> Any | None:
    """The key of the second sample that a view was made of; None where there was none."""
    return None if told is None else json.loads(told).get(PARTNER)


def differences(stored: ViewsIdentity, now: ViewsIdentity) -> list[str]:
    """In what two identities differ, in words: of libraries the versions."""
    ours, theirs = now.model_dump(exclude={"libraries"}), stored.model_dump()
    found = [
        f"{name} was {quoted(theirs[name])}, is {quoted(value)}"
        for name, value in ours.items()
        if value != theirs[name]
    ]
    for package in sorted({*stored.libraries, *now.libraries}):
        was, is_now = stored.libraries.get(package), now.libraries.get(package)
        if was != is_now:
            found.append(f"{package} was {was or 'not named'}, is {is_now or 'not named'}")
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"Views: libraries names {quoted(package)}, which is not installed; name packages as "
            "pip does"
        ) from None

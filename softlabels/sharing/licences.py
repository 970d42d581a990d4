"""Under which licences a set, its teacher and its data stand, and what follows for a student."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from softlabels.errors import InputError, quoted

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
# Of licences that say something about what is made with a model's outputs, by their text.
_OF_OUTPUTS = {
    "llama2": "forbids to improve other language models with its outputs",
    "llama3": "forbids to improve other language models with its outputs",
    **dict.fromkeys(
        ("llama3.1", "llama3.2", "llama3.3", "llama4"),
        "asks that the name of a published model that learned from its outputs begins with Llama",
    ),
    "gemma": "counts a model distilled from it as its derivative, under the same terms",
}


@dataclass(frozen=True, kw_only=True)
class Licences:
    """Identifiers as the Hub writes them ("apache-2.0", "cc-by-nc-4.0"); None: not told.

    Raises:
        InputError: one is no identifier.
    """

    labels: str | None = None
    teacher: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "teacher", "data"):
            found = getattr(self, name)
            if found is not None and not _IDENTIFIER.fullmatch(found):
                raise InputError(
                    f"the licence of the {name} is {quoted(found)}; expected an identifier of the "
                    'Hub, such as "apache-2.0", "cc-by-nc-4.0" or "other"'
                )

    def warnings(self) -> list[str]:
        """What forbids or restricts sharing the labels, or what is trained on them."""
        return [*_of_source("teacher", self.teacher, self), *_of_source("data", self.data, self)]


def _of_source(name: str, licence: str | None, licences: Licences) -> Iterator[str]:
    if licence is None:
        yield f"The licence of the {name} is not told: see for yourself what it allows."
        return
    told = f"The licence of the {name}, {licence},"
    if name == "teacher" and licence in _OF_OUTPUTS:
        yield f"{told} {_OF_OUTPUTS[licence]}."
    for part, (words, kept) in _PARTS.items():
        if part in re.split("[-.]", licence):
            yield f"{told} {words}."
            if licences.labels is not None and not kept(licences.labels):
                yield (
                    f"The licence of the labels, {licences.labels}, does not say so; that of the "
                    f"{name} goes first."
                )


def _has(part: str) -> Callable[[str], bool]:
    return lambda licence: part in re.split("[-.]", licence)


_PARTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "nc": ("forbids commercial use", _has("nc")),
    "nd": ("forbids to share what is derived from it", lambda _: True),
    "sa": ("asks that what is derived from it is shared under the same licence", _has("sa")),
}

"""Text of a set for people: control characters escaped, token ids as the text they stand for."""

from __future__ import annotations

from collections.abc import Callable

from softlabels.errors import LabelSetError, quoted
from softlabels.labelset.reader import LabelSet

Decode = Callable[[int], str]
_LONGEST = 10_000


def safe(text: object) -> str:
    """Text of a set for a terminal or a page: control characters escaped, quotes left out."""
    return quoted(text, limit=_LONGEST)[1:-1].replace('\\"', '"')


def decoder(labels: LabelSet) -> Decode:
    """Ids to token text, where the set carries a tokenizer and one can be loaded; else numbers.

    Raises:
        LabelSetError: its tokenizer cannot be read.
        CorruptShardError: it is not the one that was written.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return str
    folder = labels.tokenizer_folder()
    if folder is None or not (path := folder / "tokenizer.json").is_file():
        return str
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise LabelSetError(
            f"{path} cannot be read ({quoted(error)}); run `softlabels verify DIR --repair`"
        ) from None

    def decode(index: int) -> str:
        # Most tokens of text begin with a space; without a mark, columns of them cannot be read.
        text = tokenizer.decode([index], skip_special_tokens=False)
        return safe(text).replace(" ", "·") or str(index)

    return decode


def class_decoder(labels: LabelSet, decode: Decode) -> Decode:
    """The same for classes: tokens, names, or numbers where they have none."""
    names = labels.plan.class_names
    if names is not None:
        return lambda index: safe(names[index]) if index < len(names) else str(index)
    tokens = labels.plan.teacher.vocabulary is None and labels.plan.preparation.kind != "array"
    return decode if tokens else str

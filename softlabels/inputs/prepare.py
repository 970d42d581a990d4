"""Samples to token windows: tokenise, template, cut; nothing is dropped without a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.inputs.chat import assistant_spans, render
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.windows import Cutter, Windows


def prepare(
    column: pa.ChunkedArray, preparation: Preparation, *, tokenizer: Any, classes: int
) -> Windows:
    """Cut a unit's samples into windows of token ids.

    Args:
        column: text, messages or token ids, one sample a row.
        preparation: how.
        tokenizer: the teacher's; not used for token ids.
        classes: V; every id must be below it.

    Returns:
        windows; samples that cannot be labelled are in `failures`, with `on_long="raise"` the long
        ones too.

    Raises:
        InputError: the tokenizer cannot do what is asked of it, whatever the sample.
    """
    if preparation.kind == "messages":
        _check_chat(tokenizer, preparation)
    if preparation.answers is not None:
        preparation = preparation.of_prompts
    around = _around(tokenizer) if preparation.special_tokens == "window" else ((), ())
    cut = Cutter(preparation, classes, around)
    for row, (tokens, wanted) in enumerate(_tokenise(column, preparation, tokenizer)):
        if isinstance(tokens, str):
            cut.failures.append((row, tokens))
        else:
            cut.add(row, cut.bare(tokens) if wanted is None else tokens, wanted)
    return cut.finish()


def _around(tokenizer: Any) -> tuple[Sequence[int], Sequence[int]]:
    """The special tokens that a tokenizer puts before and after a text.

    Raises:
        InputError: it puts them elsewhere too.
    """
    bare, whole = (
        tokenizer("a", add_special_tokens=added, return_attention_mask=False)["input_ids"]
        for added in (False, True)
    )
    # Where nothing is left of "a", its place among the special tokens is not known.
    for first in range(len(whole) - len(bare) + 1 if bare else 0):
        if whole[first : first + len(bare)] == bare:
            return whole[:first], whole[first + len(bare) :]
    raise InputError(
        f"where a {type(tokenizer).__name__} puts its special tokens cannot be told; pass a column "
        "of ready token ids"
    )


def _check_chat(tokenizer: Any, preparation: Preparation) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the column holds messages, but the teacher's tokenizer has no chat template; set its "
            "chat_template, or write the conversations out as text"
        )
    if preparation.assistant_only and not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"assistant_only needs to know where each token stands in the text, which a "
            f"{type(tokenizer).__name__} does not tell; use a fast tokenizer, or label all "
            "positions"
        )


# Token ids, or why there are none; which positions to label, or None for all.
Tokenised = tuple[NDArray[Any] | str, NDArray[np.bool_] | None]


def _tokenise(
    column: pa.ChunkedArray, preparation: Preparation, tokenizer: Any
) -> Iterator[Tokenised]:
    if preparation.kind == "input_ids":
        for row in column:
            ids = row.values.to_numpy(zero_copy_only=False) if row.is_valid else ()
            yield np.asarray(ids), None
        return
    samples = column.to_pylist()
    if preparation.kind == "text":
        texts = ["" if text is None else text for text in samples]
        encoded = tokenizer(
            texts,
            add_special_tokens=preparation.special_tokens is True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        end = getattr(tokenizer, "eos_token_id", None)
        for text, ids in zip(texts, encoded, strict=True):
            if preparation.answers is not None and preparation.special_tokens and ids[-1:] == [end]:
                ids = ids[:-1]  # a prompt is gone on with
            # A tokenizer that adds BOS makes one token of an empty sample: still nothing to learn.
            yield np.asarray(ids if text else (), np.int64), None
        return
    for messages in samples:
        try:
            yield _chat(messages or [], preparation, tokenizer)
        except InputError as error:
            yield str(error), None


def _chat(messages: list[Any], preparation: Preparation, tokenizer: Any) -> Tokenised:
    if not messages:
        return np.empty(0, np.int64), None
    if None in messages:
        return f"message {messages.index(None)} is null", None
    text = render(tokenizer, messages, answer=preparation.answers is not None)
    encoded = tokenizer(
        text,
        add_special_tokens=False,  # the template writes its own
        return_offsets_mapping=preparation.assistant_only,
        verbose=False,
    )
    ids = np.asarray(encoded["input_ids"], np.int64)
    if not preparation.assistant_only:
        return ids, None
    first_char = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)[:, 0]
    predicted = np.zeros(len(ids) + 1, bool)
    for start, stop in assistant_spans(tokenizer, messages, text):
        predicted[:-1] |= (first_char >= start) & (first_char < stop)
    # Entry t is the distribution over token t + 1: label the positions that predict the turn.
    return ids, predicted[1:]

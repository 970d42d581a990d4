"""Chat templates: a conversation's text, and where in it the assistant speaks."""

from __future__ import annotations

from typing import Any

from softlabels.errors import InputError
from softlabels.inputs.digests import whole


def render(tokenizer: Any, messages: list[dict[str, Any]], *, answer: bool = False) -> str:
    """The conversation as the tokenizer's template writes it.

    Args:
        answer: end with the opening of an assistant's turn.

    Raises:
        InputError: the template does not take it.
    """
    # Arrow fills fields that a message lacks with null; templates test whether they exist.
    turns = [_as_written(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is a program: roles out of turn, a missing field, …
        raise InputError(
            f"the chat template does not take this conversation: {type(error).__name__}: {error}"
        ) from error
    return str(text)


def _as_written(value: Any) -> Any:
    """A value without what Arrow made of it because of other rows, at any depth.

    Fields that only they have are null here, and whole numbers are floats where they have floats.
    """
    if isinstance(value, dict):
        return {k: _as_written(v) for k, v in value.items() if v is not None}
    if isinstance(value, float) and (number := whole(value)) is not None:
        return number
    return [_as_written(one) for one in value] if isinstance(value, list) else value


def assistant_spans(
    tokenizer: Any, messages: list[dict[str, Any]], text: str
) -> list[tuple[int, int]]:
    """Character spans of the assistant's turns in `text`, their closing marks included.

    A turn is what the template adds when the message is there, after the opening that it gives a
    model to continue from. Works with any template that renders a conversation's beginning as the
    beginning of its text.

    Raises:
        InputError: the template rewrites earlier turns, so turns cannot be told apart.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        after = render(tokenizer, messages[: index + 1])
        before = _before(tokenizer, messages, index, after)
        if before is None or not (after.startswith(before) and text.startswith(after)):
            raise InputError(
                f"the chat template does not write message {index} as a continuation of what "
                "precedes it, so the assistant's turns cannot be found; label all positions "
                "(leave out assistant_only), or tokenise yourself and pass input_ids"
            )
        spans.append((len(before), len(after)))
    return spans


def _before(tokenizer: Any, messages: list[dict[str, Any]], index: int, after: str) -> str | None:
    """The text up to and with the opening of an assistant's turn; None if it cannot be found."""
    if index:
        return render(tokenizer, messages[:index], answer=True)
    # Nothing precedes it but what the template itself puts there: look for the opening.
    opening = render(tokenizer, messages[:1], answer=True).removeprefix(after)
    found = after.find(opening)
    return None if found < 0 else after[: found + len(opening)]

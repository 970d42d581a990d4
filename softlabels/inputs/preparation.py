"""How samples become records: the settings, as the plan keeps them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from softlabels.errors import InputError

OnLong = Literal["window", "truncate", "reject", "raise"]
Positions = Literal["first", "every", "teacher"]


class Preparation(BaseModel):
    """How samples became records; part of the plan.

    Attributes:
        kind: "text", "messages", "input_ids" or "array". Arrays are not cut: of the settings below
            they have `positions` alone.
        max_length: tokens in a window, at most.
        overlap: tokens that a window repeats from the one before it, as context only.
        on_long: what happens to a sample above max_length.
        special_tokens: whether the tokenizer added its own (BOS, EOS) to text; "window" where each
            window has them ([CLS] … [SEP]), which are context only; of a chat, those that its
            template itself begins and ends with are the first and last window's.
        assistant_only: label only the positions that predict an assistant's tokens.
        positions: of an array, "first" for one in all, "every" for one at each index of its first
            axis, "teacher" for as many as the teacher gives it; None of tokens.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["text", "messages", "input_ids", "array"]
    max_length: int
    overlap: int = 0
    on_long: OnLong = "window"
    special_tokens: bool | Literal["window"] = True
    assistant_only: bool = False
    positions: Positions | None = None

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        if self.positions is None:
            made.pop("positions", None)
        return made

    def check(self) -> None:
        """Raise `InputError` for settings that no data could satisfy."""
        if self.max_length < 1:
            raise InputError(f"max_length is {self.max_length}; it must be at least 1")
        if not 0 <= self.overlap < self.max_length:
            raise InputError(
                f"overlap is {self.overlap}; it must be at least 0 and below max_length "
                f"({self.max_length})"
            )
        if self.assistant_only and self.kind != "messages":
            raise InputError(
                f"assistant_only needs a chat column (messages); this one is {self.kind}"
            )

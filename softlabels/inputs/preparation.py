"""How samples become records: the settings, as the plan keeps them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from softlabels.errors import InputError

OnLong = Literal["window", "truncate", "reject", "raise"]
Positions = Literal["first", "every", "teacher"]


class Answers(BaseModel):
    """A teacher's own answers to prompts, which are labelled: sequence-level distillation.

    Kim and Rush, "Sequence-level knowledge distillation", EMNLP 2016.

    Attributes:
        max_new_tokens: of an answer, the token that ends it included.
        temperature: 0 takes the likeliest token at every step; above it tokens are drawn.
        top_p: they are drawn from as few tokens as reach this mass.
        seed: of the draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0

    @property
    def words(self) -> str:
        """What they are, for people."""
        drawn = f"drawn at T = {self.temperature:g}, top-p {self.top_p:g}, seed {self.seed}"
        how = drawn if self.temperature else "the likeliest tokens"
        return f"the teacher's answers, at most {self.max_new_tokens} tokens, {how}"


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
        answers: the column holds prompts, and labelled is what the teacher answered; None where it
            holds what is labelled.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["text", "messages", "input_ids", "array"]
    max_length: int
    overlap: int = 0
    on_long: OnLong = "window"
    special_tokens: bool | Literal["window"] = True
    assistant_only: bool = False
    positions: Positions | None = None
    answers: Answers | None = None

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        for name in ("positions", "answers"):
            if made.get(name) is None:
                made.pop(name, None)
        return made

    @property
    def of_prompts(self) -> Preparation:
        """How prompts are cut: not at all, and a token is left for the answer."""
        return self.model_copy(update={"max_length": self.max_length - 1})

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
        if self.answers is not None:
            self._check_prompts()

    def _check_prompts(self) -> None:
        if self.kind == "array":
            raise InputError("answers go on where text ends, and the column holds arrays")
        if self.max_length < 2 or self.overlap or self.on_long not in ("reject", "raise"):
            raise InputError(
                "prompts are not cut: with answers max_length is at least 2, there is no overlap, "
                'and on_long is "reject" or "raise"'
            )
        if self.assistant_only:
            raise InputError("of answers, these alone are labelled: leave out assistant_only")

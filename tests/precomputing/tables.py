"""A teacher that is a table and tells whether it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import softlabels as sl

CLASSES = 16


class TableTeacher:
    """A teacher by the protocol: a table of logits, which counts the batches it answers.

    `wrong(input_ids, logits)` may raise, or return other logits of shape (B, T, V), for a batch.
    """

    tokenizer = None

    def __init__(
        self,
        *,
        seed: int = 0,
        classes: int = CLASSES,
        max_length: int | None = None,
        wrong: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(classes, classes, generator=generator) * 2
        self.classes, self.max_length, self.wrong = classes, max_length, wrong
        self.batches: list[torch.Tensor] = []
        self.loaded = False
        self.seed = seed

    @property
    def identity(self) -> sl.teachers.TeacherIdentity:
        self.loaded = True
        return sl.teachers.TeacherIdentity(
            name="table",
            revision="1",
            weights=f"{self.seed:032x}",
            dtype="float32",
            engine="test",
            engine_version="1",
            classes=self.classes,
        )

    def logits(
        self, input_ids: torch.Tensor, wanted: torch.Tensor, *, padding: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        self.batches.append(input_ids.clone())
        logits = self.table[input_ids]
        if self.wrong is not None:
            logits = self.wrong(input_ids, logits)
        yield logits[wanted]

"""Windows: the records of a work unit before they are labelled, cut from its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import InputError
from softlabels.inputs.digests import prepared_digest
from softlabels.inputs.preparation import Preparation

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """The records of one work unit before labelling: ragged arrays, no object per position.

    Attributes:
        rows: source row of each record within the unit, shape (R,).
        parts: number of the window within its sample, (R,).
        starts: where the window starts in its sample, in tokens, (R,).
        source_lengths: tokens in the whole sample, (R,).
        token_ids: every record's tokens, one after another, (N,); None where they are arrays.
        offsets: record i owns token_ids[offsets[i]:offsets[i + 1]], (R + 1,); of arrays it has so
            many positions.
        next_ids: the token after the window's last; −1 where it was not seen, (R,).
        wanted: which positions are to be labelled, bool, (N,).
        digests: of what each record consists of, (R,).
        arrays: the records as the teacher takes them; None where they are tokens.
        views: number of the view within its sample, (R,).
        told: the parameters of each view, JSON, None where it is the sample as it is, (R,); None
            where there are no views.
        hard: the class that each record was given by hand, −1 for none, (R,); None where tokens
            tell.
        rejects: (source row, reason) of samples that `on_long="reject"` turned away.
        failures: (source row, reason) of samples that cannot be labelled.
        truncated: how many samples lost their end.
    """

    rows: Int64s
    parts: Int64s
    starts: Int64s
    source_lengths: Int64s
    token_ids: Int64s | None
    offsets: Int64s
    next_ids: Int64s
    wanted: NDArray[np.bool_]
    digests: Sequence[bytes]
    arrays: Sequence[NDArray[Any]] | None = None
    views: Int64s | None = None
    told: Sequence[str | None] | None = None
    hard: Int64s | None = None
    rejects: tuple[tuple[int, str], ...] = ()
    failures: tuple[tuple[int, str], ...] = ()
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int64s:
        """Tokens in each record, (R,)."""
        return np.diff(self.offsets)

    @property
    def size(self) -> int:
        """N, positions in all."""
        return int(self.offsets[-1])

    @cached_property
    def hard_labels(self) -> Int64s:
        """The next token at every position, −1 where none was seen, (N,)."""
        assert self.token_ids is not None
        following = np.append(self.token_ids[1:], -1)[: len(self.token_ids)]
        following[self.offsets[1:] - 1] = self.next_ids
        return following

    def first_tokens(self) -> Windows:
        """The same windows, each labelled at its first token alone."""
        wanted = np.zeros(self.size, bool)
        wanted[self.offsets[:-1]] = True
        return replace(self, wanted=wanted)

    def with_answers(self, answers: Sequence[Int64s | None]) -> Windows:
        """The records that have one, each with its answer, labelled where that is predicted."""
        assert self.token_ids is not None
        kept = [number for number, answer in enumerate(answers) if answer is not None]
        tokens, wanted = [], []
        for number in kept:
            answer = answers[number]
            assert answer is not None
            prompt = self.token_ids[self.offsets[number] : self.offsets[number + 1]]
            tokens.append(np.concatenate([prompt, answer]))
            predicted = np.zeros(len(tokens[-1]), bool)
            predicted[len(prompt) - 1 : -1] = True
            wanted.append(predicted)
        lengths = np.asarray([len(ids) for ids in tokens], np.int64)
        return replace(
            self,
            rows=self.rows[kept],
            parts=self.parts[kept],
            starts=self.starts[kept],
            source_lengths=lengths,
            token_ids=np.concatenate([np.empty(0, np.int64), *tokens]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            next_ids=np.full(len(kept), -1),
            wanted=np.concatenate([np.empty(0, bool), *wanted]),
            digests=[prepared_digest(ids) for ids in tokens],
        )

    def tokens_of(self, records: Int64s) -> Int64s:
        """Indices of the tokens (positions) of some records, one record after another."""
        lengths = self.lengths[records]
        starts = np.cumsum(lengths) - lengths
        shifts: Int64s = np.repeat(self.offsets[records] - starts, lengths)
        return shifts + np.arange(len(shifts))


class Cutter:
    """Collects the windows of one unit."""

    def __init__(
        self,
        preparation: Preparation,
        classes: int,
        around: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        self.preparation, self.classes = preparation, classes
        self.before, self.after = (np.asarray(ids, np.int64) for ids in around)
        self.limit = preparation.max_length - len(self.before) - len(self.after)
        if self.limit <= preparation.overlap:
            raise InputError(
                f"max_length is {preparation.max_length}, which leaves {self.limit} tokens beside "
                f"the tokenizer's special ones; it must leave more than overlap "
                f"({preparation.overlap})"
            )
        self.records: list[tuple[int, int, int, int, int]] = []
        self.tokens: list[Int64s] = []
        self.wanted: list[NDArray[np.bool_]] = []
        self.rejects: list[tuple[int, str]] = []
        self.failures: list[tuple[int, str]] = []
        self.truncated = 0

    def bare(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """The tokens without those that every window gets, where a chat template wrote them."""
        if self.preparation.kind != "messages":
            return tokens
        first, last = len(self.before), len(tokens) - len(self.after)
        if len(self.after) and last >= 0 and np.array_equal(tokens[last:], self.after):
            tokens = tokens[:last]
        return tokens[first:] if np.array_equal(tokens[:first], self.before) else tokens

    def add(self, row: int, tokens: NDArray[Any], wanted: NDArray[np.bool_] | None) -> None:
        reason = self._unusable(tokens)
        if reason is None and wanted is not None and not wanted.any():
            reason = "no assistant turn: nothing to label"
        if reason is not None:
            self.failures.append((row, reason))
            return
        limit, overlap = self.limit, self.preparation.overlap
        if len(tokens) > limit and self.preparation.on_long in ("reject", "raise"):
            reason = f"{len(tokens)} tokens, more than max_length {limit}"
            if limit != self.preparation.max_length:
                reason += f" ({self.preparation.max_length} less the special tokens)"
            turned_away = self.preparation.on_long == "reject"
            (self.rejects if turned_away else self.failures).append((row, reason))
            return
        tokens = tokens.astype(np.int64, copy=False)
        wanted = np.ones(len(tokens), bool) if wanted is None else wanted
        starts: Sequence[int] = [0]
        if len(tokens) > limit:
            if self.preparation.on_long == "window":
                starts = range(0, len(tokens) - overlap, limit - overlap)
            elif wanted[:limit].any():
                self.truncated += 1
            else:
                reason = f"no assistant turn in its first {limit} tokens: nothing to label"
                self.failures.append((row, reason))
                return
        for part, start in enumerate(starts):
            self._window(row, part, start, tokens, wanted)

    def _window(
        self, row: int, part: int, start: int, tokens: Int64s, wanted: NDArray[np.bool_]
    ) -> None:
        stop = min(start + self.limit, len(tokens))
        labelled = wanted[start:stop].copy()
        if part:
            labelled[: self.preparation.overlap] = False
        if not labelled.any():
            return
        following = int(tokens[stop]) if stop < len(tokens) else -1
        self.records.append((row, part, start, len(tokens), following))
        self.tokens.append(np.concatenate([self.before, tokens[start:stop], self.after]))
        context = np.zeros(len(self.before), bool), np.zeros(len(self.after), bool)
        self.wanted.append(np.concatenate([context[0], labelled, context[1]]))

    def _unusable(self, tokens: NDArray[Any]) -> str | None:
        if not len(tokens):
            return "empty: it has no tokens"
        if tokens.dtype.kind not in "iu":
            return "its token ids hold nulls"
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.classes:
            found = int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max())
            return f"token id {found} is outside the teacher's 0 … {self.classes - 1}"
        return None

    def finish(self) -> Windows:
        columns = np.asarray(self.records, np.int64).reshape(-1, 5).T
        lengths = [len(tokens) for tokens in self.tokens]
        digests = [prepared_digest(tokens) for tokens in self.tokens]
        return Windows(
            rows=columns[0],
            parts=columns[1],
            starts=columns[2],
            source_lengths=columns[3],
            next_ids=columns[4],
            token_ids=np.concatenate([np.empty(0, np.int64), *self.tokens]),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            wanted=np.concatenate([np.empty(0, bool), *self.wanted]),
            digests=digests,
            rejects=tuple(self.rejects),
            failures=tuple(self.failures),
            truncated=self.truncated,
        )

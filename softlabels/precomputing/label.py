"""Label one unit: windows of tokens, or arrays → records with their labels, in their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import LabellingError, SoftLabelsError, TeacherError, quoted
from softlabels.format.plan import Plan
from softlabels.format.probes import choose
from softlabels.format.summary import UnitSummary
from softlabels.inputs.hard import hard_labels
from softlabels.inputs.prepare import prepare
from softlabels.inputs.prepare_arrays import prepare_arrays
from softlabels.inputs.samples import Partners
from softlabels.inputs.views import Views
from softlabels.inputs.windows import Windows
from softlabels.labels import Labels
from softlabels.memory import sent
from softlabels.precomputing.answers import answered
from softlabels.precomputing.arriving import Arriving, Coming
from softlabels.precomputing.batches import (
    bucketed,
    of_one_shape,
    packed,
    padded,
    rows_of_many,
    stacked,
)
from softlabels.precomputing.room import Dense, Room
from softlabels.precomputing.unit import (
    Labelled,
    Prepared,
    Unit,
    drop,
    identity_of,
    records_of,
    reject,
)
from softlabels.progress import Seen
from softlabels.selection import Selection
from softlabels.selection.uniforms import uniforms
from softlabels.teachers import LabelTeacher, Teacher
from softlabels.teachers.traits import positions_in, ready

logger = logging.getLogger(__name__)
T = TypeVar("T")
Int64s = NDArray[np.int64]
# Token ids or arrays, wanted, padding, and, of rows of several records, places in them; (B, T).
Inputs = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Labeller:
    """Everything that labelling a unit depends on, beside the unit.

    Attributes:
        teacher, selection, plan: as planned.
        views: how a sample is seen; None for as it is.
        partners: what views are made of beside the sample; None where they are of one alone.
        on_error: "raise" stops at a sample that cannot be labelled, "skip" notes it as a reject.
        advance: told of every batch: its tokens, the unit's tokens in all, and what was seen.
        again: told when the unit begins again with smaller batches.
        keep_logits: hold the raw logits of the kept classes too.
    """

    teacher: Teacher
    selection: Selection
    plan: Plan
    on_error: OnError
    views: Views | None = None
    partners: Partners | None = None
    advance: Callable[[int, int, Seen], None] = lambda *_: None
    again: Callable[[], None] = lambda: None
    keep_logits: bool = False

    @property
    def selects(self) -> bool:
        """Whether classes are selected here, of logits."""
        return self.plan.kind != "embedding" and not isinstance(self.teacher, LabelTeacher)

    def prepare(self, unit: Unit) -> Prepared:
        """Make records of a unit's samples, as the teacher takes them; its weights are not used."""
        digests, whole = unit.digests(self.plan.data.columns)
        windows = self._windows(unit)
        return self._prepared(unit, whole, windows, digests)

    def _prepared(
        self, unit: Unit, whole: str, windows: Windows, digests: Sequence[bytes]
    ) -> Prepared:
        data = self.plan.data
        if data.label is not None:
            hard = hard_labels(
                unit.table.column(data.label),
                name=data.label,
                classes=self.plan.teacher.classes,
                class_names=self.plan.class_names,
            )
            windows = replace(windows, hard=hard[windows.rows])
        identity = identity_of(windows, unit, digests)
        numbers = None
        if self.selection.sampled:
            seed = self.selection.settings["seed"]
            numbers = uniforms(seed, identity, windows.lengths)
        return Prepared(unit, whole, windows, identity, numbers)

    def answered(self, prepared: Prepared) -> Prepared:
        """A unit of prompts with the teacher's answers; of another the unit itself.

        Raises:
            LabellingError: the teacher runs out of memory on one prompt.
        """
        preparation = self.plan.preparation
        if preparation.answers is None:
            return prepared
        windows = answered(
            prepared.windows,
            self.teacher,
            preparation.answers,
            max_length=preparation.max_length,
            batch_tokens=self.plan.batch_tokens,
        )
        digests, whole = prepared.unit.digests(self.plan.data.columns)
        return self._prepared(prepared.unit, whole, windows, digests)

    def _windows(self, unit: Unit) -> Windows:
        column, preparation = unit.table.column(self.plan.data.columns[0]), self.plan.preparation
        if preparation.kind == "array":
            return prepare_arrays(
                column,
                unit.keys,
                views=self.views,
                partners=self.partners,
                ready=partial(ready, self.teacher),
                positions=partial(positions_in, self.teacher),
            )
        windows = prepare(
            column,
            preparation,
            tokenizer=None if preparation.kind == "input_ids" else self.teacher.tokenizer,
            classes=self.plan.teacher.token_ids,
        )
        first = getattr(self.teacher, "positions", "every") == "first"
        return windows.first_tokens() if first else windows

    def __call__(self, prepared: Prepared, probes: int = 0) -> Labelled:
        """Label a unit; see `begin` and `finish`."""
        return self.finish(self.begin(prepared, probes))

    def finish(self, arriving: Arriving) -> Labelled:
        """What was begun, when its last labels have come; any thread may wait for them.

        Raises:
            LabellingError: a sample cannot be labelled and `on_error` is "raise".
        """
        arriving.wait()
        prepared = arriving.prepared
        unit, windows = prepared.unit, prepared.windows
        rejects = [reject(unit, row, 0, reason) for row, reason in windows.rejects]
        rejects += [self._failure(unit, row, 0, reason) for row, reason in windows.failures]
        failures = arriving.failures
        for record, reason in sorted(failures.items()):
            row, part = int(windows.rows[record]), int(windows.parts[record])
            rejects.append(self._failure(unit, row, part, reason))
        summary = UnitSummary(
            unit=unit.number,
            source_rows=len(unit.table),
            input_digest=prepared.digest,
            rejects=tuple(rejects),
            truncated=windows.truncated,
        )
        records = records_of(windows, arriving.labels, prepared.identity, self.plan)
        kept = arriving.dense.probes(windows, failures.keys())
        return Labelled(drop(records, failures.keys()), summary, kept, windows.size, arriving.seen)

    def begin(self, prepared: Prepared, probes: int = 0) -> Arriving:
        """Run the teacher over a unit. Of a CUDA device the last labels may be on their way.

        A batch that does not fit into memory begins the unit again with half as many tokens, so
        that which batches made its labels depends on what fits and not on when it did not.

        Args:
            prepared: and where it is one of prompts, answered.
            probes: how many of its positions are kept dense too.

        Raises:
            LabellingError: the teacher cannot label one record.
        """
        windows, tokens = prepared.windows, self.plan.batch_tokens
        wanted = int(windows.wanted.sum())
        while True:
            room = Room(wanted, self.selection, self.plan, keep_logits=self.keep_logits)
            dense = Dense(choose(wanted, probes, prepared.unit.number))
            arriving = Arriving(prepared, room, dense, self.advance)
            try:
                self._label_batches(arriving, tokens)
                return arriving
            except torch.OutOfMemoryError as error:
                longest = self._largest(windows)
                if tokens <= longest:
                    raise LabellingError(
                        f"the teacher ran out of memory on one record of {longest} "
                        f"{'tokens' if windows.arrays is None else 'numbers'}: "
                        f"{str(error).splitlines()[0]}. Choose a smaller max_length, or a device "
                        "with more memory"
                    ) from error
                tokens = max(longest, tokens // 2)
                self.again()
                logger.warning("out of memory: this unit goes on with %d tokens a batch", tokens)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _largest(self, windows: Windows) -> int:
        """What the largest record adds to a batch, in what `batch_tokens` counts."""
        if windows.arrays is not None:
            return max(array.size for array in windows.arrays)
        return int(windows.lengths.max())

    def _label_batches(self, arriving: Arriving, batch_tokens: int) -> None:
        for records, inputs in self._batches(arriving.prepared.windows, batch_tokens):
            coming: list[Coming] = []
            try:
                coming = self._run(arriving, records, inputs)
            except _TeacherRaised as error:
                # One record's fault must not cost the others of its batch: try each alone.
                self._run_each(arriving, records, error)
            arriving.expect(records, coming)

    def _batches(self, windows: Windows, batch_tokens: int) -> Iterator[tuple[Int64s, Inputs]]:
        """The records of every batch, in the order of its wanted positions, and what is run."""
        if windows.arrays is not None:
            for records in of_one_shape(windows.arrays, batch_tokens):
                yield records, stacked(windows, records)
            return
        if not self.plan.packing:
            for records in bucketed(windows.lengths, batch_tokens):
                yield records, padded(windows, records)
            return
        longest = int(windows.lengths.max()) if len(windows) else 1
        row_tokens = max(longest, min(self.plan.preparation.max_length, batch_tokens))
        rows = rows_of_many(windows.lengths, row_tokens)
        together = max(1, batch_tokens // row_tokens)
        for start in range(0, len(rows), together):
            held = rows[start : start + together]
            yield np.concatenate(held), packed(windows, held)

    def _run(self, arriving: Arriving, records: Int64s, inputs: Inputs) -> list[Coming]:
        """Label one batch."""
        prepared = arriving.prepared
        windows = prepared.windows
        tokens = windows.tokens_of(records)
        tokens = tokens[windows.wanted[tokens]]
        where = torch.from_numpy(np.cumsum(windows.wanted)[tokens] - 1)
        hard = torch.from_numpy(self._hard_labels(windows)[tokens])
        numbers = None
        if prepared.uniforms is not None:
            numbers = torch.from_numpy(prepared.uniforms[tokens])
        given, coming = 0, []
        with torch.no_grad():
            for labels, logits in self._answers(inputs, hard, numbers):
                rows = slice(given, given + len(labels))
                given = rows.stop
                if given > len(where):
                    break
                coming.append(Coming(where[rows], labels))
                if logits is not None:
                    arriving.dense.put(where[rows], logits)
        if given != len(where):
            kind = "labels" if isinstance(self.teacher, LabelTeacher) else "logits"
            raise TeacherError(
                f"the teacher gave {given} rows of {kind} for {len(where)} positions; it must "
                "give one for each"
            )
        return coming

    def _hard_labels(self, windows: Windows) -> NDArray[np.int64]:
        if windows.hard is not None:
            return np.repeat(windows.hard, windows.lengths)
        if windows.token_ids is None:
            return np.full(windows.size, -1)
        if not getattr(self.teacher, "classes_are_tokens", True):
            return np.full(windows.size, -1)
        if self.plan.hard_label_alignment == "same":
            return windows.token_ids
        return windows.hard_labels

    def _answers(
        self, inputs: Inputs, hard: Tensor, numbers: Tensor | None
    ) -> Iterator[tuple[Labels, Tensor | None]]:
        """Labels of the wanted positions, and the logits they come from where there are any."""
        input_ids, wanted, padding, *places = inputs
        if isinstance(self.teacher, LabelTeacher):
            answers = self.teacher.labels(
                input_ids, wanted, padding=padding, hard_labels=hard, k=self.selection.k
            )
            for told in _watched(answers):
                yield told, None
            return
        packing = {"position_ids": places[0]} if places else {}
        left = len(hard)
        for logits in _watched(self.teacher.logits(input_ids, wanted, padding=padding, **packing)):
            self._check_shape(logits, rows_left=left)
            rows = slice(len(hard) - left, len(hard) - left + len(logits))
            left -= len(logits)
            labels = self.selection(
                logits,
                sent(hard[rows], logits.device),
                temperatures=self.plan.temperatures,
                uniforms=None if numbers is None else sent(numbers[rows], logits.device),
            )
            yield labels, logits

    def _check_shape(self, logits: torch.Tensor, *, rows_left: int) -> None:
        classes = self.plan.teacher.classes
        if logits.ndim != 2 or logits.shape[1] != classes or len(logits) > rows_left:
            raise TeacherError(
                f"the teacher gave logits of shape {tuple(logits.shape)}; expected at most "
                f"{rows_left} rows, one for each position left, of {classes} classes"
            )

    def _run_each(self, arriving: Arriving, records: Int64s, cause: _TeacherRaised) -> None:
        raised: dict[int, str] = {}
        for record in records:
            alone = np.asarray([record])
            try:
                inputs = self._alone(arriving.prepared.windows, alone)
                arriving.put(self._run(arriving, alone, inputs))
            except _TeacherRaised as error:
                raised[int(record)] = str(error)
        if not raised:
            raise LabellingError(
                f"{cause}, for a batch whose records it labels one by one"
            ) from cause
        arriving.raised |= raised

    @staticmethod
    def _alone(windows: Windows, record: Int64s) -> Inputs:
        return padded(windows, record) if windows.arrays is None else stacked(windows, record)

    def _failure(self, unit: Unit, row: int, part: int, reason: str) -> dict[str, Any]:
        noted = reject(unit, row, part, reason)
        if self.on_error == "raise":
            raise LabellingError(
                f"the sample with key {quoted(noted['key'])}, part {part}, cannot be labelled: "
                f"{quoted(reason, limit=300)[1:-1]}. Correct it, or note such samples in the "
                'rejects table and go on with on_error="skip" (--on-error skip)'
            )
        return noted


class _TeacherRaised(Exception):
    """An error of the teacher's own, apart from ours."""


def _watched(answers: Iterator[T]) -> Iterator[T]:
    while True:
        try:
            answer = next(answers)
        except StopIteration:
            return
        except (SoftLabelsError, MemoryError, torch.OutOfMemoryError):
            raise  # not one sample's fault
        except Exception as error:
            raise _TeacherRaised(f"the teacher raised {type(error).__name__}: {error}") from error
        yield answer

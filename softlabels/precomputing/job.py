"""A job: what is to be labelled, by whom and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import metadata

from softlabels import codecs
from softlabels.codecs import Plain
from softlabels.errors import InputError
from softlabels.format import plan as plans
from softlabels.format.plan import Plan, SelectionPlan
from softlabels.inputs import tokenizer as tokenizers
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.samples import Partners
from softlabels.inputs.sources import Source
from softlabels.inputs.views import Views
from softlabels.precomputing.label import OnError
from softlabels.precomputing.pilot import default_batch_values, find_batch_tokens, pilot
from softlabels.selection import Selection
from softlabels.teachers import Teacher, TeacherIdentity
from softlabels.teachers.traits import class_names_of, kind_of

NO_PACKING = (
    "packing needs a teacher that can keep the records of a row apart, and this one cannot; leave "
    "out packing"
)


@dataclass(frozen=True)
class Job:
    """What is to be labelled, by whom and how.

    Attributes:
        source, teacher, preparation, selection, temperatures: as asked for, or by default.
        codec: its name; None for that of the earlier plan, or the default.
        earlier: the plan of the set that is gone on with; None for a new one.
        views: how a sample is seen; None for as it is.
        store_inputs, probes, on_error, unit_rows, packing: see `softlabels.precompute`.
        asked_batch_tokens: None for those of the earlier plan, or of a trial.
    """

    source: Source
    teacher: Teacher
    preparation: Preparation
    selection: Selection
    temperatures: tuple[float, ...]
    codec: str | None
    earlier: Plan | None
    views: Views | None
    store_inputs: bool
    probes: int
    on_error: OnError
    unit_rows: int
    asked_batch_tokens: int | None
    packing: bool

    @property
    def codec_name(self) -> str:
        """Of a new set."""
        if self.codec is not None:
            return self.codec
        return codecs.default(sampled=self.selection.sampled, kind=kind_of(self.teacher))

    @cached_property
    def partners(self) -> Partners | None:
        """What views are made of beside the sample; None where they are of one alone."""
        if self.views is None or not self.views.partner:
            return None
        return Partners(self.source)

    @cached_property
    def batch_tokens(self) -> int:
        """Padded tokens in a batch, at most; a trial of an accelerator loads the teacher."""
        if self.asked_batch_tokens is not None:
            return self.asked_batch_tokens
        if self.earlier is not None:
            return self.earlier.batch_tokens
        if self.preparation.kind == "array":
            return default_batch_values(self.teacher)
        length = self.preparation.max_length
        return find_batch_tokens(self.teacher, self.selection, length=length)

    @cached_property
    def without_codec(self) -> Plan:
        """The plan, with a codec that needs no pilot; loads the teacher.

        Raises:
            InputError: packing is asked for, and a trial shows that the teacher cannot.
        """
        if self.packing and not getattr(self.teacher, "can_pack", False):
            raise InputError(NO_PACKING)
        tokenizer = self.teacher.tokenizer
        return Plan(
            writer=f"softlabels {metadata.version('softlabels')}",
            teacher=self._teacher_identity,
            tokenizer=None if tokenizer is None else tokenizers.identify(tokenizer),
            data=self.source.identity,
            preparation=self.preparation,
            selection=SelectionPlan.of(self.selection),
            kind=kind_of(self.teacher),
            requires=() if self.views is None else (plans.VIEWS,),
            class_names=self._class_names,
            views=None if self.views is None else self.views.identity,
            codec=Plain(self.teacher.classes, self.temperatures).to_json(),
            temperatures=self.temperatures,
            hard_label_alignment=getattr(self.teacher, "alignment", "next"),
            store_inputs=self.store_inputs,
            probes=self.probes,
            unit_rows=self.unit_rows,
            batch_tokens=self.batch_tokens,
            packing=self.packing,
        )

    @property
    def _class_names(self) -> tuple[str, ...] | None:
        # A set that was begun before names were kept goes on without.
        if self.earlier is not None and self.earlier.class_names is None:
            return None
        return class_names_of(self.teacher)

    @property
    def _teacher_identity(self) -> TeacherIdentity:
        # What is known of a server is measured, and never twice the same to the last bit.
        recognise = getattr(self.teacher, "recognise", None)
        if recognise is not None and self.earlier is not None:
            found: TeacherIdentity = recognise(self.earlier.teacher)
            return found
        return self.teacher.identity

    def plan(self) -> Plan:
        """The plan; a new one's codec learns from a pilot."""
        bare = self.without_codec
        return plans.with_codec(
            bare, self.codec, self.earlier, lambda: pilot(self.source, bare, self.teacher)
        )

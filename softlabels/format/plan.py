"""plan.json: what is to be labelled, by whom and how; written first, never changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from softlabels import codecs
from softlabels import selection as selections
from softlabels.errors import PlanMismatchError, UnsupportedFormatError, quoted
from softlabels.format.derived_from import Origin
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.sources import DataIdentity
from softlabels.inputs.tokenizer import TokenizerIdentity
from softlabels.inputs.views import ViewsIdentity
from softlabels.labels import Labels
from softlabels.selection import Selection
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.traits import Kind

FORMAT = "1.0"
# Read as the same; docs/FORMAT.md says how it differs.
READ = (FORMAT, "1.0-draft")
VIEWS = "views"
KNOWN_FEATURES: frozenset[str] = frozenset({VIEWS})

# Names for people: the digests beside them decide what is the same.
_NOT_COMPARED = frozenset(
    {"format", "writer", "teacher.engine_version", "data.name", "data.revision", "data.split"}
)
# A teacher whose weights have no digest (a callable) has nothing but these.
_NAMES_OF_WEIGHTS = frozenset({"teacher.name", "teacher.revision"})
_SHOWN_DIFFERENCES = 6
# What plan.json leaves out where it says nothing new.
_ABSENT = {
    "packing": False,
    "teacher.vocabulary": None,
    "data.label": None,
    "preparation.positions": None,
    "class_names": None,
    "views": None,
}


class SelectionPlan(BaseModel):
    """Which entries are kept, and the algorithm that settles ties.

    Attributes:
        k: entries at a position, at most.
        settings: what the selection has beside k.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    k: int
    algorithm: str
    settings: dict[str, float | int | None] = {}

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        if not self.settings:
            made.pop("settings", None)
        return made

    @classmethod
    def of(cls, selection: Selection) -> Self:
        """What a plan says of a selection."""
        return cls(
            name=selection.name,
            k=selection.k,
            algorithm=selection.algorithm,
            settings=selection.settings,
        )

    def make(self) -> Selection:
        """The selection that the plan names."""
        return selections.from_plan(self.name, self.k, self.settings)

    def words(self, classes: int) -> str:
        """What is kept, for people; also of a selection that this version does not know."""
        try:
            return self.make().words(classes)
        except UnsupportedFormatError:
            return f"{self.k} of {classes:,} classes, by {quoted(self.name)}"


class Plan(BaseModel):
    """The whole recipe of a label set.

    Attributes:
        format: version of docs/FORMAT.md.
        kind: what the labels are: "categorical", distributions over classes; "binary", of classes
            that are independent of each other; "embedding", vectors.
        requires: features without which a reader would misread the set.
        writer: the library and version that wrote it; not part of what must match.
        hard_label_alignment: "next" where entry t is the distribution over token t + 1.
        unit_rows: source rows in a work unit, which makes one shard.
        batch_tokens: padded tokens in a batch, at most; with the unit it determines the batches.
        packing: whether a row of a batch holds several records, which do not see each other.
        class_names: of the V classes in order; None of tokens, or where they have none.
        views: the augmented versions of each sample; None where there is the sample alone.
        probes: positions whose dense logits are kept, in the whole set.
        derived_from: the sets that this one came from without a teacher, the first one first.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: str = FORMAT
    kind: Kind = "categorical"
    requires: tuple[str, ...] = ()
    writer: str
    teacher: TeacherIdentity
    tokenizer: TokenizerIdentity | None
    data: DataIdentity
    preparation: Preparation
    selection: SelectionPlan
    codec: dict[str, Any]
    temperatures: tuple[float, ...]
    hard_label_alignment: Literal["next", "same"] = "next"
    store_inputs: bool = True
    unit_rows: int = Field(ge=1)
    batch_tokens: int = Field(ge=1)
    packing: bool = False
    class_names: tuple[str, ...] | None = None
    views: ViewsIdentity | None = None
    probes: int = Field(default=0, ge=0)
    derived_from: tuple[Origin, ...] = ()

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        for name, value in (("packing", False), ("class_names", None), ("views", None)):
            if made.get(name) == value:
                made.pop(name, None)
        return made

    def to_bytes(self) -> bytes:
        """plan.json, byte for byte: keys in the order of the fields, indented by two."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @property
    def single(self) -> bool:
        """Whether a record is an array with one label, which has no axis of positions."""
        return self.preparation.positions == "first"

    @property
    def split(self) -> str:
        """The split in shard names: letters and digits of the data's own, "train" without one."""
        found = re.match(r"\w+", self.data.split or "", re.ASCII)
        return found[0] if found else "train"

    def make_codec(self) -> codecs.Codec:
        """The codec that the plan names."""
        return codecs.from_json(self.codec)


def digest(plan_bytes: bytes) -> str:
    """sha256 (hex) of plan.json as it lies on disk; it stands in every shard's footer."""
    return hashlib.sha256(plan_bytes).hexdigest()


def parse(data: bytes, *, where: str) -> Plan:
    """Validate plan.json.

    Raises:
        UnsupportedFormatError: not a plan, another format version, or a feature unknown here.
    """
    try:
        raw = json.loads(data)
        version = raw.get("format") if isinstance(raw, dict) else None
        if version not in READ:
            raise UnsupportedFormatError(
                f"{where}: format {quoted(version)}; this version reads {' and '.join(READ)}: "
                "upgrade softlabels"
            )
        required = raw.get("requires") or []
        if not isinstance(required, list):
            raise UnsupportedFormatError(f"{where}: requires: this is not a list of features")
        unknown = sorted(set(map(str, required)) - KNOWN_FEATURES)
        if unknown:
            raise UnsupportedFormatError(
                f"{where}: the set requires {', '.join(map(quoted, unknown))}, which this version "
                "does not know; reading without it would be wrong: upgrade softlabels"
            )
        return Plan.model_validate(raw)
    except ValidationError as error:
        raise UnsupportedFormatError(f"{where}: {first_problem(error)}") from None
    except UnsupportedFormatError:
        raise
    # Not JSON, not UTF-8, or a number of more digits than Python reads.
    except (ValueError, RecursionError) as error:
        raise UnsupportedFormatError(f"{where}: this is not JSON: {error}") from None


def with_codec(
    plan: Plan, name: str | None, earlier: Plan | None, pilot: Callable[[], Labels]
) -> Plan:
    """The plan with its codec: that of an earlier run, which was made for its data, or a new one.

    Args:
        name: None for the earlier one, or the default.
        pilot: labels a sample of the data; not asked where there is an earlier plan.
    """
    if earlier is not None:
        # Another name is refused when the plans are compared.
        same = name is None or codecs.is_same(name, earlier.codec)
        return plan.model_copy(update={"codec": earlier.codec if same else {"name": name}})
    selection = plan.selection.make()
    needs = codecs.Needs(
        kind=plan.kind,
        classes=plan.teacher.classes,
        k=selection.k,
        temperatures=plan.temperatures,
        logits_known=plan.teacher.logits_known,
        sampled=selection.sampled,
        draws=getattr(selection, "draws", None),
    )
    chosen = name or codecs.default(sampled=selection.sampled, kind=plan.kind)
    made = codecs.resolve(chosen, needs, pilot=pilot)
    return plan.model_copy(update={"codec": made.to_json()})


def first_problem(error: ValidationError) -> str:
    """The field that is wrong and why; its name comes from the file, so it is escaped."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = quoted(".".join(map(str, first["loc"])))[1:-1]
    return f"{field}: {first['msg']}" if field else first["msg"]


def check_same(found: Plan, wanted: Plan, *, where: str) -> None:
    """Refuse to go on with a set that was begun in another way.

    Raises:
        PlanMismatchError: naming the fields that differ, with both values.
    """
    changes = differences(found, wanted)
    if "codec.name" in changes:
        # The settings of two codecs have nothing to do with each other.
        changes = {n: c for n, c in changes.items() if n == "codec.name" or n[:6] != "codec."}
    if changes:
        lines = "; ".join(
            f"{name} was {_shown(before)}, is now {_shown(now)}"
            for name, (before, now) in list(changes.items())[:_SHOWN_DIFFERENCES]
        )
        if len(changes) > _SHOWN_DIFFERENCES:
            lines += f"; and {len(changes) - _SHOWN_DIFFERENCES} more"
        raise PlanMismatchError(
            f"{where} was begun with another recipe: {lines}. Labels of two recipes do not mix: "
            "use the first recipe to finish it, or choose another folder"
        )


def differences(found: Plan, wanted: Plan) -> dict[str, tuple[Any, Any]]:
    """Fields that matter in which two plans differ, by name: the value of each plan."""
    same = _NOT_COMPARED if found.teacher.weights is None else _NOT_COMPARED | _NAMES_OF_WEIGHTS
    theirs, ours = (_ABSENT | _leaves(plan.model_dump(mode="json")) for plan in (found, wanted))
    return {
        name: (theirs.get(name), ours.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and name not in same
    }


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else json.dumps(value)

"""plan.json: what is to be labelled, by whom and how; written first, never changed."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softlabels import codecs
from softlabels.errors import PlanMismatchError, UnsupportedFormatError, quoted
from softlabels.inputs.prepare import Preparation
from softlabels.inputs.sources import DataIdentity
from softlabels.inputs.tokenizer import TokenizerIdentity
from softlabels.teachers.identity import TeacherIdentity

FORMAT = "1.0-draft"
KNOWN_FEATURES: frozenset[str] = frozenset()

# Names for people: the digests beside them decide what is the same.
_NOT_COMPARED = (
    "writer",
    "teacher.name",
    "teacher.revision",
    "teacher.engine_version",
    "data.name",
    "data.revision",
    "data.split",
)


class SelectionPlan(BaseModel):
    """Which entries are kept, and the algorithm that settles ties."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    k: int
    algorithm: str


class Plan(BaseModel):
    """The whole recipe of a label set.

    Attributes:
        format: version of docs/FORMAT.md.
        kind: what the labels are.
        requires: features without which a reader would misread the set.
        writer: the library and version that wrote it; not part of what must match.
        hard_label_alignment: "next" where entry t is the distribution over token t + 1.
        unit_rows: source rows in a work unit, which makes one shard.
        batch_tokens: padded tokens in a batch, at most; with the unit it determines the batches.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: str = FORMAT
    kind: Literal["categorical"] = "categorical"
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

    def to_bytes(self) -> bytes:
        """plan.json, byte for byte: keys in the order of the fields, indented by two."""
        return (self.model_dump_json(indent=2) + "\n").encode()

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
        if version != FORMAT:
            raise UnsupportedFormatError(
                f"{where}: format {quoted(version)}; this version reads {FORMAT}: "
                "upgrade softlabels"
            )
        unknown = sorted(set(raw.get("requires") or ()) - KNOWN_FEATURES)
        if unknown:
            raise UnsupportedFormatError(
                f"{where}: the set requires {', '.join(map(quoted, unknown))}, which this version "
                "does not know; reading without it would be wrong: upgrade softlabels"
            )
        return Plan.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnsupportedFormatError(f"{where}: this is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UnsupportedFormatError(f"{where}: {field}: {first['msg']}") from None


def check_same(found: Plan, wanted: Plan, *, where: str) -> None:
    """Refuse to go on with a set that was begun in another way.

    Raises:
        PlanMismatchError: naming every field that differs, with both values.
    """
    ours, theirs = _leaves(wanted.model_dump(mode="json")), _leaves(found.model_dump(mode="json"))
    differing = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and not name.startswith(_NOT_COMPARED)
    ]
    if differing:
        lines = "; ".join(
            f"{name} was {_shown(theirs.get(name))}, is now {_shown(ours.get(name))}"
            for name in differing[:6]
        )
        raise PlanMismatchError(
            f"{where} was begun with another recipe: {lines}. Labels of two recipes do not mix: "
            "use the first recipe to finish it, or choose another folder"
        )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else json.dumps(value)

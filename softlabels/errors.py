"""What a user may catch.

    SoftLabelsError
    ├── InputError(ValueError)         the data, an argument or a path is not usable
    │   ├── DuplicateKeyError          two samples share a key
    │   ├── KindError                  asked of labels of another kind
    │   └── LabellingError             a sample is empty, its logits NaN, or the teacher raised
    ├── TeacherError(ValueError)       the teacher is not usable
    ├── PlanMismatchError(ValueError)  begun with another teacher, data or setting
    ├── LabelSetError(ValueError)      the directory is not a label set, or not a finished one
    │   ├── UnsupportedFormatError     of a version, or with a feature, unknown here
    │   ├── CorruptShardError          a file is missing, cut short or not what was written
    │   └── RemoteError                a remote set cannot be reached, or its cache not be written
    │       └── MissingError           the server has no such file
    ├── JoinError(KeyError)            labels and data do not belong together
    ├── VocabularyMismatchError(ValueError)  not the teacher's tokenizer or classes
    └── MissingTailError(ValueError)   no tail mass was stored for this temperature

Every message says where, what was found, what was expected and what to do.
"""

from __future__ import annotations

import json


class SoftLabelsError(Exception):
    """Root of every error that softlabels raises on purpose."""

    def __str__(self) -> str:
        # KeyError would print the repr of its argument, quotes and escapes included.
        return str(self.args[0]) if self.args else ""


class InputError(SoftLabelsError, ValueError):
    """The data, an argument or a path is not usable."""


class KindError(InputError):
    """Something that one kind of label has was asked of another kind."""


class DuplicateKeyError(InputError):
    """Two samples share a key, so labels could be joined to the wrong one."""


class LabellingError(InputError):
    """A sample cannot be labelled: it is empty, its logits are NaN, or the teacher raised."""


class TeacherError(SoftLabelsError, ValueError):
    """The teacher is not usable: not found, without identity, or without an extra it needs."""


class PlanMismatchError(SoftLabelsError, ValueError):
    """The directory was begun with another teacher, data or setting."""


class LabelSetError(SoftLabelsError, ValueError):
    """The directory is not a label set, or not a finished one."""


class UnsupportedFormatError(LabelSetError):
    """The label set has a format version or a required feature that this version does not know."""


class CorruptShardError(LabelSetError):
    """A file of the label set is missing, cut short, or not what was written."""


class RemoteError(LabelSetError):
    """A remote label set cannot be reached, or the cache cannot take its bytes."""


class MissingError(RemoteError):
    """The server has no such file."""


class JoinError(SoftLabelsError, KeyError):
    """Labels and data do not belong together: a key is missing, or its row has changed."""


class VocabularyMismatchError(SoftLabelsError, ValueError):
    """The student's tokenizer or class list differs from the teacher's."""


class MissingTailError(SoftLabelsError, ValueError):
    """The log tail mass at the temperature asked for was not stored."""


def quoted(text: object, *, limit: int = 80) -> str:
    """Text from a label set or a user's data, safe in a terminal, a log or an exception.

    Control characters are escaped and long values are cut: data must not be able to move the
    cursor or hide a line.
    """
    shown = json.dumps(str(text), ensure_ascii=False)
    shown = "".join(c if c.isprintable() else _escape(c) for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"

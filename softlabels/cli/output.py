"""What commands leave for programs and browsers: strict JSON, and pages."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from softlabels.errors import InputError, quoted


def finite(value: Any) -> Any:
    """For JSON, which has no infinities: "-Infinity" as text, which `float` and `Number` read.

    NaN, which is what is not known, becomes null.
    """
    match value:
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case float() if math.isnan(value):
            return None
        case dict():
            return {name: finite(inner) for name, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
    return value


def print_json(value: Any) -> None:
    """One line of strict JSON."""
    print(json.dumps(finite(value), allow_nan=False))


def check_file(flag: str, path: Path) -> None:
    """Fail before the work, not after.

    Raises:
        InputError: no file can be written there.
    """
    folder = path.absolute().parent
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {quoted(path.parent)}"
    elif path.exists():
        reason = "" if os.access(path, os.W_OK) else "the file is there and is not writable"
    else:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = f"nothing can be written to {quoted(path.parent)} ({error.strerror})"
    if reason:
        raise InputError(
            f"{flag} {quoted(path)}: {reason}; name a file in a folder that is there and can be "
            "written to"
        )


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all, in place of one that is there."""
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        # `mkstemp` makes files that nobody else may read.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

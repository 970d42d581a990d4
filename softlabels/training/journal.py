"""What a run tells: metrics, the same however often it was killed, and times apart from them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from softlabels.errors import InputError

METRICS, TIMES = "metrics.jsonl", "times.jsonl"


class Journal:
    """Two files of JSON lines that a run appends to.

    metrics.jsonl holds what depends on the recipe and the data alone, times.jsonl seconds. What
    was written after the checkpoint that a run goes on from is cut off.

    Args:
        folder: theirs.
        lengths: bytes of each that stay, by name.

    Raises:
        InputError: a file is shorter than it was at the checkpoint.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int]) -> None:
        for name, length in lengths.items():
            _check_length(folder / name, length)
        self._files = {name: _cut(folder / name, lengths.get(name, 0)) for name in (METRICS, TIMES)}

    def metrics(self, kind: str, **fields: Any) -> None:
        """A line of metrics.jsonl; numbers that are not finite are null."""
        self._write(METRICS, {"kind": kind, **fields})

    def times(self, **fields: Any) -> None:
        """A line of times.jsonl."""
        self._write(TIMES, fields)

    def sync(self) -> dict[str, int]:
        """Put all lines on the disk; how long each file is now."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _write(self, name: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps({key: _strict(value) for key, value in fields.items()}, allow_nan=False)
        self._files[name].write(line.encode() + b"\n")
        self._files[name].flush()


def read(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a file, those of one kind where it is given.

    A last line that a running job has not written to its end is left out.
    """
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            fields: dict[str, Any] = json.loads(line)
            if kind is None or fields.get("kind") == kind:
                yield fields


def _check_length(path: Path, length: int) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if found < length:
        raise InputError(
            f"{path} has {found} bytes, at the last checkpoint it had {length}: it was changed. "
            "Put it back, or train into another folder"
        )


def _cut(path: Path, length: int) -> IO[bytes]:
    file = path.open("ab")
    file.truncate(length)
    file.seek(length)
    return file


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

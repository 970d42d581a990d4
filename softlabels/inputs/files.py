"""Files that samples are read from: Parquet, JSONL, text, WebDataset, by path, folder or glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from softlabels.errors import InputError, quoted
from softlabels.inputs.in_place import FileRows, JsonLines, ParquetRows
from softlabels.inputs.rows import not_empty

_READERS = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".jsonl.zst": ("json", {}),
    ".jsonl.gz": ("json", {}),
    ".txt": ("text", {"sample_by": "paragraph"}),
    ".md": ("text", {"sample_by": "paragraph"}),
    ".tar": ("webdataset", {}),
}


_IN_PLACE: dict[str, Callable[[list[str], Sequence[str]], FileRows]] = {
    ".parquet": lambda files, _: ParquetRows(files),
    ".jsonl": JsonLines,
}


def open_in_place(path: str, columns: Sequence[str] = ()) -> FileRows | None:
    """The rows of files that can be read where they lie; None where `open_files` has to unpack.

    Args:
        columns: those that must have a type; of others it may be unknown.

    Raises:
        InputError: as `open_files`.
    """
    files, suffix = _find(path)
    if suffix not in _IN_PLACE:
        return None
    files = [os.path.abspath(file) for file in _with_bytes(files)]
    not_empty(len(files))
    rows = _IN_PLACE[suffix](files, columns)
    not_empty(len(rows))
    return rows


def name_of(path: str) -> str:
    """What the plan calls the files at `path`, never a full path."""
    return Path(os.path.abspath(path)).name


def open_files(path: str) -> Any:
    """A Dataset of the files at `path`: all of them, unpacked into a cache that is fast anywhere.

    Raises:
        InputError: there are none, or they are not of one kind that is read, or broken.
    """
    files, suffix = _find(path)
    import datasets

    builder, options = _READERS[suffix]
    # datasets, too, takes a file's name for a pattern; a file without bytes breaks its readers.
    files = [glob.escape(file) for file in _with_bytes(files)]
    not_empty(len(files))
    try:
        return datasets.load_dataset(builder, data_files=files, split="train", **options)
    except StopIteration:
        return not_empty(0)  # compressed nothing
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        reason = quoted(error.__cause__ or error, limit=300)[1:-1]
        shown = quoted(path, limit=4096)
        raise InputError(f"--data {shown} cannot be read: {reason}") from error


def _with_bytes(files: list[str]) -> list[str]:
    try:
        return [file for file in files if Path(file).stat().st_size]
    except OSError as error:  # a link to nothing
        raise InputError(f"--data: {quoted(error, limit=4096)[1:-1]}") from None


def _find(path: str) -> tuple[list[str], str]:
    """The files at a path, folder or glob, in order, and their kind."""
    found, shown = Path(path), quoted(path, limit=4096)
    files = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    if os.path.isdir(path):
        files = sorted(str(f) for f in found.rglob("*") if _suffix(str(f)) and not f.is_dir())
    suffixes = {_suffix(file) for file in files}
    if not files or None in suffixes:
        wanted = ", ".join(_READERS)
        raise InputError(
            f"--data {shown}: "
            + ("no such file or folder" if not files else "this is not a kind of file we read")
            + f"; expected a path, folder or glob of {wanted} files"
        )
    if len(suffixes) > 1:
        kinds = ", ".join(sorted(map(str, suffixes)))
        raise InputError(f"--data {shown}: files of several kinds ({kinds}); name one glob")
    return files, str(suffixes.pop())


def _suffix(file: str) -> str | None:
    return next((suffix for suffix in _READERS if file.lower().endswith(suffix)), None)

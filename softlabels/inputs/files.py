"""Files that samples are read from: Parquet, JSONL, text, WebDataset, by path, folder or glob."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from softlabels.errors import InputError, quoted
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


def open_files(path: str) -> tuple[str, Any]:
    """A Dataset of the files at `path`, and the name that the plan gives it (never a full path)."""
    found, shown = Path(path), quoted(path, limit=4096)
    files = [path] if found.exists() else sorted(glob.glob(path, recursive=True))
    if found.is_dir():
        files = sorted(str(f) for f in found.rglob("*") if _suffix(str(f)))
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
    import datasets

    builder, options = _READERS[str(suffixes.pop())]
    # datasets, too, takes a file's name for a pattern; a file without bytes breaks its readers.
    files = [glob.escape(file) for file in files if Path(file).stat().st_size]
    not_empty(len(files))
    try:
        data = datasets.load_dataset(builder, data_files=files, split="train", **options)
    except StopIteration:
        not_empty(0)  # compressed nothing
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        reason = quoted(error.__cause__ or error, limit=300)[1:-1]
        raise InputError(f"--data {shown} cannot be read: {reason}") from error
    return Path(os.path.abspath(path)).name, data


def _suffix(file: str) -> str | None:
    return next((suffix for suffix in _READERS if file.lower().endswith(suffix)), None)

"""The fields of `softlabels import`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Layout = Literal["distillkit", "lists", "axolotl", "numpy"]
LayoutName = Annotated[
    Layout,
    Parameter(
        help="distillkit: its compressed Parquet; lists: Parquet with lists of ids and values; "
        "axolotl: its columns; numpy: .npy files or an .npz."
    ),
]


def _help(text: str) -> Parameter:
    return Parameter(help=text)


@dataclass(frozen=True)
class ImportArguments:
    """What `softlabels import` takes; `softlabels.sharing.imports.import_set` says more."""

    layout: LayoutName
    source: Annotated[Path, _help("A file, or a folder of files.")]
    out: Annotated[Path, _help("The label set's folder: new, empty, or one to go on with.")]
    _: KW_ONLY
    teacher: Annotated[str, _help("Name of the model that made the labels.")] = "unknown"
    classes: Annotated[
        int | None, _help("Classes of the teacher, where the layout does not say it.")
    ] = None
    tokenizer: Annotated[
        str | None, _help("The teacher's tokenizer, a name or folder; saved with the set.")
    ] = None
    shift: Annotated[
        int | None,
        _help("Move labels by positions: -1, 0 or 1. By default labels one off are refused."),
    ] = None
    k: Annotated[
        int | None, _help("Keep the likeliest so many; as many as there are by default.")
    ] = None
    codec: Annotated[Literal["compact", "plain"] | None, _help("As of softlabels precompute.")] = (
        None
    )
    rescale: Annotated[
        bool, Parameter(negative="", help="Scale probabilities that sum above 1, however far.")
    ] = False
    on_error: Annotated[
        Literal["raise", "skip"], _help("Samples that cannot be used: stop, or note and go on.")
    ] = "raise"
    key: Annotated[str | None, _help("Column, or array, of keys; row numbers by default.")] = None
    part: Annotated[
        str | None,
        _help(
            "Column, or array, that numbers the windows of a key from 0; by default the one called "
            "part, where there is one of whole numbers."
        ),
    ] = None
    tokens: Annotated[str, _help("Of lists: the column of token ids.")] = "input_ids"
    ids: Annotated[str, _help("Of lists: the column of class ids.")] = "token_ids"
    values: Annotated[str, _help("Of lists: the column of log-probs.")] = "top_values"
    settings: Annotated[
        Path | None, _help("Of distillkit: its config, where it is not beside the files.")
    ] = None
    json: Annotated[bool, Parameter(negative="", help="Print JSON for programs.")] = False

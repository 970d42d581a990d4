"""A few hundred positions of a set in plain columns: what a page on the Hub can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from softlabels.errors import LabelSetError, quoted
from softlabels.format.plan import Plan
from softlabels.format.records import Records
from softlabels.labelset.reader import LabelSet

PREVIEW = "preview.parquet"
# Of records from one end of the set to the other, the first positions of each.
_RECORDS, _POSITIONS = 12, 25
_TOP = 5
_CONTEXT_TOKENS, _CONTEXT_LETTERS = 32, 80

Decode = Callable[[Sequence[int]], str]

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.int32()),
        ("position", pa.int32()),
        ("text", pa.string()),
        ("token", pa.string()),
        ("next_token", pa.string()),
        ("next_prob", pa.float32()),
        *(
            column
            for place in range(1, _TOP + 1)
            for column in ((f"top_{place}", pa.string()), (f"prob_{place}", pa.float32()))
        ),
        ("rest_prob", pa.float32()),
    ]
)


def write_preview(labels: LabelSet, file: Path) -> int:
    """Write the preview of a set; the same bytes for the same set.

    Columns: `text` up to and with `token`, where the set stores token ids; `next_token`, which
    came next, and its probability; the likeliest classes and theirs (of sampled labels, weights);
    `rest_prob`, the mass of the classes not kept at T = 1. Null is not known. Of labels of other
    kinds there are no rows.

    Returns:
        how many rows it has.

    Raises:
        LabelSetError: its tokenizer cannot be read.
    """
    rows: list[dict[str, Any]] = []
    if len(labels) and labels.plan.kind == "categorical":
        decode = decoder(labels)
        numbers = spread(len(labels), _RECORDS)
        records = labels.take(numbers)
        for row in range(len(records)):
            rows += _rows(records.slice(row, row + 1), labels.plan, decode)
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return len(rows)


def spread(records: int, count: int) -> NDArray[np.int64]:
    """Numbers of so many records from the first to the last one, ascending; never one twice."""
    return np.unique(np.linspace(0, records - 1, min(count, records)).round().astype(np.int64))


def decoder(labels: LabelSet) -> Decode:
    """Ids to text, where the set carries a tokenizer; else to their numbers.

    Raises:
        LabelSetError: it cannot be read.
    """
    folder = labels.tokenizer_folder()
    file = None if folder is None else folder / "tokenizer.json"
    if file is None or not file.is_file():
        return lambda ids: " ".join(map(str, ids))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise LabelSetError(f"{file} cannot be read ({quoted(error)})") from None

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    return decode


def _rows(record: Records, plan: Plan, decode: Decode) -> Iterator[dict[str, Any]]:
    """Rows of one record."""
    labels = record.soft.sorted()
    places = np.flatnonzero(record.wanted)[:_POSITIONS].tolist()
    tokens = None if record.token_ids is None else record.token_ids.tolist()
    following = _following(record, plan)
    tails = None
    if labels.log_tails is not None and 1.0 in labels.temperatures:
        tails = labels.log_tail(1.0).exp().tolist()
    hard = None if labels.hard_log_probs is None else labels.hard_log_probs.exp().tolist()
    named = _namer(plan, decode)
    (identity,) = record.identity.select(["key", "part"]).to_pylist()
    for row, position in enumerate(places):
        made = {"key": str(identity["key"]), "part": identity["part"], "position": position}
        if tokens is not None:
            seen = tokens[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1]
            made |= {"text": decode(seen)[-_CONTEXT_LETTERS:], "token": decode(seen[-1:])}
        if following is not None and following[position] >= 0:
            made["next_token"] = named([following[position]])
        if hard is not None and hard[row] == hard[row]:
            made["next_prob"] = hard[row]
        if tails is not None:
            made["rest_prob"] = tails[row]
        for place in range(min(_TOP, labels.k)):
            if labels.log_probs[row, place] > -torch.inf:
                made[f"top_{place + 1}"] = named([int(labels.ids[row, place])])
                made[f"prob_{place + 1}"] = float(labels.log_probs[row, place].exp())
        yield made


def _namer(plan: Plan, decode: Decode) -> Decode:
    """Class ids to text: tokens, names, or numbers where they have none."""
    names = plan.class_names
    if names is not None:
        return lambda ids: " ".join(names[index] for index in ids)
    tokens = plan.teacher.vocabulary is None and plan.preparation.kind != "array"
    return decode if tokens else (lambda ids: " ".join(map(str, ids)))


def _following(record: Records, plan: Plan) -> list[int] | None:
    """The token that each position of a record speaks of, −1 where it was not seen."""
    if record.token_ids is None or record.next_ids is None or plan.teacher.vocabulary is not None:
        return None
    tokens: list[int] = record.token_ids.tolist()
    if plan.hard_label_alignment == "same":
        return tokens
    return [*tokens[1:], int(record.next_ids[0])]

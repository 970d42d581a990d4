"""Labels that are none: NaN, infinities, classes outside of V, one class twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import FIRST, refusals, reseal, rewrite, with_column

import softlabels as sl
from softlabels.errors import CorruptShardError
from softlabels.looking.audit import audit
from softlabels.looking.difference import difference
from softlabels.looking.record import Window, shown
from softlabels.verifying.verify import verify

CHANGES: dict[str, tuple[str, Any]] = {
    "nan": ("log_probs", float("nan")),
    "infinity": ("log_probs", float("inf")),
    "above 0": ("log_probs", 5.0),
    "no class": ("ids", 60_000),
}


def forge(root: Path, column: str, value: Any) -> None:
    def change(table: Any) -> Any:
        lists = table[column].to_pylist()
        return with_column(table, column, [[value, *values[1:]] for values in lists])

    rewrite(root / FIRST, change)
    reseal(root)


@pytest.mark.parametrize("what", CHANGES)
def test_they_are_found_by_verify(tiny: Path, what: str) -> None:
    forge(tiny, *CHANGES[what])
    assert {finding.file for finding in verify(tiny).findings} == {FIRST}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize(
    "look",
    [audit, lambda labels: difference(labels, labels), lambda labels: shown(labels, 0, Window())],
    ids=["audit", "diff", "show"],
)
def test_nobody_looks_at_them_as_if_they_were_labels(
    tiny: Path, what: str, look: Callable[[sl.LabelSet], object]
) -> None:
    forge(tiny, *CHANGES[what])
    with pytest.raises(CorruptShardError, match=r"class id 60000|log-prob is"):
        look(sl.LabelSet.open(tiny))


def test_token_ids_outside_of_the_vocabulary_do_not_have_their_digest(tiny: Path) -> None:
    forge(tiny, "input_ids", 60_000)
    assert any("do not have their digest" in words for words in refusals(tiny))


def test_rejects_that_are_none_are_named(tiny: Path) -> None:
    import pyarrow.parquet as pq

    path = tiny / FIRST
    table = pq.read_table(path)
    metadata = {**(pq.read_metadata(path).metadata or {}), b"softlabels.rejects": b"[1, 2]"}
    metadata.pop(b"ARROW:schema", None)
    path.unlink()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    reseal(tiny, rejects=2)
    with pytest.raises(CorruptShardError, match="holds no rejects"):
        audit(sl.LabelSet.open(tiny))

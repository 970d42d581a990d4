"""The records that surprise most and the labels that are likely wrong, by an exhaustive search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.looking import blocks
from softlabels.looking.audit import audit


def test_misprints_are_the_suspects(
    counted: sl.LabelSet, counting_rows: list[dict[str, Any]]
) -> None:
    found = audit(counted).suspects
    assert len(found) == 16
    ids = {row["id"]: row["ids"] for row in counting_rows}
    for suspect in found:
        tokens = ids[suspect.key]
        here, following = tokens[suspect.position], tokens[suspect.position + 1]
        assert (suspect.hard, suspect.before[-1]) == (following, here)
        assert following != (here + 1) % 16
        assert suspect.guesses[0][0] == (here + 1) % 16
        y = counted.get(suspect.key)
        assert y.hard_log_probs is not None
        assert suspect.hard_prob == pytest.approx(math.exp(y.hard_log_probs[suspect.position]))
    margins = [suspect.guesses[0][1] - suspect.hard_prob for suspect in found]
    assert margins == sorted(margins, reverse=True)


def test_the_most_surprising_records_come_in_order_with_the_surprise_of_each_token(
    counted: sl.LabelSet,
) -> None:
    found = audit(counted).surprising
    expected = []
    for number in range(len(counted)):
        hard = counted[number].hard_log_probs
        assert hard is not None
        expected.append(-float(hard[~hard.isnan()].double().mean()))
    assert [one.surprise for one in found] == pytest.approx(sorted(expected, reverse=True))
    y = counted.get(found[0].key)
    assert y.hard_log_probs is not None
    assert found[0].surprises[0] is None
    assert found[0].surprises[1:] == pytest.approx((-y.hard_log_probs[:-1]).tolist())
    assert len(found[0].tokens) == len(found[0].surprises) == 24


def test_what_is_found_does_not_depend_on_how_many_records_are_read_at_a_time(
    counted: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = audit(counted).to_json()
    monkeypatch.setattr(blocks, "_BLOCK_RECORDS", 1)
    apart = audit(counted).to_json()
    assert apart["suspects"] == together["suspects"]
    assert apart["surprising"] == together["surprising"]
    for name in ("entropy", "hard_log_probs", "log10_tail_mass"):
        counts = [each["distributions"][name]["counts"] for each in (apart, together)]
        assert counts[0] == counts[1]


def test_a_sample_is_of_whole_records_seeded_and_named(counted: sl.LabelSet) -> None:
    few = audit(counted, positions=60, seed=1)
    assert (few.whole, few.records, few.positions) == (False, 2, 48)
    assert few.to_json() == audit(counted, positions=60, seed=1).to_json()
    chosen = {
        tuple(blocks.sample(counted, positions=60, seed=seed).numbers.tolist()) for seed in range(9)
    }
    assert len(chosen) > 3
    assert audit(counted, positions=192).whole


def test_bytes_of_columns_and_footers_are_those_of_the_files(counted: sl.LabelSet) -> None:
    found = audit(counted).column_bytes
    files = sum(path.stat().st_size for path in (Path(counted.root) / "data").iterdir())
    assert sum(found.values()) == files
    assert {"ids", "log_probs", "key", "footers"} <= found.keys()
    assert min(found.values()) > 0

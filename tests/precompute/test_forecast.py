"""plan: a sample says what the whole takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError
from softlabels.precompute.forecast import Estimate, _total

SETTINGS: dict[str, Any] = {"key": "id", "max_length": 64, "unit_rows": 16, "batch_tokens": 512}


@pytest.fixture(scope="module")
def many(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"doc-{i:03d}", "text": texts[i % len(texts)]} for i in range(240)]


@pytest.mark.parametrize("codec", ["compact", "lossless", "plain"])
def test_bytes_of_the_whole_are_forecast_within_a_tenth(
    tmp_path: Path, teacher_dir: Path, many: list[dict[str, Any]], codec: str
) -> None:
    settings = SETTINGS | {"selection": sl.TopK(16), "codec": codec}
    found = sl.plan(many, teacher_dir, sample=120, progress=False, **settings)
    totals = sl.precompute(many, teacher_dir, tmp_path / "out", progress=False, **settings).totals
    assert (found.chosen.codec, found.chosen.k) == (codec, 16)
    assert abs(found.chosen.bytes.mean / totals.bytes - 1) < 0.1
    assert found.positions.low <= totals.positions <= found.positions.high
    assert (found.rows, found.sample_rows, found.sample_rejects) == (240, 120, 0)


def test_a_sample_of_everything_knows_everything(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]]
) -> None:
    settings = SETTINGS | {"selection": sl.TopK(16)}
    found = sl.plan(rows, teacher_dir, progress=False, **settings)
    labels = sl.precompute(rows, teacher_dir, tmp_path / "out", progress=False, **settings)
    totals = labels.totals
    exactly = float(totals.positions)
    assert found.positions == Estimate(low=exactly, mean=exactly, high=exactly)
    assert found.tokens.mean == found.sample_tokens
    assert abs(found.chosen.bytes.mean / totals.bytes - 1) < 0.02
    stored = [labels[i] for i in range(len(labels))]
    mass = torch.cat([part.log_probs.exp().sum(-1)[part.mask] for part in stored]).mean()
    assert abs(found.chosen.mass_kept - float(mass)) < 1e-3
    hard = torch.cat([part.hard_log_probs[part.mask] for part in stored])
    perplexity = float(torch.exp(-hard[~hard.isnan()].mean()))
    assert found.perplexity == pytest.approx(perplexity, rel=1e-3)


def test_choices_are_ordered_and_exact_codecs_add_nothing(
    teacher_dir: Path, rows: list[dict[str, Any]]
) -> None:
    found = sl.plan(rows, teacher_dir, sample=20, progress=False, selection=sl.TopK(20), **SETTINGS)
    assert {choice.k for choice in found.choices} == {8, 16, 20, 32, 64, 128, 256}
    for codec in ("compact", "lossless", "plain"):
        choices = [choice for choice in found.choices if choice.codec == codec]
        for name in ("k", "mass_kept", "bytes_per_position"):
            values = [getattr(choice, name) for choice in choices]
            assert values == sorted(values), (codec, name)
        for choice in choices:
            assert (abs(choice.added_kl) < 1e-6) == (codec != "compact")
            assert choice.added_kl < 4e-4
    assert sum(found.shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in found.shares.values())
    assert found.tokens_per_s > 0
    assert any("k = 20" in advice for advice in found.advice)


def test_the_same_seed_takes_the_same_rows(teacher_dir: Path, many: list[dict[str, Any]]) -> None:
    def tokens(seed: int) -> int:
        options = SETTINGS | {"selection": sl.TopK(8)}
        return sl.plan(
            many, teacher_dir, sample=8, seed=seed, progress=False, **options
        ).sample_tokens

    assert tokens(0) == tokens(0)
    assert len({tokens(seed) for seed in range(3)}) > 1


def test_the_interval_holds_the_total_19_times_of_20() -> None:
    random = np.random.default_rng(0)
    population = random.gamma(2.0, 100.0, 2000)
    held = 0
    for _ in range(400):
        found = _total(random.choice(population, 100, replace=False), 2000)
        held += found.low <= population.sum() <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_rejects_are_counted_and_said(precompute: Any) -> None:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.randn(*ids.shape, 16), name="noise", version="1", classes=16
    )
    rows = [{"id": "a", "ids": [1, 2]}, {"id": "b", "ids": []}, {"id": "c", "ids": [3]}]
    found = sl.plan(rows, teacher, column="ids", key="id", progress=False)
    assert found.sample_rejects == 1
    assert any("1 of 3 rows could not be labelled" in advice for advice in found.advice)
    with pytest.raises(
        InputError, match=r"none of the 1 rows .* the first: token id 20 is outside"
    ):
        sl.plan([{"id": "a", "ids": [20]}], teacher, column="ids", key="id", progress=False)


def test_a_stream_and_a_sample_of_nothing_are_refused(teacher_dir: Path) -> None:
    with pytest.raises(InputError, match="stream"):
        sl.plan(iter([{"text": "a"}]), teacher_dir, max_length=64, progress=False)
    with pytest.raises(InputError, match="at least 1"):
        sl.plan([{"text": "a"}], teacher_dir, sample=0, progress=False)

"""plan: a sample says what the whole takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tables import TableTeacher

import softlabels as sl
from softlabels.cli.forecast import show_forecast
from softlabels.errors import InputError
from softlabels.precomputing.advice import Choice, Estimate, advice
from softlabels.precomputing.forecast import _total

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


def short(classes: int) -> list[dict[str, Any]]:
    """Forty samples of 4 to 12 token ids."""
    random = np.random.default_rng(0)
    sizes = random.integers(4, 13, 40)
    return [{"id": i, "ids": random.integers(0, classes, n)} for i, n in enumerate(sizes)]


@pytest.mark.parametrize("sample", [40, 20])
def test_bytes_of_probes_are_in_the_forecast(tmp_path: Path, sample: int) -> None:
    rows, teacher = short(256), TableTeacher(classes=256)
    settings = SETTINGS | {"unit_rows": 10, "column": "ids", "selection": sl.TopK(4)}
    found, without = (
        sl.plan(rows, teacher, sample=sample, probes=probes, progress=False, **settings)
        for probes in (40, 0)
    )
    made = sl.precompute(rows, teacher, tmp_path / "set", probes=40, progress=False, **settings)
    files = list((tmp_path / "set" / "probes").iterdir())
    assert (made.totals.probes, len(files)) == (40, 4)
    taken = sum(file.stat().st_size for file in files)
    assert abs(found.probe_bytes / taken - 1) < 0.02
    assert without.probe_bytes == 0
    for ours, theirs in zip(found.choices, without.choices, strict=True):
        assert ours.bytes.mean - theirs.bytes.mean == pytest.approx(found.probe_bytes)
        assert ours.bytes_per_position == theirs.bytes_per_position


@pytest.mark.parametrize(
    ("temperatures", "at"), [((1.0, 2.0), 1.0), ((4.0, 2.0), 2.0), ((0.5, 2.0), 0.5), ((), 1.0)]
)
def test_the_kl_that_storing_adds_is_that_of_sets_read_back_with_their_tails(
    tmp_path: Path, temperatures: tuple[float, ...], at: float
) -> None:
    rows, teacher = short(16), TableTeacher()
    settings = SETTINGS | {"selection": sl.TopK(8), "temperatures": temperatures, "column": "ids"}
    found = sl.plan(rows, teacher, progress=False, **settings)
    exact, lossy = (
        sl.precompute(rows, teacher, tmp_path / codec, codec=codec, progress=False, **settings)
        for codec in ("plain", "compact")
    )
    nats = torch.cat([kl(p, q, at) for p, q in zip(exact, lossy, strict=True)])
    chosen = {choice.codec: choice for choice in found.choices if choice.k == 8}
    assert found.kl_temperature == at
    assert float(nats.mean()) > 1e-6
    assert chosen["compact"].added_kl == pytest.approx(float(nats.mean()), rel=0.05)
    for codec in ("lossless", "plain"):
        assert abs(chosen[codec].added_kl) < 1e-8


def kl(exact: sl.SoftLabels, found: sl.SoftLabels, temperature: float) -> torch.Tensor:
    """By dictionaries, a position at a time, the classes not kept as one."""

    def dense(labels: sl.SoftLabels, position: int) -> dict[int, float]:
        ids = labels.ids[position].tolist()
        p = labels.log_probs_at(temperature)[position].double().exp().tolist()
        return dict(zip(ids, p, strict=True)) | {-1: max(1 - sum(p), 1e-12)}

    nats = []
    for position in exact.mask.nonzero()[:, 0].tolist():
        p, q = dense(exact, position), dense(found, position)
        nats.append(sum(p[i] * np.log(p[i] / q[i]) for i in p))
    return torch.tensor(nats, dtype=torch.float64)


def choice(k: int, mass: float, *, codec: str = "compact", size: float = 0) -> Choice:
    whole = Estimate(low=0, mean=size or k, high=2 * k)
    return Choice(
        k=k, codec=codec, mass_kept=mass, bytes_per_position=k, bytes=whole, added_kl=1e-4
    )


@pytest.mark.parametrize(
    ("k", "masses", "words"),
    [
        (64, {32: 0.97, 64: 0.9951, 128: 0.9999}, "k = 64 keeps 99.5% of the mass: nothing is le"),
        (32, {16: 0.5, 32: 0.7, 64: 0.702}, "k = 32 keeps 70.0% of the mass, and every doubling"),
        (64, {16: 0.5, 32: 0.7, 64: 0.702}, "k = 32 keeps 70.0% of the mass, k = 64 70.2% at 2.0 "),
        (16, {16: 0.5, 32: 0.7, 64: 0.702}, "k = 16 keeps 50.0% of the mass, k = 32 70.0% for 2.0"),
    ],
)
def test_more_entries_are_advised_while_each_doubling_keeps_half_a_percent_more(
    k: int, masses: dict[int, float], words: str
) -> None:
    choices = {("compact", n): choice(n, mass) for n, mass in masses.items()}
    shares = {"teacher": 0.9, "writing": 0.1}
    said = list(advice(choices["compact", k], choices, shares, rejects=0, rows=9))
    assert said[0].startswith(words)
    assert said[1:] == ["the teacher takes 90% of the time: nothing else is worth tuning"]


def test_advice_names_a_smaller_codec_what_is_slow_and_what_was_rejected() -> None:
    plain = choice(8, 0.9, codec="plain", size=40)
    choices = {("plain", 8): plain, ("compact", 8): choice(8, 0.9)}
    shares = {"teacher": 0.2, "writing": 0.8}
    _, codec, slow, rejects = advice(plain, choices, shares, rejects=2, rows=9)
    assert codec == "compact would take 20% of plain's bytes and add 1.0e-04 nats"
    assert slow == "writing takes 80% of the time, more than the teacher"
    assert rejects.startswith("2 of 9 rows could not be labelled")


@pytest.mark.parametrize(
    "selection", [sl.TopP(0.7, 8), sl.Sampled(5), sl.Sampled(5, 0), sl.Dense()], ids=repr
)
def test_another_selection_is_forecast_as_it_is(
    tmp_path: Path, teacher_dir: Path, many: list[dict[str, Any]], selection: Any
) -> None:
    some, options = many[:40], SETTINGS | {"selection": selection, "progress": False}
    forecast = sl.plan(some, teacher_dir, sample=40, **options)
    labels = sl.precompute(some, teacher_dir, tmp_path / "set", **options)
    (chosen,) = forecast.choices
    assert chosen == forecast.chosen
    assert (chosen.codec, chosen.k) == (labels.plan.codec["name"], labels.plan.selection.k)
    assert chosen.bytes.mean == pytest.approx(labels.totals.bytes, rel=0.1)
    assert (chosen.mass_kept is None) == (chosen.added_kl is None) == selection.sampled
    assert "k = " not in " ".join(forecast.advice)
    show_forecast(forecast)

"""Several teachers of the same samples: apart, mixed, or one a record."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import InputError, JoinError, MissingTailError, VocabularyMismatchError
from softlabels.loading.fuse import mixture

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]
CLASSES = 16


def teacher(seed: int, classes: int = CLASSES) -> Any:
    table = torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed)) * 2
    return sl.teachers.from_callable(
        lambda ids: table[ids], name=f"t{seed}", version="1", classes=classes
    )


@pytest.fixture(scope="module")
def sets(
    tmp_path_factory: pytest.TempPathFactory, precompute: Precompute, samples: Samples
) -> list[sl.LabelSet]:
    """Of three teachers, with other k, temperatures, order of records and codec."""
    folder = tmp_path_factory.mktemp("teachers")
    options: list[dict[str, Any]] = [
        {"teacher": teacher(0)},
        {"teacher": teacher(1), "selection": sl.TopK(5), "temperatures": (1.0, 4.0)},
        {"teacher": teacher(2), "codec": "compact", "unit_rows": 5},
    ]
    rows = [samples, samples[::-1], samples]
    return [
        precompute(folder / str(i), r, **o)
        for i, (r, o) in enumerate(zip(rows, options, strict=True))
    ]


def by_key(batches: Any, name: Any = None) -> dict[Any, sl.SoftLabels]:
    found = {}
    for batch in batches:
        y = batch["soft_labels"] if name is None else batch["soft_labels"][name]
        for row, key in enumerate(batch["key"]):
            length = int(batch["attention_mask"][row].sum())
            found[key, int(batch["part"][row])] = y[row, :length]
    return found


def equal(one: sl.SoftLabels, other: sl.SoftLabels) -> bool:
    names = ("ids", "log_probs", "log_tails", "mask")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


@pytest.mark.parametrize("options", [{}, {"max_length": 4}])
def test_teachers_that_are_kept_apart_are_each_as_alone(
    sets: list[sl.LabelSet], samples: Samples, options: dict[str, Any]
) -> None:
    apart = list(sl.loader(sets, batch_size=3, seed=0, **options))
    named = list(sl.loader(dict(zip("abc", sets, strict=True)), samples, batch_size=3, **options))
    for place, labels in enumerate(sets):
        alone = by_key(sl.loader(labels, batch_size=1, **options))
        for found in (by_key(apart, place), by_key(named, "abc"[place])):
            assert found.keys() == alone.keys()
            assert all(equal(found[key], alone[key]) for key in alone)


def test_packed_teachers_lie_beside_each_other(sets: list[sl.LabelSet]) -> None:
    for batch in sl.loader(sets, batch_size=2, row_length=14):
        one, other, third = batch["soft_labels"]
        assert torch.equal(one.mask, batch["attention_mask"].bool())
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.mask, third.mask)


def dense(y: sl.SoftLabels) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the kept classes in a row of V, and of the rest."""
    p = torch.zeros(*y.shape, CLASSES, dtype=torch.float64)
    kept = y.log_probs_at(1.0).double().exp()
    p.scatter_add_(-1, y.ids, kept)
    return p, y.log_tail(1.0).double().exp()


def test_a_mixture_is_the_weighted_sum_of_what_each_keeps(sets: list[sl.LabelSet]) -> None:
    weights = [1.0, 2.0, 5.0]
    fused = by_key(sl.loader(sets, batch_size=3, fuse="mixture", weights=weights))
    parts = [by_key(sl.loader(labels)) for labels in sets]
    for key, y in fused.items():
        shares = [w / 8 for w in weights]
        expected = [dense(part[key]) for part in parts]
        p, rest = dense(y)
        want = sum(w * e[0] for w, e in zip(shares, expected, strict=True))
        torch.testing.assert_close(p, want, atol=1e-6, rtol=1e-5)
        want_rest = sum(w * e[1] for w, e in zip(shares, expected, strict=True))
        torch.testing.assert_close(rest, want_rest, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(p.sum(-1) + rest, torch.ones_like(rest), atol=1e-6, rtol=0)
        used = y.log_probs > -torch.inf
        for position, mask in zip(y.ids, used, strict=True):
            ids = position[mask].tolist()
            assert len(ids) == len(set(ids))
        with pytest.raises(MissingTailError):
            y.log_tail(2.0)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_the_gradient_of_a_mixture_of_full_teachers_is_the_weighted_one(
    seed: int, teachers: int, classes: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(teachers, 3, classes, generator=rng, dtype=torch.float64)
    weights = torch.rand(teachers, generator=rng, dtype=torch.float64) + 0.1
    ids = torch.stack([torch.randperm(classes, generator=rng) for _ in range(teachers * 3)])
    ids = ids.view(teachers, 3, classes)
    log_probs = logits.log_softmax(-1).gather(-1, ids)
    parts = [sl.SoftLabels(ids=i, log_probs=p) for i, p in zip(ids, log_probs, strict=True)]
    student = torch.randn(3, classes, generator=rng, dtype=torch.float64, requires_grad=True)
    shares = weights / weights.sum()
    apart = sum(
        w * sl.losses.kl_divergence(student, y).sum() for w, y in zip(shares, parts, strict=True)
    )
    (expected,) = torch.autograd.grad(apart, student)
    fused = mixture(parts, weights.tolist())
    (found,) = torch.autograd.grad(sl.losses.kl_divergence(student, fused).sum(), student)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)


def test_a_choice_takes_each_record_whole_from_one_teacher(sets: list[sl.LabelSet]) -> None:
    loader = sl.loader(sets, batch_size=4, fuse="choice", seed=3, weights=[1, 1, 2])
    parts = [by_key(sl.loader(labels)) for labels in sets]
    epochs = []
    for _ in range(4):
        chosen = {}
        for key, y in by_key(loader).items():
            width = [part[key].k for part in parts]
            same = [
                torch.equal(y.ids[..., :k], part[key].ids)
                and torch.equal(y.log_probs[..., :k], part[key].log_probs)
                and bool((y.log_probs[..., k:] == -torch.inf).all())
                and torch.equal(y.log_tail(1.0), part[key].log_tail(1.0))
                for part, k in zip(parts, width, strict=True)
            ]
            assert same.count(True) == 1
            chosen[key] = same.index(True)
        epochs.append(chosen)
        by_sample: dict[str, set[int]] = {}
        for (key, _), index in chosen.items():
            by_sample.setdefault(key, set()).add(index)
        assert all(len(found) == 1 for found in by_sample.values())
    assert all(one != other for one, other in itertools.combinations(epochs, 2))
    assert {index for chosen in epochs for index in chosen.values()} == {0, 1, 2}


@pytest.mark.parametrize("fuse", [None, "mixture", "choice"])
def test_a_state_goes_on_with_the_same_labels(sets: list[sl.LabelSet], fuse: Any) -> None:
    def values(batch: Any) -> Any:
        y = batch["soft_labels"]
        return [x.log_probs.tolist() for x in (y if isinstance(y, list) else [y])]

    loader = sl.loader(sets, batch_size=4, fuse=fuse, seed=3)
    list(loader)
    batches, states = [], []
    for batch in loader:
        batches.append(values(batch))
        states.append(loader.state_dict())
    assert states.pop()["epoch"] == 2
    for step, state in enumerate(states, 1):
        resumed = sl.loader(sets, batch_size=4, fuse=fuse, seed=3)
        resumed.load_state_dict(state)
        assert [values(b) for b in resumed] == batches[step:]
    with pytest.raises(InputError, match="another loader"):
        sl.loader(sets[:2], batch_size=4, seed=3).load_state_dict(states[0])


@pytest.mark.parametrize("fuse", [None, "mixture", "choice"])
def test_a_filler_of_several_teachers_has_no_label(sets: list[sl.LabelSet], fuse: Any) -> None:
    loader = sl.loader(sets, batch_size=4, fuse=fuse, rank=50, world_size=51)
    (batch,) = loader
    found = batch["soft_labels"]
    for y in found if isinstance(found, list) else [found]:
        assert y.shape == (1, 1)
        assert not y.mask.any()


def test_records_that_one_teacher_lacks_are_refused_or_left_out(
    sets: list[sl.LabelSet], samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    fewer = precompute(
        tmp_path / "set", [s for s in samples if s["id"] != "s4"], teacher=teacher(5)
    )
    with pytest.raises(JoinError, match=r'"s4".*no labels in one of the other sets.*skip'):
        sl.loader([sets[0], fewer])
    loader = sl.loader([sets[0], fewer], samples, on_missing="skip", batch_size=3)
    assert {key for key, _ in by_key(loader, 1)} == {s["id"] for s in samples} - {"s4"}
    assert len(by_key(sl.loader([fewer, sets[0]]), 0)) == len(fewer)


def test_records_that_are_left_out_are_logged_and_data_may_lack_others(
    sets: list[sl.LabelSet],
    samples: Samples,
    tmp_path: Path,
    precompute: Precompute,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fewer = precompute(tmp_path / "set", samples[:9], teacher=teacher(5))
    with caplog.at_level(logging.WARNING, "softlabels"):
        loader = sl.loader([sets[0], fewer], samples[1:], on_missing="skip")
    assert re.search(r"1 records of .* have no labels in one of the other sets", caplog.text)
    assert {key for key, _ in by_key(loader, 1)} == {s["id"] for s in samples[1:9]}
    assert loader.report is not None
    assert (loader.report.extra, loader.report.first_extra) == (1, "s0")
    with pytest.raises(InputError, match=r"stream.*cannot be left out"):
        sl.loader([sets[0], fewer], iter(samples), on_missing="skip")
    chosen = [sets[0].index(s["id"]) for s in samples[:3]]
    with pytest.raises(JoinError, match=r'"s0" has labels but no row.*chosen records'):
        sl.loader([sets[0], fewer], samples[1:], on_missing="skip", records=chosen)


def test_labels_of_other_tokens_under_the_same_key_are_an_error(
    sets: list[sl.LabelSet], samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    changed = [s | {"ids": [(i + 1) % 16 for i in s["ids"]]} for s in samples]
    other = precompute(tmp_path / "set", changed, teacher=teacher(5))
    with pytest.raises(JoinError, match=r'"s0", part 0: .*labels of other tokens'):
        list(sl.loader([sets[0], other]))


def test_what_cannot_be_fused_is_refused(
    sets: list[sl.LabelSet], samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    for options in (
        {"fuse": "sum"},
        {"weights": [1, 1, 1]},
        {"fuse": "mixture", "weights": [1, 1]},
        {"fuse": "mixture", "weights": [1, -1, 1]},
        {"fuse": "mixture", "weights": [0, 0, 0]},
        {"on_missing": "hard-label", "data": samples},
    ):
        with pytest.raises(InputError, match=r"fuse|weights|hard-label"):
            sl.loader(sets, **options)
    with pytest.raises(InputError, match="there is one"):
        sl.loader(sets[0], fuse="mixture")
    wider = precompute(tmp_path / "set", samples, teacher=teacher(5, classes=17))
    with pytest.raises(VocabularyMismatchError, match="17 classes"):
        sl.loader([sets[0], wider])


def test_weights_of_a_choice_are_its_shares(tmp_path: Path, precompute: Precompute) -> None:
    rows = [{"id": f"s{i}", "ids": [i % 16, 1]} for i in range(400)]
    two = [precompute(tmp_path / str(i), rows, unit_rows=400, teacher=teacher(i)) for i in (0, 1)]
    first = by_key(sl.loader(two[0], batch_size=400))
    loader = sl.loader(two, batch_size=400, fuse="choice", weights=[3, 1])
    share = np.mean([equal(y, first[key]) for key, y in by_key(loader).items()])
    # Of 400 draws a standard deviation is .022.
    assert abs(share - 0.75) < 0.13


def told(y: sl.SoftLabels) -> torch.Tensor:
    """A distribution over the classes and a rest, float64, (…, V + 1)."""
    p, rest = dense(y)
    return torch.cat([p, rest.unsqueeze(-1)], -1)


def apart_by(teachers: list[sl.SoftLabels], weights: list[float]) -> torch.Tensor:
    """Σ wᵢ KL(pᵢ ‖ Σ wⱼ pⱼ), term by term."""
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    parts = torch.stack([told(y) for y in teachers])
    mixed = (shares.view(-1, *[1] * (parts.ndim - 1)) * parts).sum(0)
    terms = torch.special.xlogy(parts, parts) - torch.special.xlogy(parts, mixed)
    return torch.einsum("t,t...->...", shares, terms.sum(-1))


@pytest.mark.parametrize("fuse", [None, "mixture"])
@pytest.mark.parametrize("options", [{}, {"row_length": 14}, {"max_length": 3}])
def test_a_batch_says_how_far_the_teachers_are_apart(
    sets: list[sl.LabelSet], fuse: Any, options: dict[str, Any]
) -> None:
    weights = [1.0, 1.0, 1.0] if fuse is None else [1.0, 2.0, 5.0]
    given = {} if fuse is None else {"fuse": fuse, "weights": weights}
    apart = sl.loader(sets, batch_size=3, seed=0, **options)
    most = 0.0
    for batch, known in zip(
        sl.loader(sets, batch_size=3, seed=0, disagreement=True, **given, **options),
        apart,
        strict=True,
    ):
        found, teachers = batch["disagreement"], known["soft_labels"]
        mask = teachers[0].mask
        assert (found.dtype, found.shape) == (torch.float32, mask.shape)
        expected = apart_by([y[mask] for y in teachers], weights)
        assert torch.allclose(found[mask].double(), expected, atol=1e-5)
        assert not found[~mask].any()
        most = max(most, float(found.max()))
    assert 0.1 < most < np.log(3)


def test_teachers_that_agree_are_nothing_apart_and_others_cannot_be_compared(
    sets: list[sl.LabelSet], samples: Samples, tmp_path: Path, precompute: Precompute
) -> None:
    for batch in sl.loader([sets[0], sets[0]], batch_size=3, disagreement=True):
        assert float(batch["disagreement"].abs().max()) < 1e-6
    for some, options in (
        (sets[0], {}),
        (sets, {"fuse": "choice"}),
        (
            [
                sets[0],
                precompute(
                    tmp_path / "s", samples, selection=sl.Sampled(5), temperatures=(), codec=None
                ),
            ],
            {},
        ),
    ):
        with pytest.raises(InputError):
            sl.loader(some, disagreement=True, **options)
    loader = sl.loader(sets, batch_size=4, disagreement=True, rank=50, world_size=51)
    assert [batch["disagreement"].tolist() for batch in loader] == [[[0.0]]]

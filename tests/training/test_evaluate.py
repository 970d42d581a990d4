"""Held-out metrics against their definitions, position by position in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_students import Table
from torch import nn

import softlabels as sl
from softlabels.training import LossRecipe, TrainRecipe, evaluate, train
from softlabels.training.evaluate import likeliest
from softlabels.training.forward import Student
from softlabels.training.student import separate_head


def positions(labels: sl.LabelSet) -> list[tuple[int, int | None, sl.SoftLabels]]:
    """Token, next token and labels of every labelled position, a record at a time."""
    found = []
    for batch in sl.loader(labels, batch_size=1, shuffle=False):
        ids, y = batch["input_ids"][0].tolist(), batch["soft_labels"][0]
        after = [*ids[1:], int(batch["next_ids"][0])]
        for t in range(len(ids)):
            if y.mask[t]:
                found.append((ids[t], after[t] if after[t] >= 0 else None, y[t]))
    return found


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_every_metric_is_its_definition(labels: sl.LabelSet) -> None:
    model = Table(seed=4)
    batches = sl.loader(labels, batch_size=4, shuffle=False)
    found = evaluate(Student(model), batches, temperatures=(1.0, 2.0))
    q = model.table.detach().double().log_softmax(-1)
    kl, kl_at_2, ce, teacher, agreed, bins = [], [], [], [], [], [[] for _ in range(15)]
    for token, after, y in positions(labels):
        kept = y.ids.tolist()
        others = [j for j in range(16) if j not in kept]
        for temperature, sums in ((1.0, kl), (2.0, kl_at_2)):
            log_q = (model.table[token].detach().double() / temperature).log_softmax(-1)
            p, rest = y.log_probs_at(temperature).double().exp(), y.log_tail(temperature).exp()
            terms = [float(p[i] * (p[i].log() - log_q[j])) for i, j in enumerate(kept)]
            sums.append(sum(terms) + float(rest * (rest.log() - log_q[others].logsumexp(-1))))
        guess = int(q[token].argmax())
        agreed.append(float(guess == kept[int(y.log_probs.argmax())]))
        if after is not None:
            ce.append(-float(q[token, after]))
            teacher.append(-float(y.hard_log_probs))
            confidence = float(q[token, guess].exp())
            bins[int(confidence * 15)].append((confidence, float(guess == after)))
    assert (found.positions, found.hard_positions) == (len(kl), len(ce))
    assert len(ce) < len(kl)
    assert found.kl == pytest.approx(mean(kl), rel=1e-5)
    assert dict(found.kl_at) == {"2": pytest.approx(mean(kl_at_2), rel=1e-5)}
    assert found.cross_entropy == pytest.approx(mean(ce), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(mean(ce)), rel=1e-5)
    assert found.teacher_cross_entropy == pytest.approx(mean(teacher), rel=1e-5)
    assert found.top1_agreement == pytest.approx(mean(agreed))
    gaps = [abs(sum(c - r for c, r in members)) for members in bins]
    assert found.calibration_error == pytest.approx(sum(gaps) / len(ce), rel=1e-4)
    assert found.soft_cross_entropy is None


def test_the_teacher_itself_agrees_and_has_no_kl(finished_set: Path, model: Any) -> None:
    labels = sl.LabelSet.open(finished_set)
    student = Student(model, separate_head(model))
    assert student.head is not None
    found = evaluate(student, sl.loader(labels, batch_size=4, records=range(8)))
    assert found.kl == pytest.approx(0, abs=1e-5)
    assert found.top1_agreement == 1
    assert found.cross_entropy == pytest.approx(found.teacher_cross_entropy, rel=1e-4)


def test_a_student_in_training_is_judged_without_its_dropout(labels: sl.LabelSet) -> None:
    model = nn.Module()
    model.inner, model.drop = Table(seed=4), nn.Dropout(0.5)  # type: ignore[assignment]

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=model.drop(model.inner.table[input_ids]))

    model.forward = forward  # type: ignore[method-assign,assignment]
    batches = sl.loader(labels, batch_size=4, shuffle=False)
    plain = evaluate(Student(Table(seed=4)), batches)
    assert evaluate(Student(model.train()), batches).kl == plain.kl
    assert model.training


def test_sampled_labels_have_their_unbiased_cross_entropy_and_no_kl(labels: sl.LabelSet) -> None:
    model = Table(seed=4)
    batches = list(sl.loader(labels, batch_size=4, shuffle=False))
    for batch in batches:
        y = batch["soft_labels"]
        batch["soft_labels"] = sl.SoftLabels(
            ids=y.ids, log_probs=y.log_probs, mask=y.mask, sampled=True
        )
    found = evaluate(Student(model), batches, temperatures=(1.0, 2.0))
    assert (found.kl, found.top1_agreement, found.teacher_cross_entropy) == (None, None, None)
    assert found.kl_at == {}
    total, count = 0.0, 0
    for batch in batches:
        y = batch["soft_labels"]
        logits = model.table[batch["input_ids"]].detach()
        total += float(sl.losses.soft_cross_entropy(logits, y).sum())
        count += int(y.mask.sum())
    assert found.soft_cross_entropy == pytest.approx(total / count, rel=1e-5)


def test_of_equal_guesses_the_smallest_id_is_the_first() -> None:
    y = sl.SoftLabels(
        ids=torch.tensor([[7, 3, 5], [2, 9, 0]]),
        log_probs=torch.tensor([[-1.0, -1.0, -3.0], [-torch.inf, -0.5, -2.0]]),
    )
    assert likeliest(y).tolist() == [3, 9]


def test_a_set_without_t_1_trains_and_is_judged_at_its_own_temperature(
    precompute: Any, id_samples: list[dict[str, Any]], recipe: TrainRecipe, tmp_path: Path
) -> None:
    labels = precompute(tmp_path / "labels", id_samples, temperatures=(2.0,))
    recipe = replace(recipe, loss=LossRecipe(temperature=2.0))
    result = train(labels, recipe=recipe, out=tmp_path / "run")
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl is None
    assert result.after.kl_at["2"] < result.before.kl_at["2"]
    assert result.after.top1_agreement is not None


def test_a_kl_at_t_1_between_stored_temperatures_is_interpolated(
    precompute: Any, id_samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = {}
    for name, temperatures in (("stored", (0.5, 1.0, 2.0)), ("around", (0.5, 2.0))):
        labels = precompute(tmp_path / name, id_samples, temperatures=temperatures)
        batches = sl.loader(labels, batch_size=4, shuffle=False)
        found[name] = evaluate(Student(Table(seed=4)), batches).kl
    assert found["around"] == pytest.approx(found["stored"], rel=0.05)

"""Every selection through precompute, its codecs, a resume and the loader."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.errors import InputError, PlanMismatchError, UnsupportedFormatError
from softlabels.format import plan as plans
from softlabels.verifying.verify import verify

CLASSES = 16
Run = Callable[..., sl.LabelSet]


@pytest.fixture
def run(precompute: Any, tmp_path: Path) -> Run:
    def label(selection: Any = None, *, out: str = "set", **options: Any) -> sl.LabelSet:
        settings: dict[str, Any] = {"selection": selection, "temperatures": None, "codec": None}
        labels: sl.LabelSet = precompute(tmp_path / out, **(settings | options))
        return labels

    return label


def weights(labels: sl.SoftLabels) -> torch.Tensor:
    dense = torch.zeros(len(labels), CLASSES, dtype=torch.float64)
    return dense.scatter_add_(-1, labels.ids, labels.log_probs.double().exp())


SELECTIONS = [sl.TopP(0.6, 8), sl.Sampled(5), sl.Sampled(5, 0), sl.Sampled(5, 2), sl.Dense()]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_set_of_any_selection_is_whole_and_loads(run: Run, selection: Any) -> None:
    labels = run(selection)
    assert verify(labels.root).findings == ()
    assert labels.plan.selection.name == selection.name
    seen = 0
    for batch in sl.loader(labels, batch_size=2, seed=0):
        y = batch["soft_labels"]
        assert y.sampled == selection.sampled
        logits = torch.zeros(*y.shape, CLASSES, requires_grad=True)
        loss = sl.losses.reduce(sl.losses.soft_cross_entropy(logits, y), y.mask)
        loss.backward()
        tail = y.log_tails is not None and y.log_tails[..., 0].max() > -math.inf
        # Of a uniform student it is Σ w log V, and less where classes are taken as one.
        assert loss.item() == pytest.approx(math.log(CLASSES), rel=2e-3) or tail
        masses = y.log_probs.exp().sum(-1) + (y.log_tails[..., 0].exp() if tail else 0)
        torch.testing.assert_close(masses[y.mask], torch.ones(int(y.mask.sum())), rtol=0, atol=2e-3)
        seen += int(y.mask.sum())
    assert seen == labels.totals.positions


def test_the_draws_of_a_sample_do_not_depend_on_its_batch_or_unit(
    run: Run, id_rows: list[dict[str, Any]]
) -> None:
    together = run(sl.Sampled(5), out="a")
    apart = run(sl.Sampled(5), out="b", batch_tokens=1, unit_rows=1, rows=id_rows[::-1])
    other = run(sl.Sampled(5, seed=1), out="c")
    differs = False
    for number in range(len(together)):
        identity = together.identities.slice(number, 1).to_pylist()[0]
        key, part = identity["key"], identity["part"]
        one, same = weights(together.get(key, part=part)), weights(apart.get(key, part=part))
        torch.testing.assert_close(one, same, rtol=0, atol=1e-6)
        differs = differs or not torch.allclose(one, weights(other.get(key, part=part)))
    assert differs


def test_a_resume_without_a_selection_goes_on_with_the_plans(run: Run) -> None:
    labels = run(sl.Sampled(5, 2, seed=7))
    (labels.root / labels.receipts[1].path).unlink()
    again = run()
    assert again.plan.selection.settings == {"head": 2, "seed": 7}
    assert verify(again.root).findings == ()


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (sl.Sampled(5), sl.Sampled(5, seed=1), r"selection\.settings\.seed was 0, is now 1"),
        (sl.Sampled(5), sl.Sampled(5, 1), r"selection\.settings\.head was null, is now 1"),
        (sl.TopP(0.6, 8), sl.TopP(0.7, 8), r"selection\.settings\.p was 0\.6, is now 0\.7"),
        (sl.TopP(0.6, 8), sl.TopK(8), r"selection\.name was \"top_p\", is now \"top_k\""),
    ],
)
def test_a_resume_with_another_selection_is_refused(
    run: Run, first: Any, then: Any, words: str
) -> None:
    run(first)
    with pytest.raises(PlanMismatchError, match=words):
        run(then)


@pytest.mark.parametrize(
    ("selection", "options", "words"),
    [
        (sl.Sampled(5), {"codec": "compact"}, "gives weights, which sampled alone writes"),
        (sl.Sampled(5), {"codec": "plain"}, "gives weights, which sampled alone writes"),
        (sl.TopK(5), {"codec": "sampled"}, "gives probabilities, and the codec is sampled"),
        (None, {"codec": "sampled"}, r"Sampled\(n\)"),
        (sl.Sampled(5), {"temperatures": (1.0, 2.0)}, "T = 1 alone"),
        (sl.Sampled(16), {}, "n is 16 of the teacher's 16 classes"),
        (sl.Dense(8), {}, "for 8 classes and the teacher has 16"),
        ("top 5", {}, "expected softlabels.TopK"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path, selection: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run(selection, **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("codec", ["plain", "compact", "lossless"])
def test_a_dense_set_derives_to_what_a_top_k_would_have_given(
    run: Run, tmp_path: Path, codec: str
) -> None:
    dense = run(sl.Dense(), out="dense", codec="lossless", temperatures=(1.0, 2.0))
    top = run(sl.TopK(4), out="top", codec=codec, temperatures=(1.0, 2.0))
    derived = sl.derive(dense, tmp_path / "derived", codec=codec, k=4, progress=False)
    assert derived.plan.selection == top.plan.selection
    for number in range(len(top)):
        one, other = derived[number].sorted(), top[number].sorted()
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.log_tails, other.log_tails, rtol=0, atol=1e-2)


def test_plans_of_top_k_are_written_as_they_always_were(run: Run) -> None:
    written = json.loads(run(sl.TopK(5)).plan.to_bytes())
    assert list(written["selection"]) == ["name", "k", "algorithm"]


def test_a_selection_of_a_later_version_reads_and_says_what_it_is() -> None:
    later = plans.SelectionPlan(name="gumbel\x1b", k=3, algorithm="x", settings={"a": 1})
    assert later.words(10) == '3 of 10 classes, by "gumbel\\u001b"'
    with pytest.raises(UnsupportedFormatError, match="upgrade softlabels"):
        later.make()
    broken = plans.SelectionPlan(name="sampled", k=3, algorithm="x")
    with pytest.raises(UnsupportedFormatError, match="settings of the selection sampled"):
        broken.make()


@pytest.mark.parametrize("gap", [63.0, 90.0])
@pytest.mark.parametrize("selection", [sl.Sampled(5), sl.Sampled(5, 0), sl.Sampled(5, 2)], ids=repr)
def test_a_teacher_that_is_sure_is_drawn_from_and_written(
    run: Run, selection: Any, gap: float
) -> None:
    table = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0))
    table[:, 7] = gap
    teacher = sl.teachers.from_callable(
        lambda ids: table[ids], name="sure", version="1", classes=CLASSES
    )
    labels = run(selection, teacher=teacher)
    assert verify(labels.root).findings == ()
    found = weights(labels[0])
    torch.testing.assert_close(found[:, 7], torch.ones(len(found), dtype=torch.float64))
